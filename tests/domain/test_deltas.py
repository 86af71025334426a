"""Workers that share statistics through one log: whatever happens, each of them counts each record once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.catalogue import Catalogue
from models.domain.deltas import LEARNERS_KEPT, Delta, Ledger, decode_delta, encode_delta, pack_snapshot
from models.domain.errors import EventDecodeError, StateError
from models.domain.features import BASE_COUNT
from models.domain.ranking import FIRST_SQUARES, AdaptiveWeights
from models.domain.statistics import COUNTS, Statistics
from tests import strategies
from tests.domain.helpers import START_MS, Player, click, dump_bytes, make_pipeline, records, touches_of
from tests.domain.test_statistics import pairs_of

SOURCES = ("events@1/0", "events@1/1")
HOURS = [c for c, (_, clock, *_) in enumerate(COUNTS) if clock == "hours"]
Record = tuple[str, int, float, bool, bool, tuple[str, ...]] | None


def source_log(seed: int, length: int) -> list[Record]:
    """Item, time, value, first, strong, recent items; None for a record that touches nothing."""
    draw = random.Random(seed)
    items = [f"i{n}" for n in range(25)]
    return [
        None
        if draw.random() < 0.2
        else (
            draw.choice(items),
            START_MS + draw.randrange(200_000_000),
            draw.choice((0.2, 0.6, 1.0)),
            draw.random() < 0.7,
            draw.random() < 0.3,
            tuple(draw.sample(items, draw.randrange(6))),
        )
        for _ in range(length)
    ]


def touch_rows(catalogue: Catalogue, played: Sequence[Record]) -> list[Any]:
    rows = []
    for record in played:
        if record is not None:
            item, stamp, value, first, strong, recent = record
            at = catalogue.intern(item)
            catalogue.touch(at)
            rows.append((at, stamp, value, first, strong, catalogue.intern_many(recent).tolist()))
    return rows


class Worker:
    """Statistics, a ledger, and a position in every log it reads."""

    names = 0

    def __init__(self, shared: list[bytes], snapshot: tuple[bytes, int] | None = None) -> None:
        Worker.names += 1
        self.shared, self.read_up_to = shared, 0
        self.catalogue = Catalogue(9)
        # Every worker numbers the items in its own way.
        self.catalogue.intern_many(random.Random(Worker.names).sample([f"i{n}" for n in range(25)], 10))
        self.statistics = Statistics(4)
        self.ledger = Ledger(self.statistics, self.catalogue, None, f"worker-{Worker.names}")
        self.position: dict[str, int] = {}
        if snapshot is not None:
            self.ledger.restore(snapshot[0])
            self.read_up_to = snapshot[1]

    def read(self, deltas: int = 10**9) -> None:
        for data in self.shared[self.read_up_to : self.read_up_to + deltas]:
            self.ledger.read(decode_delta(data))
            self.read_up_to += 1

    def play(self, source: str, log: Sequence[Record], count: int) -> int:
        """One chunk. Returns: the offset to commit."""
        start = self.position[source]
        end = min(start + count, len(log))
        counted = [at for at in range(start, end) if log[at] is not None and self.ledger.lacks(source, at)]
        touches = touches_of(touch_rows(self.catalogue, [log[at] for at in counted]))
        self.statistics.reserve(len(self.catalogue), len(counted))
        self.statistics.update(touches)
        delta = self.ledger.write(source, end, [touches], counted, [], [])
        if delta is not None:
            self.shared.append(encode_delta(delta))
        self.position[source] = end
        return end

    def snapshot(self) -> tuple[bytes, int]:
        return pack_snapshot(self.ledger.snapshot()), self.read_up_to


def counts_of(statistics: Statistics, catalogue: Catalogue) -> dict[str, Any]:
    """What does not depend on the order of touches, by item id."""
    arrays, ids = statistics.arrays, catalogue.ids
    used = [at for at in range(min(len(ids), statistics.capacity)) if arrays.touches[at] > 0]
    return {
        "touches": {ids[at]: arrays.touches[at] for at in used},
        "stamps": {ids[at]: (arrays.touched_ms[at], arrays.born_ms[at]) for at in used},
        "pairs": {ids[a]: {ids[b] for b in row} for a, row in pairs_of(arrays.pairs).items()},
        "clock": arrays.clock[0],
        "floats": {ids[at]: [*arrays.log_count[at, HOURS].tolist(), arrays.value_sum[at]] for at in used},
        "totals": {ids[at]: float(arrays.pairs.total[at]) for at in used},
    }


def assert_same_counts(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in ("touches", "stamps", "pairs", "clock"):
        assert got[name] == wanted[name]
    for item, floats in wanted["floats"].items():
        assert got["floats"][item] == pytest.approx(floats, abs=1e-9)
    assert got["totals"] == pytest.approx(wanted["totals"], rel=1e-5)


def reference(logs: dict[str, list[Record]]) -> dict[str, Any]:
    catalogue, statistics = Catalogue(9), Statistics()
    for log in logs.values():
        statistics.update(touches_of(touch_rows(catalogue, log)))
    return counts_of(statistics, catalogue)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_every_live_worker_counts_every_record_once_whatever_happens(seed: int) -> None:
    """Chunks of any size, reading at any time, owners that change, zombies, crashes, starts from snapshots."""
    draw = random.Random(seed)
    logs = {source: source_log(seed + n, draw.randrange(20, 60)) for n, source in enumerate(SOURCES)}
    shared: list[bytes] = []
    workers = [Worker(shared) for _ in range(3)]
    committed, owner = dict.fromkeys(SOURCES, 0), {}

    def take_over(source: str, worker: Worker) -> None:
        # An owner reads all deltas before it takes its first record; whoever was it before may go on as a zombie.
        worker.read()
        worker.position[source] = committed[source]
        owner[source] = worker

    for source in SOURCES:
        take_over(source, draw.choice(workers))
    snapshots: list[tuple[bytes, int]] = []
    for _ in range(draw.randrange(20, 80)):
        worker, source = draw.choice(workers), draw.choice(SOURCES)
        match draw.choice(("play",) * 6 + ("read",) * 4 + ("take_over", "crash", "snapshot")):
            case "play" if source in worker.position:
                end = worker.play(source, logs[source], draw.randrange(1, 9))
                if owner[source] is worker:
                    committed[source] = max(committed[source], end)
            case "read":
                worker.read(draw.randrange(1, 6))
            case "take_over":
                take_over(source, worker)
            case "crash":
                at = workers.index(worker)
                workers[at] = Worker(shared, draw.choice([None, *snapshots]))
                for lost in SOURCES:
                    if owner[lost] is worker:
                        take_over(lost, draw.choice(workers))
            case "snapshot":
                snapshots.append(worker.snapshot())
            case _:
                pass
    for source in SOURCES:
        while owner[source].position[source] < len(logs[source]):
            owner[source].play(source, logs[source], 7)
    late = [Worker(shared), *(Worker(shared, snapshot) for snapshot in snapshots)]
    wanted = reference(logs)
    for worker in [*workers, *late]:
        worker.read()
        assert_same_counts(counts_of(worker.statistics, worker.catalogue), wanted)


def owner_of(shared: list[bytes], position: int = 0) -> Worker:
    worker = Worker(shared)
    worker.read()
    worker.position[SOURCES[0]] = position
    return worker


def test_what_an_owner_wrote_before_it_saw_a_zombies_delta_is_counted_by_all() -> None:
    """The zombie's delta stands first and reaches into the owner's, who has written on before reading it."""
    log = source_log(1, 30)
    shared: list[bytes] = []
    zombie = owner_of(shared)
    zombie.play(SOURCES[0], log, 5)
    owner = owner_of(shared, 5)
    zombie.play(SOURCES[0], log, 5)
    owner.play(SOURCES[0], log, 10)
    owner.play(SOURCES[0], log, 5)
    heir = owner_of(shared, 20)
    heir.play(SOURCES[0], log, 10)
    wanted = reference({SOURCES[0]: log})
    for worker in (zombie, owner, heir, Worker(shared)):
        worker.read()
        assert_same_counts(counts_of(worker.statistics, worker.catalogue), wanted)


def test_a_worker_from_a_snapshot_goes_on_as_if_it_had_read_everything() -> None:
    log = source_log(2, 40)
    shared: list[bytes] = []
    owner = owner_of(shared)
    for _ in range(4):
        owner.play(SOURCES[0], log, 5)
    owner.read(2)
    snapshot = owner.snapshot()
    for _ in range(4):
        owner.play(SOURCES[0], log, 5)
    restored, full = Worker(shared, snapshot), Worker(shared)
    for worker in (restored, full):
        worker.read()
        assert_same_counts(counts_of(worker.statistics, worker.catalogue), reference({SOURCES[0]: log}))
    assert restored.ledger.applied == full.ledger.applied


def test_a_log_that_retention_has_cut_is_counted_from_where_it_begins() -> None:
    log = source_log(3, 30)
    shared: list[bytes] = []
    owner = owner_of(shared)
    for _ in range(6):
        owner.play(SOURCES[0], log, 5)
    cut = decode_delta(shared[2]).start
    late = Worker(shared[2:])
    late.read()
    assert_same_counts(counts_of(late.statistics, late.catalogue), reference({SOURCES[0]: log[cut:]}))
    assert not late.ledger.lacks(SOURCES[0], cut)


@settings(max_examples=15, deadline=None)
@given(strategies.event_logs(max_size=60), st.integers(1, 20))
def test_the_deltas_of_a_pipeline_rebuild_its_statistics_and_weights(
    log: list[strategies.Incoming], chunk: int
) -> None:
    pipeline = make_pipeline()
    assert pipeline.weights is not None
    ledger = Ledger(pipeline.statistics, pipeline.catalogue, pipeline.weights, "a")
    reader = make_pipeline(Catalogue(9))
    assert reader.weights is not None
    other = Ledger(reader.statistics, reader.catalogue, reader.weights, "b")
    player = Player(pipeline)
    for start in range(0, len(log), chunk):
        part = [one._replace(counted=ledger.lacks(one.log, one.offset)) for one in log[start : start + chunk]]
        player.play(part)
        result = player.results[-1]
        assert result.weights is not None
        assert result.squares is not None
        offsets = [part[at].offset for at in result.touch_positions]
        delta = ledger.write(
            part[0].log, part[-1].offset + 1, result.touches, offsets, result.weights.tolist(), result.squares.tolist()
        )
        if delta is not None:
            assert decode_delta(encode_delta(delta)) == delta
            other.read(delta)
            ledger.read(delta)
    assert_same_counts(
        counts_of(reader.statistics, reader.catalogue), counts_of(pipeline.statistics, pipeline.catalogue)
    )
    np.testing.assert_allclose(reader.weights.weights, pipeline.weights.weights, atol=1e-9)
    np.testing.assert_allclose(reader.weights.squares, pipeline.weights.squares, atol=1e-9)
    touched = pipeline.statistics.arrays.touches[: len(pipeline.catalogue)] > 0
    for at in np.flatnonzero(touched).tolist():
        assert reader.catalogue.available[reader.catalogue.index[pipeline.catalogue.ids[at]]]


def test_a_snapshot_restores_statistics_and_weights_to_the_bit() -> None:
    pipeline = make_pipeline()
    Player(pipeline).play(records([click(f"u{n % 7}", f"i{n * n % 31}", n) for n in range(200)]))
    ledger = Ledger(pipeline.statistics, pipeline.catalogue, pipeline.weights, "a")
    ledger.applied["s"] = 200
    again = make_pipeline(Catalogue(9))
    restored = Ledger(again.statistics, again.catalogue, again.weights, "b")
    restored.restore(pack_snapshot(ledger.snapshot()))
    assert dump_bytes(again.statistics) == dump_bytes(pipeline.statistics)
    assert again.weights is not None
    assert pipeline.weights is not None
    np.testing.assert_array_equal(again.weights.weights, pipeline.weights.weights)
    np.testing.assert_array_equal(again.weights.squares, pipeline.weights.squares)
    assert not restored.lacks("s", 199)
    assert restored.lacks("s", 200)


def test_a_chunk_that_touches_nothing_writes_nothing_and_the_next_delta_covers_it() -> None:
    shared: list[bytes] = []
    worker = owner_of(shared)
    log: list[Record] = [None, None, ("a", START_MS, 1.0, True, False, ()), None]
    worker.play(SOURCES[0], log, 2)
    assert shared == []
    worker.play(SOURCES[0], log, 2)
    delta = decode_delta(shared[0])
    assert (delta.start, delta.end, delta.offset, delta.items) == (0, 4, [2], ["a"])


def test_a_record_delivered_again_after_its_delta_is_not_counted() -> None:
    shared: list[bytes] = []
    worker = owner_of(shared)
    log = source_log(4, 10)
    worker.play(SOURCES[0], log, 10)
    before, written = dump_bytes(worker.statistics), len(shared)
    worker.position[SOURCES[0]] = 0
    worker.play(SOURCES[0], log, 10)
    assert dump_bytes(worker.statistics) == before
    assert len(shared) == written


def delta(**changes: Any) -> Delta:
    fields: dict[str, Any] = {
        "source": "s",
        "start": 0,
        "end": 1,
        "worker": "w",
        "items": ["a"],
        "offset": [0],
        "item": [0],
        "event_time_ms": [START_MS],
        "value": [1.0],
        "flags": [1],
        "recent": [[]],
    }
    return Delta(**(fields | changes))


def test_a_delta_is_written_with_the_names_of_the_contract() -> None:
    fields = msgspec.json.decode(encode_delta(delta()))
    assert (fields["from"], fields["to"], fields["schema_version"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "invalid_delta"),
        (b"{}", "invalid_delta"),
        (b"\xff", "invalid_delta"),
        (encode_delta(delta(schema_version=99)), "undeclared_version"),
    ],
)
def test_bytes_that_are_no_delta_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(EventDecodeError) as caught:
        decode_delta(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", msgspec.msgpack.encode({"version": 1})])
def test_bytes_that_are_no_snapshot_are_refused(data: bytes) -> None:
    with pytest.raises(StateError, match="unreadable"):
        Worker([]).ledger.restore(data)


def test_a_snapshot_of_another_version_is_refused() -> None:
    fields = msgspec.msgpack.decode(pack_snapshot(Worker([]).ledger.snapshot()))
    with pytest.raises(StateError, match="version 99"):
        Worker([]).ledger.restore(msgspec.msgpack.encode(fields | {"version": 99}))


def test_movements_of_the_weights_add_up() -> None:
    weights = AdaptiveWeights(np.zeros(BASE_COUNT))
    ledger = Ledger(Statistics(), Catalogue(9), weights, "me")
    one = [1.0] * BASE_COUNT
    ledger.read(delta(weights=one, squares=one))
    ledger.read(delta(start=1, end=2, offset=[1], weights=one, squares=one))
    ledger.read(delta(start=1, end=2, offset=[1], weights=one, squares=one))
    assert weights.weights.tolist() == [2.0] * BASE_COUNT
    assert weights.squares.tolist() == [FIRST_SQUARES + 2.0] * BASE_COUNT
    assert ledger.applied == {"s": 2}


def test_what_another_version_learned_is_kept_for_it_and_added_to_no_other() -> None:
    weights, one = AdaptiveWeights(np.zeros(BASE_COUNT)), [1.0] * BASE_COUNT
    ledger = Ledger(Statistics(), Catalogue(9), weights, "me", "m1")
    ledger.read(delta(weights=one, squares=one, model="m2"))
    ledger.read(delta(start=1, end=2, offset=[1], weights=one, squares=one, model="m1"))
    # From a release that knew one version only.
    ledger.read(delta(start=2, end=3, offset=[2], weights=one, squares=one))
    assert weights.weights.tolist() == [2.0] * BASE_COUNT

    later = AdaptiveWeights(np.full(BASE_COUNT, 0.5))
    ledger.use("m2", later)
    assert later.weights.tolist() == [1.5] * BASE_COUNT, "a worker that comes late to a version has what others learned"
    ledger.read(delta(start=3, end=4, offset=[3], weights=one, squares=one, model="m1"))
    assert later.weights.tolist() == [1.5] * BASE_COUNT
    assert weights.weights.tolist() == [2.0] * BASE_COUNT
    ledger.use("learned", None)
    back = AdaptiveWeights(np.zeros(BASE_COUNT))
    ledger.use("m1", back)
    assert back.weights.tolist() == [3.0] * BASE_COUNT, "a roll-back finds all that was learned with the version"
    assert back.squares.tolist() == [FIRST_SQUARES + 3.0] * BASE_COUNT


def test_a_snapshot_says_whose_weights_it_holds() -> None:
    one = [1.0] * BASE_COUNT
    ledger = Ledger(Statistics(), Catalogue(9), AdaptiveWeights(np.zeros(BASE_COUNT)), "a", "m1")
    ledger.read(delta(weights=one, squares=one, model="m1"))
    ledger.read(delta(start=1, end=2, offset=[1], weights=one, squares=one, model="m2"))
    ledger.read(delta(start=2, end=3, offset=[2], weights=one, squares=one, model="m2"))
    snapshot = pack_snapshot(ledger.snapshot())
    for version, learned in (("m1", 1.0), ("m2", 2.0), ("m3", 0.0)):
        weights = AdaptiveWeights(np.full(BASE_COUNT, 0.0))
        restored = Ledger(Statistics(), Catalogue(9), weights, "b", version)
        restored.restore(snapshot)
        assert weights.weights.tolist() == [learned] * BASE_COUNT, version
    fields = msgspec.msgpack.decode(snapshot)
    former = msgspec.msgpack.encode({name: fields[name] for name in fields if name not in ("model", "learned")})
    weights = AdaptiveWeights(np.zeros(BASE_COUNT))
    Ledger(Statistics(), Catalogue(9), weights, "b", "m9").restore(former)
    assert weights.weights.tolist() == [1.0] * BASE_COUNT, "a former release served one version, which is meant"


def test_the_learning_of_few_versions_is_remembered() -> None:
    one = [1.0] * BASE_COUNT
    ledger = Ledger(Statistics(), Catalogue(9), None, "me", "served")
    for number in range(LEARNERS_KEPT + 1):
        ledger.read(delta(start=number, end=number + 1, offset=[number], weights=one, squares=one, model=f"m{number}"))
    for version, learned in (("m0", 0.0), (f"m{LEARNERS_KEPT}", 1.0)):
        weights = AdaptiveWeights(np.zeros(BASE_COUNT))
        ledger.use(version, weights)
        assert weights.weights.tolist() == [learned] * BASE_COUNT
