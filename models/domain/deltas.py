"""How workers share item statistics: deltas over contiguous offsets, and the ledger that applies each exactly once.

A delta says what the records [from, to) of one log partition added, touch by touch with its offset. A reader counts of
each delta what lies above its own high water for that partition, so that deltas may overlap and nothing has to be sent
again. Counts are the same for every model; what a log-linear ranker learned belongs to the version that learned it, and
is kept by version, since workers change versions one after the other. Pure: reading and writing the topic is the
caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from models.domain.catalogue import Catalogue
from models.domain.circumstances import NOT_TOLD
from models.domain.errors import EventDecodeError, StateError
from models.domain.ranking import AdaptiveWeights
from models.domain.statistics import PAIR_WINDOW, Statistics, Touches, pack_dump, unpack_dump

DELTA_VERSION = 1
SNAPSHOT_VERSION = 1
# Versions whose learning is remembered: the served one, one that other workers serve already, one to roll back to, and
# room for a trainer that promotes faster than a worker switches. Each takes a few hundred bytes.
LEARNERS_KEPT = 8


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What one micro-batch added. Touches refer to `items` by place; `recent` is what the user had before each."""

    source: str
    """Log partition: topic, incarnation, partition."""
    start: int = msgspec.field(name="from")
    end: int = msgspec.field(name="to")
    worker: str
    items: list[str]
    offset: list[int]
    item: list[int]
    event_time_ms: list[int]
    value: list[float]
    flags: list[int]
    """1 = first touch, 2 = strong."""
    recent: list[list[int]]
    tag: list[int] = []
    chosen: list[int] = []
    """Of each touch's user; empty from a former release, which knew no tags."""
    gap_ms: list[int] = []
    """Since the event before of each touch's user (`Touches.gap_ms`); empty from a former release."""
    recent_gap_ms: list[list[int]] = []
    """Since the latest touch of each of `recent`; empty from a former release."""
    weights: list[float] = []
    squares: list[float] = []
    """How far the adaptive weights and their squared gradients moved."""
    model: str = ""
    """Version whose weights these are; empty from a release that knew one version only."""
    schema_version: int = DELTA_VERSION


_decoder = msgspec.json.Decoder(Delta)
_encoder = msgspec.json.Encoder()


def encode_delta(delta: Delta) -> bytes:
    return _encoder.encode(delta)


def decode_delta(data: bytes) -> Delta:
    """Raises: EventDecodeError."""
    try:
        delta = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EventDecodeError("invalid_delta", str(error)[:300]) from error
    if delta.schema_version != DELTA_VERSION:
        raise EventDecodeError("undeclared_version", f"delta of version {delta.schema_version}")
    return delta


def pack_snapshot(snapshot: dict[str, Any]) -> bytes:
    """The bytes of `Ledger.snapshot`, which `Ledger.restore` reads. Any thread may make them: they are of a copy."""
    return msgspec.msgpack.encode({**snapshot, "statistics": pack_dump(snapshot["statistics"])})


class Ledger:
    """Applies others' deltas to one worker's statistics; own touches are there before their delta is sent.

    Args:
        weights: the served model's, None where its ranker has weights of its own.
        worker: a name no other worker ever has, to tell own deltas.
        model: version that is served.
    """

    def __init__(
        self,
        statistics: Statistics,
        catalogue: Catalogue,
        weights: AdaptiveWeights | None,
        worker: str,
        model: str = "",
    ) -> None:
        self.statistics, self.catalogue, self.weights, self.worker = statistics, catalogue, weights, worker
        self.model = model
        self.applied: dict[str, int] = {}
        """Source -> offset below which this worker's statistics hold everything."""
        self._learned: dict[str, AdaptiveWeights] = {}
        """Version -> all that was ever learned with it, by whichever worker; the latest used last."""

    def use(self, model: str, weights: AdaptiveWeights | None) -> None:
        """Serve another version from now on. Its weights, fresh from the bundle, take over what others learned with it
        before this worker came to it, and what was learned before a roll-back returns to it."""
        self.model, self.weights = model, weights
        learned = self._learned.get(model)
        if weights is not None and learned is not None and len(learned.weights) == len(weights.weights):
            weights.add(learned.weights, learned.squares)

    def lacks(self, source: str, offset: int) -> bool:
        """Whether the statistics still lack the record."""
        return offset >= self.applied.get(source, 0)

    def write(
        self,
        source: str,
        end: int,
        touches: Sequence[Touches],
        offsets: Sequence[int],
        weights: Sequence[float],
        squares: Sequence[float],
    ) -> Delta | None:
        """The delta of touches that just entered the statistics; None when there are none.

        Args:
            end: offset after the last record of the batch.
            offsets: of each touch.
        """
        start = self.applied.get(source, 0)
        if end <= start:
            return None
        if not offsets:
            return None  # the next delta covers these offsets: its `from` stays where the last one ended
        self.applied[source] = end
        self._remember(self.model, weights, squares)
        places: dict[int, int] = {}

        def place(index: int) -> int:
            return places.setdefault(index, len(places))

        item = [place(i) for t in touches for i in t.item.tolist()]
        recent = [[place(i) for i in row if i >= 0] for t in touches for row in t.recent.tolist()]
        gaps = [row for t in touches for row in t.recent_gap_ms.tolist()]
        ids = self.catalogue.ids
        return Delta(
            source=source,
            start=start,
            end=end,
            worker=self.worker,
            items=[ids[index] for index in places],
            offset=list(offsets),
            item=item,
            event_time_ms=[ms for t in touches for ms in t.event_time_ms.tolist()],
            value=[v for t in touches for v in t.value.tolist()],
            flags=[f + 2 * s for t in touches for f, s in zip(t.first.tolist(), t.strong.tolist(), strict=True)],
            recent=recent,
            tag=[tag for t in touches for tag in t.tag.tolist()],
            chosen=[chosen for t in touches for chosen in t.chosen.tolist()],
            gap_ms=[gap_ms for t in touches for gap_ms in t.gap_ms.tolist()],
            recent_gap_ms=[row[: len(kept)] for row, kept in zip(gaps, recent, strict=True)],
            weights=list(weights),
            squares=list(squares),
            model=self.model,
        )

    def read(self, delta: Delta) -> None:
        """Take the next delta of the log: count what of it this worker lacks.

        Deltas of one source may overlap where ownership changed (a zombie writes on, an heir plays the same records):
        each record is counted from the first delta that holds it, since touches carry their offsets.
        """
        if delta.worker != self.worker:
            self._apply(delta)

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything a new worker needs instead of the deltas so far; `pack_snapshot` makes it bytes."""
        dumped = self.statistics.dump()
        return {
            "version": SNAPSHOT_VERSION,
            "ids": self.catalogue.ids[: dumped["items"]],
            "applied": dict(self.applied),
            "weights": None if self.weights is None else self.weights.weights.tolist(),
            "squares": None if self.weights is None else self.weights.squares.tolist(),
            "model": self.model,
            "learned": {
                model: [learned.weights.tolist(), learned.squares.tolist()] for model, learned in self._learned.items()
            },
            "statistics": dumped,
        }

    def restore(self, data: bytes) -> None:
        """Start from a snapshot. Raises: StateError."""
        try:
            snapshot: dict[str, Any] = msgspec.msgpack.decode(data)
            version, ids = snapshot["version"], snapshot["ids"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise StateError(f"unreadable statistics snapshot: {error}") from error
        if version != SNAPSHOT_VERSION:
            raise StateError(f"statistics snapshot of version {version}; this release reads {SNAPSHOT_VERSION}")
        index = self.catalogue.intern_many(ids)
        dumped = unpack_dump(snapshot["statistics"])
        self.statistics.arrays = Statistics.load(dumped, index, len(self.catalogue)).arrays
        for at in index[np.asarray(dumped["touches"]) > 0].tolist():
            self.catalogue.touch(at)
        for model, (weights, squares) in snapshot.get("learned", {}).items():
            self._remember(model, weights, squares)
        # A former release's snapshot does not say whose weights it holds: it knew one version, the one served.
        mine = snapshot.get("model", self.model) == self.model
        if self.weights is not None and mine and snapshot["weights"] is not None:
            self.weights.weights[:], self.weights.squares[:] = snapshot["weights"], snapshot["squares"]
        elif self.weights is not None:
            self.use(self.model, self.weights)
        self.applied = dict(snapshot["applied"])

    def _apply(self, delta: Delta) -> None:
        have = self.applied.get(delta.source, 0)
        if delta.end <= have:
            return
        self.applied[delta.source] = delta.end
        index = self.catalogue.intern_many(delta.items)
        kept = [at for at, offset in enumerate(delta.offset) if offset >= have]
        if kept:
            recent = np.full((len(kept), PAIR_WINDOW), -1, np.int32)
            recent_gap_ms = np.full((len(kept), PAIR_WINDOW), NOT_TOLD, np.int64)
            near = len(delta.recent_gap_ms) == len(delta.offset)
            for row, at in enumerate(kept):
                places = delta.recent[at][:PAIR_WINDOW]
                recent[row, : len(places)] = index[places]
                if near and len(delta.recent_gap_ms[at]) == len(delta.recent[at]):
                    recent_gap_ms[row, : len(places)] = delta.recent_gap_ms[at][:PAIR_WINDOW]
            item = index[[delta.item[at] for at in kept]]
            for at in item.tolist():
                self.catalogue.touch(at)
            flags = np.array([delta.flags[at] for at in kept])
            tagged = len(delta.tag) == len(delta.chosen) == len(delta.offset)
            told = tagged and len(delta.gap_ms) == len(delta.offset)
            self.statistics.reserve(len(self.catalogue), len(kept))
            self.statistics.update(
                Touches(
                    item=item,
                    event_time_ms=np.array([delta.event_time_ms[at] for at in kept], np.int64),
                    value=np.array([delta.value[at] for at in kept], np.float32),
                    first=(flags & 1) > 0,
                    strong=(flags & 2) > 0,
                    recent=recent,
                    recent_gap_ms=recent_gap_ms,
                    tag=np.array([delta.tag[at] if tagged else 0 for at in kept], np.int32),
                    chosen=np.array([delta.chosen[at] if tagged else 0 for at in kept], np.int32),
                    gap_ms=np.array([delta.gap_ms[at] if told else NOT_TOLD for at in kept], np.int64),
                )
            )
        if len(kept) == len(delta.offset) and delta.weights:
            model = delta.model or self.model
            self._remember(model, delta.weights, delta.squares)
            if self.weights is not None and model == self.model and len(delta.weights) == len(self.weights.weights):
                self.weights.add(delta.weights, delta.squares)

    def _remember(self, model: str, weights: Sequence[float], squares: Sequence[float]) -> None:
        if not len(weights):
            return
        learned = self._learned.pop(model, None)
        if learned is None or len(learned.weights) != len(weights):
            learned = AdaptiveWeights(np.zeros(len(weights)))
            learned.squares = np.zeros(len(squares))
        learned.add(weights, squares)
        self._learned[model] = learned
        while len(self._learned) > LEARNERS_KEPT:
            del self._learned[next(iter(self._learned))]
