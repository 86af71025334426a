"""Fellows: who chose an item lately, whom a user met there, and what that says of other items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.catalogue import Catalogue
from models.domain.deltas import Ledger, decode_delta, encode_delta, pack_snapshot
from models.domain.fellows import (
    AHEAD,
    BEHIND,
    CHOOSERS,
    FELLOW_FEATURES,
    FELLOW_LEVELS,
    FELLOW_SLOTS,
    FELLOWS,
    SIDES,
    Choosers,
    count_followed,
    describe_choosers,
    gather,
    meet,
    new_choosers,
    note_chooser,
)
from models.domain.state import pack, unpack
from models.domain.statistics import PAIR_WINDOW, Statistics
from tests.domain.helpers import START_MS, Player, click, forget, make_pipeline, records, touches_of

ITEMS = 6


class Person:
    """One user's side, as the compiled passes see it."""

    def __init__(self, tag: int) -> None:
        self.tag, self.last_ms = tag, -1
        self.fellow, self.closeness = np.zeros(FELLOWS, np.int32), np.zeros((FELLOWS, SIDES), np.float32)
        self.recent: list[int] = []

    def choose(self, choosers: Choosers, item: int, at_ms: int) -> None:
        first, recent = item not in self.recent, np.full(PAIR_WINDOW, -1, np.int32)
        others = [one for one in self.recent if one != item][:PAIR_WINDOW]
        recent[: len(others)] = others
        meet(choosers, self.fellow, self.closeness, self.tag, item, first, recent, self.last_ms)
        if first:
            note_chooser(choosers, item, self.tag, len(self.recent), at_ms)
            self.recent.insert(0, item)
        self.last_ms = max(self.last_ms, at_ms)

    def met(self) -> dict[int, list[float]]:
        """Ahead and behind, by tag."""
        return {
            tag: [round(float(side), 6) for side in sides[[AHEAD, BEHIND]]]
            for tag, sides in zip(self.fellow.tolist(), self.closeness, strict=True)
            if tag
        }

    def sees(self, choosers: Choosers, item: int, norm: float = 1.0) -> dict[str, float]:
        levels, shares = np.full((1, FELLOW_LEVELS), np.nan, np.float32), np.full(1, np.nan, np.float32)
        items = np.array([item], np.int32)
        describe_choosers(choosers, *self.laid_out(), self.closeness, items, norm, levels, shares)
        return dict(zip(FELLOW_FEATURES, [*np.log(levels[0]).tolist(), *shares.tolist()], strict=True))

    def follows(self, choosers: Choosers, item: int) -> float:
        """How often he chose what the item's first chooser had chosen first."""
        levels = np.full(1, np.nan, np.float32)
        count_followed(choosers, *self.laid_out(), self.closeness, np.array([item], np.int32), levels)
        return float(levels[0] - 1.0) / 10.0

    def laid_out(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]:
        slots, places = np.full(FELLOW_SLOTS, 9, np.int32), np.ones(FELLOW_SLOTS, np.int16)
        gather(slots, places, self.fellow)
        return slots, places


def test_who_was_there_before_is_ahead_and_who_comes_after_is_behind() -> None:
    choosers = new_choosers(ITEMS)
    ann, ben = Person(1), Person(2)
    ann.choose(choosers, 0, 10)
    ben.choose(choosers, 0, 20)
    assert ann.met() == {}, "she has not come back yet"
    assert ben.met() == {1: [round(1.0 / math.log2(3.0), 6), 0.0]}
    ann.choose(choosers, 1, 30)
    assert ann.met() == {2: [0.0, round(1.0 / math.log2(4.0), 6)]}
    ann.choose(choosers, 2, 40)
    assert ann.met() == {2: [0.0, round(1.0 / math.log2(4.0), 6)]}, "nobody came to her items since"


def test_nobody_is_his_own_fellow() -> None:
    choosers = new_choosers(ITEMS)
    ann = Person(1)
    for at, item in enumerate([0, 1, 0, 2, 1]):
        ann.choose(choosers, item, at)
    assert ann.met() == {}


def test_to_meet_where_many_go_or_one_who_goes_everywhere_means_less() -> None:
    choosers = new_choosers(ITEMS)
    for tag in range(10, 16):
        note_chooser(choosers, 0, tag, 0, 1)
    note_chooser(choosers, 1, 20, 0, 1)
    note_chooser(choosers, 2, 21, 99, 1)
    ann = Person(1)
    for at, item in enumerate([0, 1, 2]):
        ann.choose(choosers, item, 10 + at)
    met = ann.met()
    assert met[10][AHEAD] < met[20][AHEAD]
    assert met[21][AHEAD] == pytest.approx(0.1 * met[20][AHEAD], rel=1e-4)


def test_a_worker_of_a_former_release_tells_of_nobody() -> None:
    choosers = new_choosers(ITEMS)
    note_chooser(choosers, 0, 0, 3, 1)
    assert choosers.total[0] == 0


def test_choosers_and_fellows_are_bounded_and_the_closest_stay() -> None:
    choosers = new_choosers(ITEMS)
    ann = Person(1)
    for tag in range(2, 2 + CHOOSERS + 5):
        note_chooser(choosers, 0, tag, 0, tag)
    assert sorted(choosers.tag[0].tolist()) == list(range(7, 7 + CHOOSERS)), "the latest ones"
    ann.choose(choosers, 0, 100)
    ann.closeness[ann.fellow == 7] = [5.0, 0.0, 0.0]
    for at in range(2 * FELLOWS):
        one = new_choosers(ITEMS)
        note_chooser(one, 1, 1_000 + at, 0, 1)
        meet(one, ann.fellow, ann.closeness, 1, 1, True, np.full(PAIR_WINDOW, -1, np.int32), 0)
    met = ann.met()
    assert len(met) == FELLOWS
    assert 7 in met
    assert met[7] == [5.0, 0.0]
    # First the free places, then those of all who were met where more go, but for the one who is close.
    assert max(met) == 1_000 + (FELLOWS - CHOOSERS) + (CHOOSERS - 1) - 1


def test_who_chose_first_is_followed_by_those_who_choose_it_after() -> None:
    choosers = new_choosers(ITEMS)
    ann, ben, eve = Person(1), Person(2), Person(3)
    for item in (0, 1, 2):
        eve.choose(choosers, item, item)
    ben.choose(choosers, 3, 10)
    assert [ann.follows(choosers, item) for item in range(ITEMS)] == [0.0] * ITEMS
    ben.choose(choosers, 0, 20)
    for item in (0, 1, 1, 3):
        ann.choose(choosers, item, 30)
    assert [ann.follows(choosers, item) for item in range(ITEMS)] == [2.0, 2.0, 2.0, 1.0, 0.0, 0.0]
    assert ben.follows(choosers, 2) == 1.0
    assert ben.follows(choosers, 3) == 0.0, "nobody follows himself"
    for tag in range(10, 10 + CHOOSERS):
        note_chooser(choosers, 2, tag, 0, 40)
    ann.choose(choosers, 2, 50)
    assert ann.follows(choosers, 2) == 3.0, "the ring has lost the first chooser, the item has not"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, ITEMS - 1)), max_size=60), st.floats(0.1, 1.0))
@settings(max_examples=60, deadline=None)
def test_features_equal_a_plain_reference(log: Sequence[tuple[int, int]], norm: float) -> None:
    choosers = new_choosers(ITEMS)
    people = {tag: Person(tag) for tag in range(1, 6)}
    for at, (tag, item) in enumerate(log):
        people[tag].choose(choosers, item, at)
    ann = people[1]
    for item in range(ITEMS):
        tags = [tag for tag in range(1, 6) if item in people[tag].recent]
        met = {tag: sides for tag, sides in ann.met().items() if tag in tags}
        ahead = [sides[AHEAD] for sides in met.values()]
        both = [sides[AHEAD] + sides[BEHIND] for sides in met.values()]
        seen = ann.sees(choosers, item, norm)
        many = max(len(tags), 1)
        expected = [
            math.log(1e-3 + norm * value) - math.log(1e-3)
            for side in (ahead, both)
            for value in (sum(side), sum(side) / many, max(side, default=0.0))
        ]
        assert list(seen.values()) == pytest.approx([*expected, len(met) / many], abs=1e-3)


def test_tags_that_share_a_place_are_told_apart() -> None:
    choosers = new_choosers(ITEMS)
    for item in range(ITEMS):
        note_chooser(choosers, item, 5 + (item << 24), 0, 1)  # the places follow from the lower 24 bits
    ann = Person(1)
    for item in range(ITEMS - 1):
        ann.choose(choosers, item, 10 + item)
    shares = [ann.sees(choosers, item)["fellows_share"] for item in range(ITEMS)]
    assert shares == [*[0.5] * (ITEMS - 1), 0.0], "she is among the choosers of the others herself"
    assert ann.sees(choosers, 0)["fellows_ahead"] == pytest.approx(math.log(1 + 1e3 / math.log2(3.0)))
    assert [ann.follows(choosers, item) for item in range(ITEMS)] == [*[1.0] * (ITEMS - 1), 0.0]


def test_a_user_gets_a_tag_with_his_first_event_keeps_it_and_loses_it_when_forgotten() -> None:
    player = Player(make_pipeline()).play(records([click("u", "i1", 1), click("v", "i1", 2)]))
    mine, other = player.states["u"].tag, player.states["v"].tag
    assert 0 < mine < 2**31
    assert mine != other
    catalogue = player.pipeline.catalogue
    assert unpack("u", pack(player.states["u"], catalogue), catalogue).tag == mine
    player.play(records([click("u", "i2", 3)], start=2))
    assert player.states["u"].tag == mine
    player.play(records([forget("u", 4)], start=3))
    assert player.states["u"].tag == 0
    player.play(records([click("u", "i3", 5)], start=4))
    assert player.states["u"].tag not in (0, mine)


def test_choosers_reach_other_workers_and_snapshots() -> None:
    catalogue, statistics = Catalogue(9), Statistics()
    ledger = Ledger(statistics, catalogue, None, "a")
    item = catalogue.intern("i1")
    touched = touches_of([(item, START_MS, 1.0, True, False, []), (item, START_MS + 5, 1.0, True, False, [])])
    statistics.reserve(1, 2)
    statistics.update(touched)
    delta = ledger.write("s", 2, [touched], [0, 1], [], [])
    assert delta is not None
    reader, fresh = (Ledger(Statistics(), Catalogue(9), None, name) for name in "bc")
    reader.read(decode_delta(encode_delta(delta)))
    fresh.restore(pack_snapshot(reader.snapshot()))
    for side in (reader, fresh):
        at = side.catalogue.index["i1"]
        found = side.statistics.arrays.choosers
        for name in Choosers._fields:
            mine = getattr(statistics.arrays.choosers, name)[item]
            assert np.array_equal(getattr(found, name)[at], mine), name


def test_a_delta_and_a_snapshot_of_a_former_release_tell_of_no_choosers() -> None:
    catalogue, statistics = Catalogue(9), Statistics()
    ledger = Ledger(statistics, catalogue, None, "a")
    touched = touches_of([(catalogue.intern("i1"), START_MS, 1.0, True, False, [])])
    statistics.reserve(1, 1)
    statistics.update(touched)
    delta = ledger.write("s", 1, [touched], [0], [], [])
    assert delta is not None
    reader = Ledger(Statistics(), Catalogue(9), None, "b")
    delta.tag.clear()
    delta.chosen.clear()
    reader.read(decode_delta(encode_delta(delta)))
    assert reader.statistics.arrays.touches[reader.catalogue.index["i1"]] == 1
    assert not reader.statistics.arrays.choosers.total.any()
    dumped = statistics.dump()
    tag = int(dumped["chooser_tag"][0, 0])
    del dumped["chooser_first"]
    assert Statistics.load(dumped, np.zeros(1, np.int32), 1).arrays.choosers.first[0] == tag > 0, "the ring still knows"
    dumped["chooser_total"][:] = CHOOSERS + 1
    assert Statistics.load(dumped, np.zeros(1, np.int32), 1).arrays.choosers.first[0] == 0
    dumped = {name: value for name, value in dumped.items() if not name.startswith("chooser_")}
    assert not Statistics.load(dumped, np.zeros(1, np.int32), 1).arrays.choosers.total.any()
