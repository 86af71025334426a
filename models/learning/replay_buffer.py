"""The replay buffer: feedback records in Parquet segments on disk, bounded, whole after a kill at any point.

A segment is written beside its place, flushed, then renamed; what bears a segment's name is a whole segment. Each one
holds the Kafka offsets that everything up to it covers, so that whoever opens the buffer goes on exactly there. Knows
no Kafka and no torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.domain.errors import EventDecodeError, RecommenderError
from models.domain.feedback import Feedback, decode_feedback, encode_feedback

# Ten rounds of a thousand records of 20 KB take 200 MB: at a million events a day that is the last few hours whole, and
# several times that thinned.
CAPACITY_BYTES = 4 * 2**30
# A user beyond this share of a segment is heavy: what he did besides is thinned out first. A film lover who rates a
# hundred in one evening is a tenth of a segment of a thousand.
USER_SHARE = 0.1
# Segments of the older half are thinned before any is dropped.
_THINNED = 0.5
_SUFFIX, _DRAFT = ".parquet", ".draft"
_META = b"streamrec"
_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("event_time_ms", pa.int64()),
        ("with_candidates", pa.bool_()),
        ("record", pa.binary()),
    ]
)


class ReplayBufferError(RecommenderError):
    """The buffer's directory cannot be read or written."""


@dataclass(frozen=True)
class Segment:
    """One file: its number grows with time."""

    number: int
    rows: int
    bytes: int
    thinned: bool
    offsets: Mapping[int, int]
    """Partition -> offset after the last record that this segment or one before it covers."""


class ReplayBuffer:
    """Records in order of arrival. One process owns a directory.

    Args:
        capacity_bytes: of all segments together; the newest one stays, however large.
    Raises: ReplayBufferError.
    """

    def __init__(
        self, directory: Path, *, capacity_bytes: int = CAPACITY_BYTES, user_share: float = USER_SHARE
    ) -> None:
        self.directory, self.capacity_bytes, self.user_share = directory, capacity_bytes, user_share
        self.damaged: list[str] = []
        """Files that could not be read when the buffer was opened, set aside as `*.damaged`."""
        self._segments: list[Segment] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for draft in directory.glob(f"*{_DRAFT}"):
                draft.unlink()  # a kill came before its renaming
            for path in sorted(directory.glob(f"*{_SUFFIX}")):
                try:
                    self._segments.append(_describe(path))
                except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError):
                    # A rename survives a kill, but not every disk survives a power failure.
                    path.rename(path.with_suffix(".damaged"))
                    self.damaged.append(path.name)
        except OSError as error:
            raise ReplayBufferError(f"{directory}: {error}") from error

    @property
    def segments(self) -> Sequence[Segment]:
        return tuple(self._segments)

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self._segments)

    def __len__(self) -> int:
        """Records."""
        return sum(segment.rows for segment in self._segments)

    @property
    def offsets(self) -> dict[int, int]:
        """Partition -> next offset to read; empty where nothing was ever appended."""
        found: dict[int, int] = {}
        for segment in self._segments:
            for partition, offset in segment.offsets.items():
                found[partition] = max(offset, found.get(partition, 0))
        return found

    @property
    def last(self) -> int:
        """Number of the newest segment, 0 where there is none."""
        return self._segments[-1].number if self._segments else 0

    def append(self, records: Sequence[Feedback], offsets: Mapping[int, int]) -> int:
        """Keep records; they are on disk when this returns.

        Args:
            offsets: partition -> next offset after what is covered now: of these records and of others that need no
                keeping. Partitions that are not named stay where they were.
        Returns: the new segment's number.
        Raises: ReplayBufferError.
        """
        number = self.last + 1
        known = self.offsets
        after = {**known, **{p: max(offset, known.get(p, 0)) for p, offset in offsets.items()}}
        table = pa.table(
            {
                "event_id": [record.event_id for record in records],
                "user_id": [record.user_id for record in records],
                "event_time_ms": [record.event_time_ms for record in records],
                "with_candidates": [_useful(record) for record in records],
                "record": [encode_feedback(record) for record in records],
            },
            _SCHEMA,
        )
        self._segments.append(self._write(number, table, thinned=False, offsets=after))
        self._shrink()
        return number

    def after(self, number: int) -> Iterator[tuple[int, list[Feedback]]]:
        """(Number, records) of each segment newer than `number`, oldest first."""
        for segment in list(self._segments):
            if segment.number > number:
                yield segment.number, _decoded(self._read(segment, ["record"]).column("record"))

    def forget(self, user_id: str, until_ms: int) -> int:
        """Remove what the user did at or before that time. Returns: how many records.

        Segment by segment: killed in between, it is to be called again, and its message's offset is not covered yet.
        """
        removed = 0
        for at, segment in enumerate(self._segments):
            table = self._read(segment, ["user_id", "event_time_ms"])
            own = np.array(table.column("user_id").to_pylist(), object) == user_id
            gone = own & (table.column("event_time_ms").to_numpy() <= until_ms)
            if gone.any():
                removed += int(gone.sum())
                self._segments[at] = self._rewrite(segment, ~gone, thinned=segment.thinned)
        return removed

    # parts ------------------------------------------------------------------------------------------------------------

    def _shrink(self) -> None:
        """Oldest first: the older half loses its least useful records, then the oldest segments go."""
        while self.bytes > self.capacity_bytes and len(self._segments) > 1:
            older = self._segments[: int(_THINNED * len(self._segments))]
            at = next((at for at, segment in enumerate(older) if not segment.thinned), None)
            if at is None:
                self._path(self._segments[0].number).unlink()
                del self._segments[0]
            else:
                segment = self._segments[at]
                table = self._read(segment, ["user_id", "with_candidates"])
                kept = useful(
                    table.column("user_id").to_pylist(),
                    table.column("with_candidates").to_numpy(zero_copy_only=False),
                    self.user_share,
                )
                self._segments[at] = self._rewrite(segment, kept, thinned=True)

    def _rewrite(self, segment: Segment, kept: npt.NDArray[np.bool_], *, thinned: bool) -> Segment:
        table = self._read(segment, None).filter(pa.array(kept))
        return self._write(segment.number, table, thinned=thinned, offsets=segment.offsets)

    def _read(self, segment: Segment, columns: list[str] | None) -> Any:
        try:
            # Not mapped into memory: a thinned segment is renamed over the file that was read.
            return pq.read_table(self._path(segment.number), columns=columns, memory_map=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise ReplayBufferError(f"{self._path(segment.number)}: {error}") from error

    def _write(self, number: int, table: Any, *, thinned: bool, offsets: Mapping[int, int]) -> Segment:
        path = self._path(number)
        draft = path.with_suffix(_DRAFT)
        meta = json.dumps({"thinned": thinned, "offsets": {str(p): offset for p, offset in offsets.items()}})
        try:
            with draft.open("wb") as file:
                # The quickest compression: a record is nearly all numbers in half precision.
                pq.write_table(
                    table.replace_schema_metadata({_META: meta.encode()}),
                    file,
                    compression="lz4",
                    use_dictionary=["user_id"],
                    write_statistics=False,
                )
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            folder = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(folder)  # the renaming itself
            finally:
                os.close(folder)
            return Segment(number, table.num_rows, path.stat().st_size, thinned, dict(offsets))
        except OSError as error:
            raise ReplayBufferError(f"{path}: {error}") from error

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:012d}{_SUFFIX}"


def useful(users: Sequence[str], with_candidates: npt.NDArray[np.bool_], user_share: float) -> npt.NDArray[np.bool_]:
    """bool[n], what stays of a segment that is thinned: lists to learn a ranker from, of no user more than his share.

    A heavy user's newest ones stay.
    """
    limit = max(1, int(user_share * len(users)))
    kept, count = np.zeros(len(users), np.bool_), Counter[str]()
    for at in range(len(users) - 1, -1, -1):
        if with_candidates[at] and count[users[at]] < limit:
            count[users[at]] += 1
            kept[at] = True
    return kept


def _useful(record: Feedback) -> bool:
    return record.candidates is not None and record.candidates.chosen >= 0


def _describe(path: Path) -> Segment:
    file = pq.read_metadata(path)
    meta = json.loads(file.metadata[_META])
    offsets = {int(partition): int(offset) for partition, offset in meta["offsets"].items()}
    return Segment(int(path.stem), file.num_rows, path.stat().st_size, bool(meta["thinned"]), offsets)


def _decoded(column: Any) -> list[Feedback]:
    """Records that this release can read: one of another release is left out, since no offset waits for it."""
    found: list[Feedback] = []
    for data in column.to_pylist():
        try:
            record = decode_feedback(data)
        except EventDecodeError:
            continue
        if isinstance(record, Feedback):
            found.append(record)
    return found
