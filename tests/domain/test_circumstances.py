"""Circumstances: how old an item is in events, and what its choosers had in common with the user."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.catalogue import Catalogue
from models.domain.circumstances import (
    CIRCUMSTANCE_FEATURES,
    CIRCUMSTANCE_LEVELS,
    FIRST_EVENT,
    NO_GAP,
    NOT_TOLD,
    describe_circumstances,
    measure,
    new_circumstances,
    note_circumstances,
)
from models.domain.deltas import Ledger, decode_delta, encode_delta
from models.domain.features import FEATURES
from models.domain.fellows import CHOOSERS
from models.domain.statistics import Statistics, pack_dump, unpack_dump
from tests.domain.helpers import START_MS, LearnedRanker, Player, click, make_pipeline, records, touches_of

MINUTE = 60_000


def seen(
    statistics: Statistics, item: int, *, since_ms: int = -1, history: float = 0.0, gap: float = NO_GAP
) -> dict[str, float]:
    arrays = statistics.arrays
    items, born_since = np.array([item], np.int32), np.zeros(1, np.bool_)
    levels = np.full((1, CIRCUMSTANCE_LEVELS), np.nan, np.float32)
    measure(
        arrays.circumstances,
        arrays.choosers,
        items,
        arrays.clock[0],
        arrays.touches,
        arrays.born_ms,
        arrays.touched_ms,
        since_ms,
        levels,
        born_since,
    )
    features = np.full((1, len(CIRCUMSTANCE_FEATURES)), np.nan, np.float32)
    describe_circumstances(arrays.circumstances, items, history, gap, np.log(levels), born_since, features)
    return dict(zip(CIRCUMSTANCE_FEATURES, features[0].tolist(), strict=True))


def contexts(rows: list[tuple[int, int, bool, int, int]]) -> list[tuple[float, float]]:
    """(log history, log gap) of each first choice of which they are known."""
    return [
        (math.log1p(chosen), NO_GAP if gap < 0 else math.log1p(gap / MINUTE))
        for _, _, first, chosen, gap in rows
        if first and gap != NOT_TOLD
    ]


def touched(rows: list[tuple[int, int, bool, int, int]]) -> Statistics:
    """Rows of (item, minute, first, chosen, gap_ms)."""
    statistics = Statistics(64)
    for item, minute, first, chosen, gap_ms in rows:
        touches = touches_of([(item, START_MS + minute * MINUTE, 1.0, first, False, [])])
        statistics.update(touches._replace(chosen=np.array([chosen], np.int32), gap_ms=np.array([gap_ms], np.int64)))
    return statistics


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 500),
            st.booleans(),
            st.integers(0, 90),
            st.sampled_from([FIRST_EVENT, NOT_TOLD, 0, 5 * MINUTE, 10**9]),
        ),
        max_size=60,
    ),
    st.integers(-1, 500),
)
def test_what_is_seen_is_what_happened(rows: list[tuple[int, int, bool, int, int]], since: int) -> None:
    statistics = touched(rows)
    since_ms = START_MS + since * MINUTE
    told = contexts(rows)
    everybody = np.mean(told, axis=0) if told else np.zeros(2)
    for item in range(4):
        own = [(at, row) for at, row in enumerate(rows) if row[0] == item]
        firsts = [row for _, row in own if row[2]]
        context = contexts(firsts)
        age = len(rows) - (own[0][0] + 1) if own else 1e5
        usual_history, usual_gap = (np.sum(context, axis=0) + 3 * everybody) / (len(context) + 3)
        latest = [row[1] for row in firsts][-CHOOSERS:]
        found = seen(statistics, item, since_ms=since_ms, history=1.5, gap=2.5)
        assert found == pytest.approx(
            {
                "age_events": math.log1p(age),
                "touch_rate": math.log((len(own) + 0.5) / (age + 10)),
                "choice_rate": math.log((len(firsts) + 0.5) / (age + 10)),
                "choosers_history": usual_history,
                "history_off_choosers": abs(1.5 - usual_history),
                "choosers_gap": usual_gap,
                "gap_off_choosers": abs(2.5 - usual_gap),
                "born_since_visit": float(bool(own) and min(row[1] for _, row in own) > since),
                "choosers_since_visit": math.log1p(sum(minute > since for minute in latest)),
            },
            rel=1e-4,
            abs=1e-4,
        )


def test_newcomers_items_and_old_hands_items_are_told_apart() -> None:
    rows = [(0, at, True, 0, FIRST_EVENT) for at in range(10)] + [(1, at, True, 300, 0) for at in range(10)]
    statistics = touched(rows)
    newcomer = {item: seen(statistics, item, history=0.0, gap=NO_GAP) for item in (0, 1)}
    old_hand = {item: seen(statistics, item, history=math.log(301.0), gap=0.0) for item in (0, 1)}
    for feature in ("history_off_choosers", "gap_off_choosers"):
        assert newcomer[0][feature] < newcomer[1][feature]
        assert old_hand[1][feature] < old_hand[0][feature]


def test_workers_share_the_circumstances() -> None:
    ours, theirs = Catalogue(9), Catalogue(9)
    here, there = Statistics(), Statistics()
    writer, reader = Ledger(here, ours, None, "a"), Ledger(there, theirs, None, "b")
    theirs.intern_many(["z"])
    index = ours.intern_many(["x", "y"])
    touches = touches_of([(int(index[at % 2]), START_MS + at, 1.0, True, False, []) for at in range(30)])
    here.reserve(2, len(touches.item))
    here.update(touches)
    delta = writer.write("events/0", 30, [touches], list(range(30)), [], [])
    assert delta is not None
    reader.read(decode_delta(encode_delta(delta)))
    for item_id in ("x", "y"):
        assert seen(there, theirs.intern(item_id)) == pytest.approx(seen(here, ours.intern(item_id)))


def test_a_delta_and_a_snapshot_of_a_former_release_tell_no_circumstances() -> None:
    """What they touched counts, and came before everything that is told from now on."""
    catalogue, statistics = Catalogue(9), Statistics()
    ledger = Ledger(statistics, catalogue, None, "a")
    touches = touches_of([(catalogue.intern("i1"), START_MS, 1.0, True, False, [])])
    statistics.reserve(1, 1)
    statistics.update(touches)
    delta = ledger.write("s", 1, [touches], [0], [], [])
    assert delta is not None
    delta.gap_ms.clear()
    reader = Ledger(Statistics(), Catalogue(9), None, "b")
    reader.read(decode_delta(encode_delta(delta)))
    at = reader.catalogue.index["i1"]
    assert reader.statistics.arrays.touches[at] == 1
    assert reader.statistics.arrays.circumstances.told[at] == 0
    former = {name: value for name, value in statistics.dump().items() if not name.startswith("circumstances_")}
    restored = Statistics.load(unpack_dump(pack_dump(former)), np.arange(1, dtype=np.int32), 1)
    assert restored.arrays.circumstances.born_at[0] == 0


def test_a_played_log_notes_how_long_its_users_had_been_away() -> None:
    pipeline = make_pipeline(ranker=LearnedRanker())
    Player(pipeline).play(records([click("ann", "i0", 0), click("ann", "i1", 180), click("ben", "i1", 200)]))
    circumstances, index = pipeline.statistics.arrays.circumstances, pipeline.catalogue.index
    x, y = index["i0"], index["i1"]
    assert circumstances.gap[x] == NO_GAP
    assert circumstances.gap[y] == pytest.approx(math.log(4.0) + NO_GAP)
    assert circumstances.history[y] == pytest.approx(math.log(2.0))
    assert set(CIRCUMSTANCE_FEATURES) <= set(FEATURES)


def test_nothing_is_noted_of_a_touch_that_is_no_first_choice_but_the_birth() -> None:
    circumstances = new_circumstances(2)
    note_circumstances(circumstances, 1, 7.0, False, 3, 0)
    assert (circumstances.born_at[1], circumstances.told[1]) == (7.0, 0.0)
