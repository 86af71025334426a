"""What a learned ranker knows of the user beside his taste: how fresh and how popular his choices are, what he was
shown in vain, and who his fellows are. Compiled passes over the users of a slice; their lasting form lies in the user's
state.

Source: research/joint-ranker.md ("user: habits", "passed over").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from models.domain.errors import StateError
from models.domain.fellows import FELLOWS, FIRST, SIDES, meet
from models.domain.statistics import MS_PER_HOUR

# Age (log hours), touches (log), recency (log events since the last touch) and value of what the user chose.
HABITS = 4
HABIT_AGE, HABIT_TOUCHES, HABIT_RECENCY, HABIT_VALUE = range(HABITS)
# Means over the last five and the last ten choices: freshness is a mood, taste for the popular a trait.
_KEEP = np.array([0.8, 0.9, 0.8, 0.9], np.float32)
# Items a user was shown in vain, kept by their weight: a page of lists, 1 KiB in the user's state.
PASSED_LENGTH = 48
# Of each list only what the encoder holds for likely counts as passed over.
PENDING_LENGTH = 16
# Sum of probabilities, the same fading by .8 an event, and times in the list's head fading by .95.
_PASSED_KEEP = np.array([1.0, 0.8, 0.95], np.float32)


class Habits(NamedTuple):
    """One user's; never changed in place."""

    choice: npt.NDArray[np.float32]
    """float32[HABITS], running means; NaN where nothing was chosen yet."""
    passed: npt.NDArray[np.int32]
    """int32[PASSED_LENGTH], item indices, -1 = free."""
    weight: npt.NDArray[np.float32]
    """float32[PASSED_LENGTH, 3]."""
    pending: npt.NDArray[np.int32]
    """int32[PENDING_LENGTH], head of the list published last, -1 padded: passed over once the user does something."""
    chance: npt.NDArray[np.float32]
    """float32[PENDING_LENGTH], the encoder's probability of each."""
    fellow: npt.NDArray[np.int32]
    """int32[<= FELLOWS], tags of users: most have few, and tens of thousands of states are kept in memory."""
    closeness: npt.NDArray[np.float32]
    """float32[as many, SIDES]."""


NO_HABITS = Habits(
    np.full(HABITS, np.nan, np.float32),
    np.full(PASSED_LENGTH, -1, np.int32),
    np.zeros((PASSED_LENGTH, 3), np.float32),
    np.full(PENDING_LENGTH, -1, np.int32),
    np.zeros(PENDING_LENGTH, np.float32),
    np.zeros(0, np.int32),
    np.zeros((0, SIDES), np.float32),
)
_ITEMS = PASSED_LENGTH + PENDING_LENGTH
_NUMBERS = HABITS + 3 * PASSED_LENGTH + PENDING_LENGTH
# What there is of every user, and what each of his fellows takes.
_FIXED_BYTES, _FELLOW_BYTES = 8 * _ITEMS + 4 * _NUMBERS, 4 + 4 * FIRST


def pack_habits(habits: Habits, hashes: Sequence[int]) -> bytes:
    """As bytes that mean the same under another numbering of the items; b"" for a user of whom nothing is known.

    Args:
        hashes: of every item, by index.
    """
    if habits is NO_HABITS:
        return b""
    items = [hashes[at] if at >= 0 else 0 for at in (*habits.passed.tolist(), *habits.pending.tolist())]
    numbers = (habits.choice, habits.weight, habits.chance)
    fellows = habits.fellow.astype("<i4").tobytes(), habits.closeness[:, :FIRST].astype("<f4").tobytes()
    return b"".join([np.array(items, "<u8").tobytes(), *(part.astype("<f4").tobytes() for part in numbers), *fellows])


def pack_followed(habits: Habits) -> bytes:
    """How often each fellow was followed, which former releases' habits do not hold."""
    return habits.closeness[:, FIRST].astype("<f4").tobytes()


def unpack_habits(data: bytes, index_by_hash: Mapping[int, int], followed: bytes = b"") -> Habits:
    """Items that the catalogue does not know are left out.

    Args:
        followed: of `pack_followed`; empty from a former release.
    Raises: StateError.
    """
    if not data:
        return NO_HABITS
    known, rest = divmod(len(data) - _FIXED_BYTES, _FELLOW_BYTES)
    if rest or not 0 <= known <= FELLOWS:
        raise StateError(f"habits of {len(data)} bytes; this release reads {_FIXED_BYTES} and {_FELLOW_BYTES} a fellow")
    if followed and len(followed) != 4 * known:
        raise StateError(f"{len(followed)} bytes tell how often {known} fellows were followed, not {4 * known}")
    index = np.array([index_by_hash.get(h, -1) for h in np.frombuffer(data, "<u8", _ITEMS).tolist()], np.int32)
    floats = np.frombuffer(data, "<f4", _NUMBERS, 8 * _ITEMS).astype(np.float32)
    closeness = np.zeros((known, SIDES), np.float32)
    closeness[:, :FIRST] = np.frombuffer(data, "<f4", FIRST * known, _FIXED_BYTES + 4 * known).reshape(known, FIRST)
    if followed:
        closeness[:, FIRST] = np.frombuffer(followed, "<f4")
    pending = index[PASSED_LENGTH:]
    there = pending >= 0  # what waits for a verdict stands without gaps
    waiting, chance = np.full(PENDING_LENGTH, -1, np.int32), np.zeros(PENDING_LENGTH, np.float32)
    waiting[: there.sum()], chance[: there.sum()] = pending[there], floats[-PENDING_LENGTH:][there]
    return Habits(
        choice=floats[:HABITS],
        passed=index[:PASSED_LENGTH],
        weight=floats[HABITS : HABITS + 3 * PASSED_LENGTH].reshape(PASSED_LENGTH, 3),
        pending=waiting,
        chance=chance,
        fellow=np.frombuffer(data, "<i4", known, _FIXED_BYTES).astype(np.int32),
        closeness=closeness,
    )


class People(NamedTuple):
    """The habits of the users of a slice, one row a user."""

    choice: npt.NDArray[np.float32]
    passed: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    pending: npt.NDArray[np.int32]
    chance: npt.NDArray[np.float32]
    fellow: npt.NDArray[np.int32]
    """int32[U, FELLOWS], 0 = free; those in use stand first."""
    closeness: npt.NDArray[np.float32]


def people_of(habits: Iterable[Habits]) -> People:
    rows = list(habits) or [NO_HABITS]
    fellow = np.zeros((len(rows), FELLOWS), np.int32)
    closeness = np.zeros((len(rows), FELLOWS, SIDES), np.float32)
    for row, one in enumerate(rows):
        fellow[row, : len(one.fellow)], closeness[row, : len(one.fellow)] = one.fellow, one.closeness
    return People(
        choice=np.stack([one.choice for one in rows]),
        passed=np.stack([one.passed for one in rows]),
        weight=np.stack([one.weight for one in rows]),
        pending=np.stack([one.pending for one in rows]),
        chance=np.stack([one.chance for one in rows]),
        fellow=fellow,
        closeness=closeness,
    )


def habits_of(people: People, row: int) -> Habits:
    known = np.count_nonzero(people.fellow[row])
    whole = people._replace(fellow=people.fellow[:, :known], closeness=people.closeness[:, :known])
    return Habits(*(column[row].copy() for column in whole))


@njit(cache=True)
def choose(arrays, people, row, item, event_time_ms, value, first, tag, recent, since_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Note a choice, before it is counted."""
    seen = arrays.touches[item]
    if first:
        if seen > 0.0:
            age = np.log(max(event_time_ms - arrays.born_ms[item], 0) / MS_PER_HOUR + 0.1)
            _mean(people, row, HABIT_AGE, age)
            _mean(people, row, HABIT_RECENCY, np.log1p(max(arrays.clock[0] - arrays.touched_at[item], 0.0)))
        _mean(people, row, HABIT_TOUCHES, np.log1p(seen))
    _mean(people, row, HABIT_VALUE, value)
    meet(arrays.choosers, people.fellow[row], people.closeness[row], tag, item, first, recent, since_ms)


@njit(cache=True)
def _mean(people, row, habit, value):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    before = people.choice[row, habit]
    keep = _KEEP[habit]
    people.choice[row, habit] = value if np.isnan(before) else keep * before + (1.0 - keep) * value


@njit(cache=True)
def pass_over(people, row):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The list published last was looked at: its head joins what was passed over, the lightest entries give way."""
    passed, weight = people.passed[row], people.weight[row]
    for p in range(PASSED_LENGTH):
        for w in range(3):
            weight[p, w] *= _PASSED_KEEP[w]
    for k in range(PENDING_LENGTH):
        item = people.pending[row, k]
        if item < 0:
            break
        at = -1
        lightest = 0
        for p in range(PASSED_LENGTH):
            if passed[p] == item:
                at = p
            if passed[p] < 0:
                if passed[lightest] >= 0:
                    lightest = p
            elif passed[lightest] >= 0 and weight[p, 2] < weight[lightest, 2]:
                lightest = p
        if at < 0:
            at = lightest
            if passed[at] >= 0 and weight[at, 2] >= 1.0:
                continue  # everything kept was shown more often
            passed[at] = item
            weight[at] = 0.0
        weight[at, 0] += people.chance[row, k]
        weight[at, 1] += people.chance[row, k]
        weight[at, 2] += 1.0
        people.pending[row, k] = -1
