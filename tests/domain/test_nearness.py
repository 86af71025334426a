"""How near in time pairs were chosen: counted beside their weight, shared by workers, seen by a learned ranker."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings

from models.domain.catalogue import Catalogue
from models.domain.deltas import Ledger, decode_delta, encode_delta
from models.domain.features import NEAR_FEATURES
from models.domain.statistics import NEAR_MS, Rows, Statistics, nearness, pack_dump, unpack_dump
from tests.domain.helpers import START_MS, LearnedRanker, Player, click, make_pipeline, records, touches_of
from tests.domain.test_features import describe, feature, query
from tests.domain.test_statistics import Row, counted, pairs_of, random_rows, touch_rows

HALF = int(NEAR_MS)


def near_of(rows: Rows) -> dict[int, dict[int, float]]:
    return pairs_of(rows, "near")


def test_nearness_is_one_at_once_half_after_its_gap_and_none_where_no_gap_is_told() -> None:
    assert [float(nearness(gap)) for gap in (0, HALF, 3 * HALF)] == pytest.approx([1.0, 0.5, 0.25])
    assert nearness(-2) == 0.0


@settings(max_examples=30, deadline=None)
@given(touch_rows())
def test_nearness_of_pairs_equals_a_dictionary(rows: list[Row]) -> None:
    pairs: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    touches = touches_of(rows)
    for (item, _, _, first, _, recent), gaps in zip(rows, touches.recent_gap_ms.tolist(), strict=True):
        for age, other in enumerate(recent if first else []):
            if other != item:
                near = NEAR_MS / (NEAR_MS + gaps[age])
                pairs[item][other] += near
                pairs[other][item] += near
    arrays = counted(rows).arrays
    got = near_of(arrays.pairs)
    assert got.keys() == pairs.keys()
    for item, row in pairs.items():
        assert got[item] == pytest.approx(row, rel=1e-4)
    for item in range(25):
        total = sum(pairs[item].values()) if item in pairs else 0.0
        assert arrays.pairs.near_total[item] == pytest.approx(total, rel=1e-4, abs=1e-6)
        assert arrays.pairs.near_root[item] == pytest.approx(1 / (1 + math.sqrt(total)), rel=1e-4)


def test_workers_share_it_and_a_former_release_tells_none() -> None:
    catalogue, statistics = Catalogue(9), Statistics()
    ledger = Ledger(statistics, catalogue, None, "a")
    index = catalogue.intern_many(["x", "y", "z"]).tolist()
    touches = touches_of([(index[0], START_MS + 3, 1.0, True, False, index[1:])])
    statistics.reserve(3, 1)
    statistics.update(touches)
    delta = ledger.write("s", 1, [touches], [0], [], [])
    assert delta is not None
    reader = Ledger(Statistics(), Catalogue(9), None, "b")
    reader.read(decode_delta(encode_delta(delta)))
    assert reader.catalogue.ids == ["x", "y", "z"]
    assert near_of(reader.statistics.arrays.pairs) == near_of(statistics.arrays.pairs)
    assert max(near_of(statistics.arrays.pairs)[0].values()) == 1.0
    delta.recent_gap_ms.clear()
    former = Ledger(Statistics(), Catalogue(9), None, "c")
    former.read(decode_delta(encode_delta(delta)))
    assert near_of(former.statistics.arrays.pairs) == {0: {1: 0.0, 2: 0.0}, 1: {0: 0.0}, 2: {0: 0.0}}
    assert (former.statistics.arrays.pairs.weight == reader.statistics.arrays.pairs.weight).all()


def test_a_snapshot_of_a_former_release_tells_none() -> None:
    statistics = counted(random_rows(50, 10, seed=3))
    former = {name: value for name, value in statistics.dump().items() if "near" not in name}
    restored = Statistics.load(unpack_dump(pack_dump(former)), np.arange(10, dtype=np.int32), 10)
    assert not restored.arrays.pairs.near.any()
    assert (restored.arrays.pairs.near_root == 1.0).all()
    assert (restored.arrays.pairs.inverse_root[:10] == statistics.arrays.pairs.inverse_root[:10]).all()


def test_a_list_sees_how_near_the_candidates_were_to_what_the_user_does_now() -> None:
    """Item 10 came at once after 50, item 11 a day later."""
    statistics = Statistics(100)
    touches = touches_of([(10, START_MS, 1.0, True, False, [50]), (11, START_MS, 1.0, True, False, [50])])
    touches.recent_gap_ms[:, 0] = 0, 86_400_000
    statistics.update(touches)
    lists = describe(statistics, query([50], [50]))
    assert set(NEAR_FEATURES) == {"near_last", "near_now_share", "near_now", "near"}
    for name in NEAR_FEATURES:
        assert feature(lists, 10, name) > 3 * feature(lists, 11, name) > 0
    assert feature(lists, 10, "covisit_80") == feature(lists, 11, "covisit_80")
    # The same items an hour later: what is near now fades, what they have in common stays.
    asked = query([50], [50])
    later = describe(statistics, asked._replace(now_ms=asked.now_ms + 3_600_000))
    assert feature(later, 10, "near_now") < feature(lists, 10, "near_now") / 10
    assert feature(later, 10, "near") == feature(lists, 10, "near")


def test_a_played_log_pairs_by_the_latest_touch() -> None:
    pipeline = make_pipeline(ranker=LearnedRanker())
    # Ann comes back to i0 just before i1: what counts is how long ago she saw it last.
    Player(pipeline).play(records([click("ann", "i0", 0), click("ann", "i0", 3_600), click("ann", "i1", 3_620)]))
    pairs, index = pipeline.statistics.arrays.pairs, pipeline.catalogue.index
    assert near_of(pairs)[index["i0"]] == {index["i1"]: pytest.approx(NEAR_MS / (NEAR_MS + 20_000))}
