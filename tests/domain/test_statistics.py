"""Item statistics against plain references: decayed counts, top lists, pairs, growth, dump and load."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.candidates import (
    CANDIDATES,
    LEARNED_QUERY_WINDOW,
    SOURCE_COUNT,
    Query,
    new_lists,
    new_scratch,
    turns_of,
)
from models.domain.errors import StateError
from models.domain.features import BASE_COUNT, describe_list
from models.domain.habits import people_of
from models.domain.statistics import (
    COUNTS,
    FOLLOW_WINDOW,
    MAX_NEIGHBOURS,
    MS_PER_HOUR,
    PAIR_WINDOW,
    TOP_LIST_LENGTH,
    TOP_LISTS,
    Rows,
    Statistics,
    pack_dump,
    unpack_dump,
)
from tests.domain.helpers import START_MS, dump_bytes, touches_of

Row = tuple[int, int, float, bool, bool, Sequence[int]]


@st.composite
def touch_rows(draw: st.DrawFn, items: int = 25, max_size: int = 120) -> list[Row]:
    random = Random(draw(st.integers(0, 2**32)))
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, max_size))):
        recent = random.sample(range(items), random.randrange(0, min(items, PAIR_WINDOW) + 1))
        stamp = START_MS + random.randrange(-10_000_000, 500_000_000)
        rows.append(
            (random.randrange(items), stamp, random.random(), random.random() < 0.7, random.random() < 0.4, recent)
        )
    return rows


def random_rows(count: int, items: int, seed: int, *, first: float = 0.7) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        (
            int(rng.integers(items)),
            START_MS + n * 1_000,
            float(rng.random()),
            bool(rng.random() < first),
            bool(rng.random() < 0.4),
            rng.choice(items, size=min(items, PAIR_WINDOW), replace=False).tolist(),
        )
        for n in range(count)
    ]


def counted(rows: Sequence[Row], capacity: int = 64) -> Statistics:
    statistics = Statistics(capacity)
    statistics.update(touches_of(rows))
    return statistics


def pairs_of(rows: Rows, what: str = "weight") -> dict[int, dict[int, float]]:
    """By item and neighbour.

    Args:
        what: `near` or `weight`.
    """
    found = {}
    for item in np.flatnonzero(rows.size).tolist():
        at = slice(int(rows.start[item]), int(rows.start[item] + rows.size[item]))
        found[item] = dict(zip(rows.neighbour[at].tolist(), getattr(rows, what)[at].tolist(), strict=True))
        assert len(found[item]) == rows.size[item]
    return found


def described(statistics: Statistics, recent: Sequence[int], items: int) -> tuple[bytes, ...]:
    """Candidates and features of one list."""
    lists, row = new_lists(1, BASE_COUNT), np.full((1, LEARNED_QUERY_WINDOW), -1, np.int32)
    row[0, : len(recent)] = recent[:LEARNED_QUERY_WINDOW]
    query = Query(
        user=np.ones((1, 3), np.float32),
        now_ms=np.array([START_MS + 600_000_000]),
        last_ms=np.array([-1]),
        recent=row,
        recent_ms=np.full((1, LEARNED_QUERY_WINDOW), START_MS),
        liked=np.zeros((1, LEARNED_QUERY_WINDOW), np.bool_),
        person=np.zeros(1, np.int64),
        target=np.array([-1], np.int32),
        deep=np.ones(1, np.bool_),
        history=np.array([3.0], np.float32),
        chosen=np.array([3.0], np.float32),
        encoder_top=np.full((1, 4), -1, np.int32),
        newest=np.empty(0, np.int32),
        excluded_from=np.zeros(1, np.int64),
        excluded_to=np.zeros(1, np.int64),
        excluded=np.zeros(0, np.int32),
    )
    scratch = new_scratch(statistics.capacity)
    vectors = np.ones((items, 3), np.float32)
    describe_list(
        statistics.arrays,
        scratch,
        vectors,
        np.ones(items, np.bool_),
        query,
        people_of([]),
        turns_of(np.ones(SOURCE_COUNT), TOP_LIST_LENGTH),
        lists,
        0,
    )
    return tuple(array.tobytes() for array in lists)


@settings(max_examples=30, deadline=None)
@given(touch_rows())
def test_decayed_counts_equal_a_plain_reference(rows: list[Row]) -> None:
    arrays = counted(rows).arrays
    sums: dict[tuple[int, int], list[float]] = defaultdict(list)
    for clock, (item, stamp, _, first, strong, _recent) in enumerate(rows, 1):
        for c, (_, unit, half_life, what) in enumerate(COUNTS):
            if what == "all" or (what == "first" and first) or (what == "strong" and strong):
                sums[item, c].append((clock if unit == "events" else stamp / MS_PER_HOUR) / half_life)
    for item in range(25):
        for c in range(len(COUNTS)):
            exponents = sums.get((item, c))
            if exponents is None:
                assert arrays.log_count[item, c] == -math.inf
            else:
                top = max(exponents)
                plain = top + math.log2(math.fsum(2.0 ** (e - top) for e in exponents))
                assert arrays.log_count[item, c] == pytest.approx(plain, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(touch_rows())
def test_life_cycle_and_values_equal_a_plain_reference(rows: list[Row]) -> None:
    statistics = counted(rows)
    arrays = statistics.arrays
    assert statistics.clock == len(rows)
    assert arrays.value_all.tolist() == pytest.approx([sum(np.float32(r[2]) for r in rows), len(rows)])
    for item in range(25):
        mine = [(at, row) for at, row in enumerate(rows, 1) if row[0] == item]
        assert arrays.touches[item] == len(mine)
        assert arrays.value_sum[item] == pytest.approx(sum(row[2] for _, row in mine), abs=1e-5)
        if mine:
            assert arrays.touched_at[item] == mine[-1][0]
            assert arrays.touched_ms[item] == max(row[1] for _, row in mine)
            assert arrays.born_ms[item] == min(row[1] for _, row in mine)


@settings(max_examples=30, deadline=None)
@given(touch_rows(), st.randoms(use_true_random=False))
def test_the_order_of_touches_does_not_matter_for_counts_in_hours(rows: list[Row], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = counted(rows).arrays, counted(shuffled).arrays
    hours = [c for c, (_, unit, *_) in enumerate(COUNTS) if unit == "hours"]
    np.testing.assert_allclose(one.log_count[:, hours], other.log_count[:, hours], atol=1e-8)
    for name in ("touches", "touched_ms", "born_ms"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.pairs.total, other.pairs.total, rtol=1e-5)


@pytest.mark.parametrize(("touches", "items"), [(400, 30), (6_000, 1_800)])
def test_top_lists_equal_a_full_sort(touches: int, items: int) -> None:
    statistics = Statistics(4)
    rows = random_rows(touches, items, seed=items, first=0.3)
    for start in range(0, touches, 997):
        statistics.update(touches_of(rows[start : start + 997]))
        arrays = statistics.arrays
        names = [name for name, *_ in COUNTS]
        for t in range(len(TOP_LISTS) + 1):
            keys = arrays.touched_at if t == len(TOP_LISTS) else arrays.log_count[:, names.index(TOP_LISTS[t])]
            known = [i for i in range(statistics.capacity) if keys[i] > (-1 if t == len(TOP_LISTS) else -math.inf)]
            wanted = sorted(known, key=lambda i: (-keys[i], i))[:TOP_LIST_LENGTH]
            members = arrays.top[t, : arrays.top_size[t]].tolist()
            assert members == wanted
            places = np.full(statistics.capacity, -1)
            places[wanted] = range(len(wanted))
            np.testing.assert_array_equal(arrays.top_place[t], places)


@settings(max_examples=30, deadline=None)
@given(touch_rows())
def test_pairs_equal_a_dictionary(rows: list[Row]) -> None:
    pairs: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    follows: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for item, _, _, first, _, recent in rows:
        for age, other in enumerate(recent if first else []):
            if other != item:
                pairs[item][other] += 0.9**age
                pairs[other][item] += 0.9**age
                if age < FOLLOW_WINDOW:
                    follows[other][item] += 0.6**age
    arrays = counted(rows).arrays
    for got, wanted in ((pairs_of(arrays.pairs), pairs), (pairs_of(arrays.follows), follows)):
        assert got.keys() == wanted.keys()
        for item, row in wanted.items():
            assert got[item] == pytest.approx(row, rel=1e-4)
    for item in range(25):
        total = sum(pairs[item].values()) if item in pairs else 0.0
        assert arrays.pairs.total[item] == pytest.approx(total, rel=1e-4)
        assert arrays.pairs.inverse_root[item] == pytest.approx(1 / (1 + math.sqrt(total)), rel=1e-4)


def test_a_row_of_pairs_is_bounded_and_gives_up_its_weakest() -> None:
    partners = MAX_NEIGHBOURS + 100
    statistics = Statistics(2)
    for n in range(1, partners + 1):
        # Item 0 is chosen after each other item; the first hundred partners came twice and are the strong ones.
        statistics.update(touches_of([(0, START_MS, 1.0, True, False, [n])] * (2 if n <= 100 else 1)))
    row = pairs_of(statistics.arrays.pairs)[0]
    assert len(row) == MAX_NEIGHBOURS
    assert set(range(1, 101)) < row.keys()
    assert partners in row
    assert statistics.arrays.pairs.total[0] == pytest.approx(partners + 100)


def test_rows_grown_from_nothing_never_overlap_nor_leave_the_pool() -> None:
    """The compiled code checks no bounds: what it may write is reserved before."""
    statistics = Statistics(1)
    rows = random_rows(3_000, 900, seed=5, first=1.0)
    for start in range(0, len(rows), 61):
        statistics.update(touches_of(rows[start : start + 61]))
        for pool in (statistics.arrays.pairs, statistics.arrays.follows):
            assert int(pool.used[0]) <= len(pool.neighbour)
            assert (pool.size <= pool.capacity).all()
            taken = np.flatnonzero(pool.capacity)
            order = taken[np.argsort(pool.start[taken])]
            ends = pool.start[order] + pool.capacity[order]
            assert (ends[:-1] <= pool.start[order][1:]).all()
            assert ends.max(initial=0) <= pool.used[0]
    large = Statistics(2_000)
    large.update(touches_of(rows))
    assert pairs_of(large.arrays.pairs) == pairs_of(statistics.arrays.pairs)
    assert dump_bytes(large)["tops"] == dump_bytes(statistics)["tops"]


@settings(max_examples=20, deadline=None)
@given(touch_rows(), st.integers(1, 7))
def test_batches_of_any_size_and_any_capacity_give_the_same_bits(rows: list[Row], size: int) -> None:
    small = Statistics(1)
    for start in range(0, len(rows), size):
        small.update(touches_of(rows[start : start + size]))
    assert dump_bytes(small) == dump_bytes(counted(rows, capacity=300))


@settings(max_examples=20, deadline=None)
@given(touch_rows(), st.randoms(use_true_random=False))
def test_a_dump_gives_identical_candidates_and_features_again(rows: list[Row], random: object) -> None:
    statistics = counted(rows)
    dumped = unpack_dump(pack_dump(statistics.dump()))
    items = int(dumped["items"])
    same = Statistics.load(dumped, np.arange(items, dtype=np.int32), 64)
    assert dump_bytes(same) == dump_bytes(statistics)
    for recent in ([], [3, 1, 2], list(range(20))):
        assert described(same, recent, 64) == described(statistics, recent, 64)
    # Into another numbering: the same pairs and counts under other indices.
    index = list(range(40))
    random.shuffle(index)  # type: ignore[attr-defined]
    index = np.array(index[:items], np.int32)
    moved = Statistics.load(dumped, index, 40)
    np.testing.assert_array_equal(moved.arrays.log_count[index], statistics.arrays.log_count[:items])
    renamed = {
        int(index[a]): {int(index[b]): w for b, w in row.items()}
        for a, row in pairs_of(statistics.arrays.pairs).items()
    }
    assert pairs_of(moved.arrays.pairs) == renamed
    more = random_rows(30, 25, seed=1)
    same.update(touches_of(more))
    statistics.update(touches_of(more))
    assert dump_bytes(same) == dump_bytes(statistics)


def test_a_dump_holds_items_that_only_stand_beside_others() -> None:
    """A user's earlier item may never have been touched in this worker's statistics."""
    statistics = counted([(0, START_MS, 1.0, True, False, [7])])
    dumped = unpack_dump(pack_dump(statistics.dump()))
    again = Statistics.load(dumped, np.arange(dumped["items"], dtype=np.int32), 8)
    assert pairs_of(again.arrays.pairs) == pairs_of(statistics.arrays.pairs) == {0: {7: 1.0}, 7: {0: 1.0}}


def test_reading_changes_nothing() -> None:
    statistics = counted(random_rows(200, 30, seed=2))
    before = dump_bytes(statistics)
    first = described(statistics, [1, 2, 3], 64)
    statistics.dump()
    statistics.reserve(20, 0)
    assert described(statistics, [1, 2, 3], 64) == first
    assert dump_bytes(statistics) == before


def test_an_empty_dump_loads() -> None:
    dumped = unpack_dump(pack_dump(Statistics().dump()))
    assert dump_bytes(Statistics.load(dumped, np.zeros(0, np.int32), 0)) == dump_bytes(Statistics())
    assert described(Statistics(64), [1], 64)[1] == np.zeros(1, np.int32).tobytes()
    assert CANDIDATES > 0


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01", pack_dump({"a": np.zeros(2)})[:-3]])
def test_bytes_that_are_no_dump_are_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        unpack_dump(data)


def test_a_dump_with_other_counts_is_refused() -> None:
    dumped = counted(random_rows(5, 5, seed=0)).dump()
    dumped["log_count"] = dumped["log_count"][:, 1:]
    with pytest.raises(StateError, match="other counts"):
        Statistics.load(dumped, np.arange(dumped["items"], dtype=np.int32), 5)
