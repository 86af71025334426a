"""The catalogue's vectors for a model version that is about to be served, gathered beside those that are served.

Owns the rows and what is still missing of them; who writes the vectors into the index is not its affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import numpy as np

from models.domain.catalogue import Catalogue
from models.domain.ports import F32, ItemIndex
from streams.agents.considerate import PAUSES, pause_after
from streams.agents.retry import Retry

# Items of one look-up.
PAGE = 256


async def found_in(
    index: ItemIndex, waiting: dict[str, str], retry: Retry, pauses: float = 0.0
) -> AsyncIterator[dict[str, F32]]:
    """The awaited vectors that are in the index by now, a page at a time: item id -> float32[D].

    Args:
        waiting: item id -> content hash; what was found is taken out when the next page is asked for, unless the item
            has another content since.
        pauses: after each page that held some, as a multiple of the time it took. Not before its items are taken out:
            one that is removed and declared again meanwhile is awaited anew.
    Raises: ItemIndexError.
    """
    wanted = list(waiting.items())
    for start in range(0, len(wanted), PAGE):
        started, page = time.monotonic(), dict(wanted[start : start + PAGE])
        records = await retry.call("item_load", lambda ids=list(page): index.get_many(ids))  # type: ignore[misc]
        found = {
            item_id: record.vector
            for (item_id, hashed), record in zip(page.items(), records, strict=True)
            if record is not None and record.content_hash == hashed and waiting.get(item_id) == hashed
        }
        if found:
            yield found
            for item_id in found:
                if waiting.get(item_id) == page[item_id]:
                    del waiting[item_id]
            await pause_after(started, pauses)


class NextVectors:
    """Rows by catalogue index, attached to the catalogue until they are served or abandoned.

    Args:
        placeholder: the coming version's.
        waiting: item id -> content hash, of every declared item; kept up to date by `expect` and `forget`.
        lock: held while rows are written, since the pipeline's thread may name an item that makes them grow.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        index: ItemIndex,
        placeholder: Callable[[str], F32],
        retry: Retry,
        waiting: dict[str, str],
        lock: asyncio.Lock,
    ) -> None:
        self.index, self.waiting = index, waiting
        self.vectors = catalogue.attach(placeholder)
        self._catalogue, self._retry, self._lock = catalogue, retry, lock
        self._known = len(catalogue)
        """Items that were there before: those that come later get their place when they come."""
        self._required = set(waiting)
        """Items without which the version is not served; one that is declared later may come later."""

    @property
    def missing(self) -> int:
        return len(self._required)

    def expect(self, item_id: str, content_hash: str) -> None:
        """The item was declared, or declared anew."""
        self.waiting[item_id] = content_hash

    def forget(self, item_id: str) -> None:
        """The item was removed."""
        self.waiting.pop(item_id, None)
        self._required.discard(item_id)

    def abandon(self) -> None:
        """Nothing more is gathered; of vectors that are served by now, nothing changes."""
        self._catalogue.detach(self.vectors)

    async def cover(self) -> None:
        """Placeholders for items that nobody declared, which no index holds."""
        catalogue = self._catalogue
        for start in range(0, self._known, PAGE):
            async with self._lock:
                for at in range(start, min(start + PAGE, self._known)):
                    if not catalogue.declared[at] and not catalogue.removed[at]:
                        self.vectors.hold_place(at, catalogue.ids[at])
            await asyncio.sleep(0)  # the event loop has events to serve

    async def fetch(self) -> None:
        """Take over every vector that is in the index by now, with a pause after each page. Raises: ItemIndexError."""
        async for found in found_in(self.index, self.waiting, self._retry, PAUSES):
            async with self._lock:
                # One that was removed while we waited for our turn is no longer expected.
                kept = {item_id: vector for item_id, vector in found.items() if item_id in self.waiting}
                if kept:
                    at = [self._catalogue.index[item_id] for item_id in kept]
                    self.vectors.put(at, np.stack(list(kept.values())))
            self._required.difference_update(found)
