"""How a worker learns of every item: entries from the `items` topic, vectors from the index once they are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.domain.catalogue import Catalogue, content_hash
from models.domain.errors import EventDecodeError
from models.domain.events import EventContract
from models.domain.ports import ItemIndex
from streams.agents.items import decode_item
from streams.agents.retry import Retry

# The promise is a new item in lists within a second of its message; the owner of its text may be another worker, so the
# index is asked this often while a vector is missing, and at once when this worker has written one.
POLL_SECONDS = 0.1
PAGE = 256
# An event on an item without its vector moves nobody's vector, so the first events after a start wait while the texts
# of a new catalogue are encoded: 30 s is some ten thousand titles. On a restart all vectors are there.
SETTLE_SECONDS = 30.0


class CatalogueFeed:
    """Applies the broadcast of `items` to the catalogue.

    Args:
        lock: held while the catalogue changes, since the pipeline reads it from another thread.
    """

    def __init__(
        self, contract: EventContract, catalogue: Catalogue, index: ItemIndex, retry: Retry, lock: asyncio.Lock
    ) -> None:
        self._contract, self._catalogue, self._index, self._retry, self._lock = contract, catalogue, index, retry, lock
        self._waiting: dict[str, str] = {}
        """Item id -> content hash of the vector that is missing."""
        self._look = asyncio.Event()

    def look(self) -> None:
        """Vectors were written: ask the index now."""
        self._look.set()

    async def settled(self) -> None:
        """Returns when no vector is missing, or when the owners of the texts have had their time."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._waiting and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    async def apply(self, records: Sequence[Any]) -> None:
        async with self._lock:
            for record in records:
                try:
                    item_id, item = decode_item(self._contract, record, self._catalogue.dimension - 1)
                except EventDecodeError:
                    continue  # its owner makes the dead letter
                if item is None:
                    self._catalogue.remove(item_id)
                    self._waiting.pop(item_id, None)
                else:
                    self._catalogue.declare(item)
                    self._waiting[item_id] = content_hash(item)
        self._look.set()

    async def fetch(self) -> None:
        """Take over every vector that is in the index by now. Raises: ItemIndexError."""
        wanted = list(self._waiting.items())
        for start in range(0, len(wanted), PAGE):
            page = wanted[start : start + PAGE]
            ids = [item_id for item_id, _ in page]
            records = await self._retry.call("item_load", lambda ids=ids: self._index.get_many(ids))  # type: ignore[misc]
            found = [
                (item_id, record.vector)
                for (item_id, hashed), record in zip(page, records, strict=True)
                if record is not None and record.content_hash == hashed
            ]
            if found:
                async with self._lock:
                    at = [self._catalogue.intern(item_id) for item_id, _ in found]
                    self._catalogue.set_vectors(at, np.stack([vector for _, vector in found]))
                hashes = dict(page)
                for item_id, _ in found:
                    if self._waiting.get(item_id) == hashes[item_id]:
                        del self._waiting[item_id]

    async def run(self) -> None:
        """Fetch missing vectors until cancelled."""
        while True:
            await self._look.wait()
            self._look.clear()
            await self.fetch()
            if self._waiting:
                try:
                    await asyncio.wait_for(self._look.wait(), POLL_SECONDS)
                except TimeoutError:
                    self._look.set()
