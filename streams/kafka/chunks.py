"""What an agent is handed, a chunk of one partition, and the offset arithmetic over chunks: one number a partition.

Owns which offset may be committed. Knows nothing of brokers, of Faust or of what the records mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Consecutive records of one partition, handed over, processed and acknowledged as a whole.

    Two chunks are equal only when they are the same object: the same records read again are another chunk.
    """

    topic: str
    partition: int
    records: Sequence[Any]
    """aiokafka `ConsumerRecord`s in offset order, at least one. Compaction and markers leave gaps in the offsets."""
    generation: int
    """Which assignment (or seek) of this process it was read under; an acknowledgement of an older one is ignored."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def first_offset(self) -> int:
        return int(self.records[0].offset)

    @property
    def last_offset(self) -> int:
        return int(self.records[-1].offset)


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """Where one assigned partition stands; for the lag metric and the watchdog."""

    topic: str
    partition: int
    position: int | None
    """Offset of the next record to be fetched; None until the first fetch."""
    acknowledged: int | None
    """Offset that a commit would write now: every record below it is acknowledged."""
    committed: int | None
    """Offset this worker committed last, or started from."""
    end_offset: int | None
    """End of the partition as of the last fetch (of the stable part, where transactions are open)."""
    pending_chunks: int
    """Chunks handed out and not yet acknowledged."""
    oldest_pending_seconds: float
    """Age of the oldest of them; 0 without any."""
    stalled_seconds: float
    """For how long nothing was acknowledged although there were records to process; 0 when caught up."""

    @property
    def lag(self) -> int | None:
        """Records (gaps included) between what is acknowledged and the end; None until both are known."""
        if self.acknowledged is None or self.end_offset is None:
            return None
        return max(0, self.end_offset - self.acknowledged)


@dataclass(eq=False, slots=True)
class _Pending:
    chunk: Chunk
    start: int
    end: int
    handed_out_at: float
    done: bool = False


@dataclass(eq=False, slots=True)
class PartitionLedger:
    """Which chunks of one partition are out, and up to which offset everything is acknowledged.

    It counts fetch positions, not record offsets: a chunk covers `[start, end)` from the position before its records
    were taken to the position after, so what compaction or an aborted transaction removed is covered too and blocks no
    commit.

    `now` is monotonic seconds, given by the caller.
    """

    generation: int
    since: float
    committed: int | None = None
    _pending: deque[_Pending] = field(default_factory=deque)
    _progressed_at: float = 0.0

    def __post_init__(self) -> None:
        self._progressed_at = self.since

    @property
    def pending_chunks(self) -> int:
        return len(self._pending)

    def hand_out(self, chunk: Chunk, start: int, end: int, now: float) -> None:
        """Note a chunk as given to the agent; `start` and `end` are the fetch positions before and after it."""
        if self.committed is None:
            self.committed = start
        if not self._pending:
            self._progressed_at = now
        self._pending.append(_Pending(chunk, start, end, now))

    def acknowledge(self, chunk: Chunk, now: float) -> bool:
        """Mark a chunk as done. Returns: False when it is not (or no longer) one of this ledger's."""
        for entry in self._pending:
            if entry.chunk is chunk:
                entry.done = True
                break
        else:
            return False
        while self._pending and self._pending[0].done:
            self._pending.popleft()
            self._progressed_at = now
        return True

    def acknowledged(self, position: int | None) -> int | None:
        """The number to commit: the start of the oldest chunk that is out, or the fetch position when none is.

        With no chunk out the position is right also where it moved without records (a batch of markers only), fell back
        to the beginning (topic made anew), or was set by a seek.
        """
        return self._pending[0].start if self._pending else position

    def to_commit(self, position: int | None) -> int | None:
        """Returns: the number to commit, or None when it is the one committed already (or not known yet)."""
        number = self.acknowledged(position)
        if number is None:
            return None
        if self.committed is None:  # where we start from is what is committed, or what a restart would find again
            self.committed = number
        return None if number == self.committed else number

    def oldest_pending_seconds(self, now: float) -> float:
        return now - self._pending[0].handed_out_at if self._pending else 0.0

    def observe(self, position: int | None, end_offset: int | None, now: float) -> None:
        """Called at every commit tick, so that time without records does not count as a stall."""
        if self._caught_up(position, end_offset):
            self._progressed_at = now

    def stalled_seconds(self, position: int | None, end_offset: int | None, now: float) -> float:
        return 0.0 if self._caught_up(position, end_offset) else now - self._progressed_at

    def _caught_up(self, position: int | None, end_offset: int | None) -> bool:
        # A position that stays unknown is a partition that is never fetched: that counts as a stall too.
        return not self._pending and position is not None and (end_offset is None or position >= end_offset)
