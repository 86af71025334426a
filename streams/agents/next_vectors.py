"""The catalogue's vectors for a model version that is about to be served, gathered beside those that are served.

Owns the rows and what is still missing of them; who writes the vectors into the index is not its affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np

from models.domain.catalogue import Catalogue
from models.domain.ports import F32, ItemIndex
from streams.agents.retry import Retry

# Items of one look-up.
PAGE = 256


async def found_in(index: ItemIndex, waiting: dict[str, str], retry: Retry) -> AsyncIterator[dict[str, F32]]:
    """The awaited vectors that are in the index by now, a page at a time: item id -> float32[D].

    Args:
        waiting: item id -> content hash; what was found is taken out when the next page is asked for, unless the item
            has another content since.
    Raises: ItemIndexError.
    """
    wanted = list(waiting.items())
    for start in range(0, len(wanted), PAGE):
        page = dict(wanted[start : start + PAGE])
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


class NextVectors:
    """Rows by catalogue index.

    Args:
        placeholder: the coming version's.
        waiting: item id -> content hash, of every declared item; kept up to date by `expect` and `forget`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        index: ItemIndex,
        placeholder: Callable[[str], F32],
        retry: Retry,
        waiting: dict[str, str],
    ) -> None:
        self.index, self.placeholder, self.waiting = index, placeholder, waiting
        self.rows: F32 = np.zeros_like(catalogue.vectors)
        """float32[capacity, D]."""
        self._catalogue, self._retry = catalogue, retry
        self._required = set(waiting)
        """Items without which the version is not served; one that is declared later may come later."""
        self._has_row = np.zeros(len(self.rows), np.bool_)

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

    async def cover(self) -> None:
        """Placeholders for items that nobody declared, which no index holds."""
        for at, item_id in enumerate(list(self._catalogue.ids)):
            if item_id not in self.waiting:
                self._set(at, self.placeholder(item_id))
            if at % PAGE == 0:
                await asyncio.sleep(0)  # the event loop has events to serve

    async def fetch(self) -> None:
        """Take over every vector that is in the index by now. Raises: ItemIndexError."""
        async for found in found_in(self.index, self.waiting, self._retry):
            for item_id, vector in found.items():
                self._set(self._catalogue.index[item_id], vector)
            self._required.difference_update(found)

    def complete(self) -> None:
        """Placeholders for what came last: items that events named since, and new ones whose vector is on its way."""
        known = len(self._catalogue)
        self._reach(known)
        for at in np.flatnonzero(~self._has_row[:known]).tolist():
            self._set(at, self.placeholder(self._catalogue.ids[at]))

    def _set(self, at: int, vector: F32) -> None:
        self._reach(at + 1)
        self.rows[at] = vector
        self._has_row[at] = True

    def _reach(self, items: int) -> None:
        if items > len(self.rows):
            rows, has_row = np.zeros_like(self._catalogue.vectors), np.zeros(len(self._catalogue.vectors), np.bool_)
            rows[: len(self.rows)], has_row[: len(self.rows)] = self.rows, self._has_row
            self.rows, self._has_row = rows, has_row
