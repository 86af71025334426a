"""What is remembered of a user's ways: running means of his choices, and what he was shown in vain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.errors import StateError
from models.domain.habits import (
    HABIT_AGE,
    HABIT_RECENCY,
    HABIT_TOUCHES,
    HABIT_VALUE,
    NO_HABITS,
    PASSED_LENGTH,
    PENDING_LENGTH,
    Habits,
    People,
    choose,
    habits_of,
    pack_followed,
    pack_habits,
    pass_over,
    people_of,
    unpack_habits,
)
from models.domain.statistics import MS_PER_HOUR, PAIR_WINDOW, Statistics
from tests.domain.helpers import START_MS, touches_of

# Tag, latest items and time of the event before of a user who comes for the first time.
ALONE = (1, np.full(PAIR_WINDOW, -1, np.int32), -1)


def shown(people: People, items: list[int], chance: float = 0.25) -> None:
    """A list was published, and the user did something."""
    people.pending[0, : len(items)] = items
    people.chance[0, : len(items)] = chance
    pass_over(people, 0)


def passed(people: People) -> dict[int, tuple[float, ...]]:
    return {
        item: tuple(np.round(weights.astype(np.float64), 6).tolist())
        for item, weights in zip(people.passed[0].tolist(), people.weight[0], strict=True)
        if item >= 0
    }


def test_choices_move_the_means_and_only_first_ones_tell_of_freshness() -> None:
    statistics = Statistics(4)
    statistics.update(touches_of([(1, START_MS, 1.0, True, False, []), (2, START_MS, 1.0, True, False, [])]))
    people = people_of([NO_HABITS])
    choose(statistics.arrays, people, 0, 1, START_MS + int(MS_PER_HOUR), 1.0, True, *ALONE)
    first = people.choice[0].copy()
    assert first[HABIT_AGE] == pytest.approx(np.log(1.1))
    assert first[HABIT_TOUCHES] == pytest.approx(np.log(2.0))
    assert first[HABIT_RECENCY] == pytest.approx(np.log(2.0)), "one other event since"
    assert first[HABIT_VALUE] == 1.0
    choose(statistics.arrays, people, 0, 1, START_MS + int(MS_PER_HOUR), 0.0, False, *ALONE)
    assert people.choice[0, :HABIT_VALUE].tolist() == first[:HABIT_VALUE].tolist()
    assert people.choice[0, HABIT_VALUE] == pytest.approx(0.9)


def test_an_item_nobody_touched_says_nothing_of_age() -> None:
    people = people_of([NO_HABITS])
    choose(Statistics(4).arrays, people, 0, 3, START_MS, 0.5, True, *ALONE)
    assert np.isnan(people.choice[0, [HABIT_AGE, HABIT_RECENCY]]).all()
    assert people.choice[0, HABIT_TOUCHES] == 0.0


def test_what_is_shown_again_in_vain_weighs_more_and_what_is_not_fades() -> None:
    people = people_of([NO_HABITS])
    shown(people, [7, 8])
    shown(people, [7])
    assert passed(people) == {7: (0.5, 0.45, 1.95), 8: (0.25, 0.2, 0.95)}
    assert (people.pending[0] == -1).all(), "a list counts once"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 200), max_size=PENDING_LENGTH, unique=True), max_size=30))
def test_the_memory_is_bounded_and_holds_each_item_once(lists: list[list[int]]) -> None:
    people = people_of([NO_HABITS])
    for items in lists:
        shown(people, items)
    kept = [item for item in people.passed[0].tolist() if item >= 0]
    assert len(kept) == len(set(kept)) <= PASSED_LENGTH
    assert set(lists[-1] if lists else []) <= set(kept)


def test_habits_survive_another_numbering_of_the_items() -> None:
    people = people_of([NO_HABITS])
    people.choice[0] = [1.0, 2.0, 3.0, 0.5]
    shown(people, [0, 1, 2])
    people.pending[0, :2], people.chance[0, :2] = [2, 1], [0.5, 0.25]
    people.fellow[0, :2], people.closeness[0, :2] = [70, 2**31 - 1], [[0.5, 0.0, 0.0], [0.1, 0.25, 3.0]]
    hashes = [100, 200, 300]
    habits = habits_of(people, 0)
    read = people_of([unpack_habits(pack_habits(habits, hashes), {300: 9, 100: 5}, pack_followed(habits))])
    weight = passed(people)
    assert passed(read) == {5: weight[0], 9: weight[2]}, "an unknown item is left out"
    assert read.pending[0, :2].tolist() == [9, -1]
    assert read.chance[0, :2].tolist() == [0.5, 0.0]
    assert read.choice.tolist() == people.choice.tolist()
    assert read.fellow.tolist() == people.fellow.tolist(), "users are known by tags, whatever the items' numbers"
    assert read.closeness.tolist() == people.closeness.tolist()


def test_habits_of_former_releases_are_read_without_what_they_did_not_know() -> None:
    people = people_of([NO_HABITS])
    people.choice[0] = [1.0, 2.0, 3.0, 0.5]
    without_fellows = pack_habits(habits_of(people, 0), [])
    assert len(without_fellows) == 8 * (48 + 16) + 4 * (4 + 3 * 48 + 16)
    read = unpack_habits(without_fellows, {})
    assert read.choice.tolist() == [1.0, 2.0, 3.0, 0.5]
    assert not read.fellow.any()
    tags, sides = np.array([70, 80, 90], "<i4"), np.array([[0.5, 0.0], [0.1, 0.25], [0.0, 1.0]], "<f4")
    read = unpack_habits(without_fellows + tags.tobytes() + sides.tobytes(), {})
    assert read.fellow.tolist() == [70, 80, 90]
    assert read.closeness.tolist() == np.c_[sides, np.zeros(3)].tolist(), "nor whom he followed"


def test_nothing_known_is_nothing_stored_and_a_cut_record_is_refused() -> None:
    assert pack_habits(NO_HABITS, []) == b""
    assert unpack_habits(b"", {}) is NO_HABITS
    made: Habits = habits_of(people_of([NO_HABITS]), 0)
    with pytest.raises(StateError, match="this release reads"):
        unpack_habits(pack_habits(made, [])[:-1], {})
    with pytest.raises(StateError, match="0 fellows were followed"):
        unpack_habits(pack_habits(made, []), {}, bytes(4))
