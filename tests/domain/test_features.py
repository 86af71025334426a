"""Candidates and features of one list: who is proposed, by whom, and that describing leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.candidates import (
    CANDIDATES,
    COVISITATION,
    LEARNED_QUERY_WINDOW,
    SOURCE_COUNT,
    SOURCES,
    Lists,
    Query,
    Scratch,
    new_lists,
    new_scratch,
    turns_of,
)
from models.domain.events import MAX_EVENT_TIME_MS
from models.domain.features import FEATURE_COUNT, FEATURES, await_verdict, describe_list
from models.domain.habits import NO_HABITS, PENDING_LENGTH, People, people_of
from models.domain.statistics import COUNT_NAMES, PAIR_WINDOW, TOP_LIST_LENGTH, Statistics
from tests.domain.helpers import START_MS, touches_of
from tests.domain.test_statistics import random_rows

ITEMS = 300
VECTORS = np.random.default_rng(0).normal(size=(ITEMS, 5)).astype(np.float32)


def busy() -> Statistics:
    statistics = Statistics(ITEMS)
    statistics.update(touches_of(random_rows(600, ITEMS - 20, seed=8)))
    return statistics


def query(
    recent: Sequence[int] = (),
    excluded: Sequence[int] = (),
    nearest: Sequence[int] = (),
    *,
    now_ms: int = START_MS + 700_000,
    history: float = 3.0,
    user: Sequence[float] = (1, 0, 0, 0, 1),
    newest: Sequence[int] = (),
    last_ms: int = START_MS + 600_000,
    target: int = -1,
) -> Query:
    row = np.full((1, LEARNED_QUERY_WINDOW), -1, np.int32)
    row[0, : len(recent)] = recent
    return Query(
        user=np.array([user], np.float32),
        now_ms=np.array([now_ms], np.int64),
        last_ms=np.array([last_ms], np.int64),
        recent=row,
        recent_ms=now_ms - 10_000 * np.arange(1, LEARNED_QUERY_WINDOW + 1)[None],
        liked=np.zeros((1, LEARNED_QUERY_WINDOW), np.bool_),
        person=np.zeros(1, np.int64),
        target=np.array([target], np.int32),
        deep=np.ones(1, np.bool_),
        history=np.array([history], np.float32),
        chosen=np.array([history], np.float32),
        encoder_top=np.array([[*nearest, -1]], np.int32),
        newest=np.array(newest, np.int32),
        excluded_from=np.zeros(1, np.int64),
        excluded_to=np.array([len(excluded)], np.int64),
        excluded=np.array(excluded, np.int32),
    )


def describe(
    statistics: Statistics,
    asked: Query,
    available: np.ndarray | None = None,
    scratch: Scratch | None = None,
    *,
    people: People | None = None,
    worth: Sequence[float] = (1.0,) * SOURCE_COUNT,
) -> Lists:
    lists = new_lists(1, FEATURE_COUNT)
    statistics.reserve(ITEMS, 0)
    known = np.ones(ITEMS, np.bool_) if available is None else available
    scratch = new_scratch(statistics.capacity) if scratch is None else scratch
    people = people_of([NO_HABITS]) if people is None else people
    turns = turns_of(np.array(worth), TOP_LIST_LENGTH)
    describe_list(statistics.arrays, scratch, VECTORS, known, asked, people, turns, lists, 0)
    return lists


def items_of(lists: Lists) -> list[int]:
    return lists.item[0, : lists.size[0]].tolist()


def feature(lists: Lists, item: int, name: str) -> float:
    return float(lists.features[0, items_of(lists).index(item), FEATURES.index(name)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_candidates_are_distinct_available_and_not_excluded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    excluded = rng.integers(-1, ITEMS, rng.integers(0, 200)).tolist()
    available = rng.random(ITEMS) < rng.choice([0.0, 0.1, 0.9])
    recent = rng.choice(ITEMS, rng.integers(0, PAIR_WINDOW + 1), replace=False).tolist()
    nearest = rng.choice(ITEMS, 64, replace=False).tolist()
    newest = rng.permutation(ITEMS).tolist()
    lists = describe(busy(), query(recent, excluded, nearest, newest=newest), available)
    items = items_of(lists)
    assert len(items) == len(set(items)) <= CANDIDATES
    assert not set(items) & set(excluded)
    assert all(available[items])
    assert (lists.item[0, lists.size[0] :] == -1).all()
    assert not lists.features[0, lists.size[0] :].any()
    assert all(owed in (-1, *recent) for owed in lists.because[0, : lists.size[0]].tolist())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, MAX_EVENT_TIME_MS),
    st.integers(0, MAX_EVENT_TIME_MS),
    st.floats(0, 1e6, width=32),
    st.floats(-1e4, 1e4, width=32),
)
def test_features_are_finite_for_every_input(counted_ms: int, now_ms: int, history: float, size: float) -> None:
    statistics = busy()
    statistics.update(touches_of([(290, counted_ms, 1.0, True, True, [1, 2, 3]), (1, counted_ms, 0.0, True, True, [])]))
    recent, nearest = list(range(PAIR_WINDOW)), list(range(250, 300))
    lists = describe(
        statistics, query(recent, [], nearest, now_ms=now_ms, history=history, user=(size, -size, 0, size, 1))
    )
    assert lists.features.shape == (1, CANDIDATES, FEATURE_COUNT)
    assert np.isfinite(lists.features).all()


def test_describing_leaves_the_scratch_clean() -> None:
    """The second list of a busy worker equals the first of a fresh one, whoever was served in between."""
    statistics = busy()
    scratch = new_scratch(ITEMS)
    first = describe(statistics, query([1, 2, 3], [4, 5], [7, 8]), scratch=scratch)
    describe(
        statistics, query(list(range(20, 20 + PAIR_WINDOW)), list(range(100)), list(range(60, 90))), scratch=scratch
    )
    again = describe(statistics, query([1, 2, 3], [4, 5], [7, 8]), scratch=scratch)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("covisit", "follow", "strongest"):
        assert not getattr(scratch, name).any()
    assert (scratch.because == -1).all()


def test_every_source_proposes() -> None:
    statistics = Statistics(ITEMS)
    old = [(n, START_MS, 1.0, False, False, []) for n in range(100, 200) for _ in range(3)]
    pairs = [(0, START_MS + 1, 1.0, True, False, [1]), (2, START_MS + 1, 1.0, True, False, [1])]
    news = [(n, START_MS + 5_000_000, 1.0, True, False, []) for n in range(200, 240)]
    hits = [(n, START_MS + 5_000_000, 1.0, False, False, []) for n in range(240, 280) for _ in range(9)]
    statistics.update(touches_of([*old, *pairs, *news, *hits, (290, START_MS + 6_000_000, 1.0, False, False, [])]))
    lists = describe(statistics, query([1], [], [295, 296], now_ms=START_MS + 6_000_000))
    assert {SOURCES[s] for s in lists.source[0, : lists.size[0]]} == set(SOURCES) - {"catalogue"}
    by_item = dict(zip(items_of(lists), (SOURCES[s] for s in lists.source[0]), strict=False))
    assert by_item[0] == "covisitation"
    assert by_item[295] == "encoder"
    assert by_item[290] in ("latest", "trending_10_events")


def test_an_item_touched_once_is_proposed_at_once() -> None:
    statistics = busy()
    statistics.update(touches_of([(299, START_MS + 700_000, 1.0, True, False, [])]))
    without_others = [n for n in range(ITEMS) if n != 299]
    lists = describe(statistics, query())
    assert 299 in items_of(lists)[:8]
    assert items_of(describe(statistics, query([], without_others))) == [299]
    assert feature(lists, 299, "minutes_since_touch") == 0
    assert feature(lists, 299, "touches") == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("source", ["latest", "new_and_rising"])
def test_a_first_touch_stands_first_in_the_lists_of_what_is_new(source: str) -> None:
    statistics = busy()
    statistics.update(touches_of([(299, START_MS + 700_000, 1.0, True, False, [])]))
    at = SOURCES.index(source) - 2
    assert 299 in statistics.arrays.top[at, : 3 if source == "new_and_rising" else 1]


def test_an_item_that_was_only_touched_again_is_not_new() -> None:
    statistics = Statistics(ITEMS)
    statistics.update(touches_of([(7, START_MS, 1.0, False, False, [])]))
    assert statistics.arrays.top_size[SOURCES.index("new_and_rising") - 2] == 0


def test_counts_are_read_at_the_time_of_the_list() -> None:
    statistics = Statistics(ITEMS)
    statistics.update(touches_of([(7, START_MS, 1.0, True, True, []), (8, START_MS, 1.0, True, True, [])]))
    day = 24 * 3_600_000
    for name in COUNT_NAMES:
        if name not in FEATURES:
            continue
        now, later = (feature(describe(statistics, query(now_ms=START_MS + d * day)), 8, name) for d in (0, 1))
        assert now == pytest.approx(0.0, abs=1e-5)
        assert later == pytest.approx(now if name.endswith("events") else max(-_days_off(name), -6.0), abs=1e-3)


def _days_off(name: str) -> float:
    hours = float(name.split("_")[1])
    return 24 / hours * float(np.log(2))


def test_an_item_chosen_together_with_the_last_one_is_owed_to_it() -> None:
    statistics = Statistics(ITEMS)
    statistics.update(touches_of([(n, START_MS, 1.0, True, False, [50]) for n in (10, 11)]))
    statistics.update(touches_of([(n, START_MS, 1.0, True, False, [60]) for n in (12, 13)]))
    lists = describe(statistics, query([50, 60], [50, 60]))
    owed = dict(zip(items_of(lists), lists.because[0].tolist(), strict=False))
    assert (owed[10], owed[12]) == (50, 60)
    assert feature(lists, 10, "covisit_80") > feature(lists, 12, "covisit_80") > 0
    assert lists.source[0, items_of(lists).index(10)] == COVISITATION


def test_the_encoder_score_is_the_inner_product() -> None:
    user = (0.5, -1, 2, 0.25, 1)
    lists = describe(busy(), query([], [], [9, 3], user=user))
    for item in items_of(lists):
        wanted = float(VECTORS[item] @ np.array(user, np.float32))
        assert feature(lists, item, "encoder_score") == pytest.approx(wanted, abs=1e-4)


def test_nothing_known_means_no_candidates() -> None:
    assert items_of(describe(Statistics(ITEMS), query([1, 2], [3]))) == []


def test_the_catalogue_fills_a_short_list_with_items_nobody_touched_and_no_excluded_one() -> None:
    lists = describe(Statistics(4), query(excluded=[2], newest=[5, 2, 1]))
    assert lists.item[0, : lists.size[0]].tolist() == [5, 1]
    assert {SOURCES[source] for source in lists.source[0, : lists.size[0]]} == {"catalogue"}


def test_a_source_of_twice_the_worth_gives_two_candidates_for_one() -> None:
    statistics = Statistics(ITEMS)
    statistics.update(touches_of([(n, START_MS, 1.0, True, False, []) for n in range(100)]))
    worth = [0.01] * SOURCE_COUNT
    worth[SOURCES.index("encoder")], worth[SOURCES.index("popular_24_hours")] = 1.0, 0.5
    lists = describe(statistics, query([], [], list(range(150, 250))), worth=worth)
    proposed = [SOURCES[s] for s in lists.source[0, :90]]
    assert proposed.count("encoder") == pytest.approx(60, abs=2)
    assert proposed.count("popular_24_hours") == pytest.approx(30, abs=2)


def test_the_sources_that_came_to_what_was_chosen_are_named() -> None:
    statistics = Statistics(ITEMS)
    statistics.update(touches_of([(n, START_MS + n, 1.0, False, False, []) for n in range(60)]))
    lists = describe(statistics, query([], [], [250, 3], target=3))
    named = {SOURCES[s] for s in np.flatnonzero(lists.reached[0])}
    assert "encoder" in named
    assert {"covisitation", "new_and_rising"} & named == set()
    assert not describe(statistics, query([], [], [250, 3])).reached.any()


def test_what_the_user_passed_over_is_seen_and_nothing_else() -> None:
    people = people_of([NO_HABITS])
    people.passed[0, 0], people.weight[0, 0] = 7, [0.5, 0.25, 2.0]
    people.passed[0, 1], people.weight[0, 1] = 299, [9.0, 9.0, 9.0]
    lists = describe(busy(), query([1], [], [7, 8]), people=people)
    assert feature(lists, 7, "passed_chance") == pytest.approx(np.log(0.501), rel=1e-5)
    assert feature(lists, 7, "passed_times") == pytest.approx(np.log(3.0), rel=1e-5)
    assert feature(lists, 8, "passed_times") == 0.0
    again = describe(busy(), query([1], [], [7, 8]))
    assert feature(again, 7, "passed_times") == 0.0


def test_the_head_of_a_published_list_waits_for_a_verdict_by_the_encoders_order() -> None:
    people = people_of([NO_HABITS])
    lists = describe(busy(), query([1], [], [7, 8]), people=people)
    await_verdict(lists, 0, people, 0)
    scores = lists.features[0, : lists.size[0], FEATURES.index("encoder_score")]
    best = np.array(items_of(lists))[np.argsort(-scores, kind="stable")][:PENDING_LENGTH]
    assert people.pending[0].tolist() == best.tolist()
    assert 0.0 < people.chance[0].sum() <= 1.0
    assert (np.diff(people.chance[0]) <= 1e-7).all()
