"""How workers share item statistics: applies the `item-stats` topic to the ledger.

Snapshots go through the same topic, cut into messages; the committed offset of a group of their own says where the
newest begins, so that a new worker need not read a year of deltas.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Sequence
from typing import Any

from models.domain.deltas import Ledger, decode_delta, pack_snapshot
from models.domain.errors import EventDecodeError, StateError
from streams.kafka.publisher import Message, Publisher
from streams.kafka.snapshot_pointer import SnapshotPointer
from streams.metrics import Metrics

log = logging.getLogger(__name__)

SNAPSHOT_KEY = b"snapshot"
# Well below the smallest message limit in use (1 MiB), headers included.
SNAPSHOT_PART_BYTES = 512_000


class StatisticsFeed:
    """Takes deltas off the topic in order.

    Args:
        lock: held while statistics change, since the pipeline works on them in another thread.
    """

    def __init__(self, ledger: Ledger, topic: str, publisher: Publisher, metrics: Metrics, lock: asyncio.Lock) -> None:
        self._ledger, self._topic, self._publisher = ledger, topic, publisher
        self._metrics, self._lock = metrics, lock
        self.applied_since_snapshot = 0

    async def apply(self, records: Sequence[Any]) -> None:
        """Raises: StateError when this worker's statistics cannot be made right without starting again."""
        async with self._lock:
            for record in records:
                if record.key == SNAPSHOT_KEY or record.value is None:
                    continue
                try:
                    delta = decode_delta(record.value)
                except EventDecodeError as error:
                    # Not ours to repair, and counting on without it would part this worker from the others.
                    raise StateError(f"unreadable delta at offset {record.offset}: {error}") from error
                self.applied_since_snapshot += len(delta.offset)
                if delta.worker != self._ledger.worker:
                    known = not self._ledger.lacks(delta.source, delta.end - 1)
                    self._ledger.read(delta)
                    self._metrics.count_deltas("rejected" if known else "applied", 1, len(record.value))

    async def write_snapshot(self, read_from: int, incarnation: str) -> SnapshotPointer | None:
        """Publish everything counted so far.

        Args:
            read_from: this worker's position in the topic: what it has not read yet, the snapshot may lack.
        """
        async with self._lock:
            snapshot = self._ledger.snapshot()
            self.applied_since_snapshot = 0
        # Of 1,682 films that takes 150 ms, in which the event loop would take no event.
        packed = await asyncio.to_thread(lambda: zlib.compress(pack_snapshot(snapshot), 1))
        parts = [packed[at : at + SNAPSHOT_PART_BYTES] for at in range(0, len(packed), SNAPSHOT_PART_BYTES)]
        sent = await self._publisher.send_many(
            [
                Message(self._topic, SNAPSHOT_KEY, part, (("part", b"%d" % at), ("parts", b"%d" % len(parts))))
                for at, part in enumerate(parts)
            ]
        )
        log.info("statistics snapshot written", extra={"bytes": len(packed), "parts": len(parts)})
        return SnapshotPointer(read_from, sent[0].offset, len(parts), incarnation) if sent else None

    def restore(self, parts: Sequence[bytes]) -> None:
        """Raises: StateError."""
        try:
            data = zlib.decompress(b"".join(parts))
        except zlib.error as error:
            raise StateError(f"unreadable statistics snapshot: {error}") from error
        self._ledger.restore(data)
