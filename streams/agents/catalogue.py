"""How a worker learns of every item: entries from the `items` topic, vectors from the index once they are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.domain.catalogue import Catalogue, content_hash
from models.domain.errors import EventDecodeError
from models.domain.events import EventContract
from models.domain.ports import F32, ItemIndex
from streams.agents.items import decode_item
from streams.agents.next_vectors import NextVectors, found_in
from streams.agents.retry import Retry

# The promise is a new item in lists within a second of its message; the owner of its text may be another worker, so the
# index is asked this often while a vector is missing, and at once when this worker has written one.
POLL_SECONDS = 0.1
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
        self._hashes: dict[str, str] = {}
        """Item id -> content hash, of every declared item: what another version's collection must hold."""
        self._next: NextVectors | None = None
        self._look = asyncio.Event()

    def look(self) -> None:
        """Vectors were written: ask the index now."""
        self._look.set()

    @property
    def missing(self) -> int:
        """Vectors that are not in the index yet."""
        return len(self._waiting)

    async def prepare(self, index: ItemIndex, placeholder: Callable[[str], F32], retry: Retry) -> NextVectors:
        """Begin to gather the vectors of another version; what is declared from now on is expected there too."""
        async with self._lock:
            self._next = NextVectors(self._catalogue, index, placeholder, retry, dict(self._hashes), self._lock)
            return self._next

    def abandon(self) -> None:
        """Nothing more is prepared; no micro-batch uses the vectors any more."""
        if self._next is not None:
            self._next.abandon()
        self._next = None

    def use(self, vectors: NextVectors) -> None:
        """Serve the version that was prepared; the caller holds the lock."""
        self._catalogue.serve(vectors.vectors)
        self._index, self._waiting = vectors.index, vectors.waiting
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
                    self._hashes.pop(item_id, None)
                    if self._next is not None:
                        self._next.forget(item_id)
                else:
                    self._catalogue.declare(item)
                    self._hashes[item_id] = self._waiting[item_id] = hashed = content_hash(item)
                    if self._next is not None:
                        self._next.expect(item_id, hashed)
        self._look.set()

    async def fetch(self) -> None:
        """Take over every vector that is in the index by now. Raises: ItemIndexError."""
        index = self._index
        async for found in found_in(index, self._waiting, self._retry):
            async with self._lock:
                if self._index is not index:
                    return  # another version is served meanwhile: these vectors are not its own
                at = [self._catalogue.intern(item_id) for item_id in found]
                self._catalogue.set_vectors(at, np.stack(list(found.values())))

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
