"""Circumstances: when in the stream an item came, and when in their lives its choosers came to it. Compiled passes.

An article that a mail brings is opened by those who come once a month, this morning's by those who come every hour;
some films are rated by newcomers, others by whoever has rated hundreds. What an item's choosers had in common is
compared with the user as he is now. Knows item indices only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from models.domain.fellows import CHOOSERS

# Of the item: its age in events (a night without events ages nothing), how often it was touched and chosen for the
# first time in an event of its life. Of its choosers: how much they had chosen before, how long they had been away, and
# how far the user is from that. Since he was here last: whether it is new, and how many chose it.
CIRCUMSTANCE_FEATURES = (
    "age_events",
    "touch_rate",
    "choice_rate",
    "choosers_history",
    "history_off_choosers",
    "choosers_gap",
    "gap_off_choosers",
    "born_since_visit",
    "choosers_since_visit",
)
# Logarithms among them, which the caller takes (`measure`): the features' first three and the last one.
CIRCUMSTANCE_LEVELS = 4
# Of what a touch says of its user: a user's first event, and a worker of a former release, which does not say.
FIRST_EVENT, NOT_TOLD = -1, -2
# log minutes since the event before of a user who comes for the first time: six years.
NO_GAP = 15.0
# An item that nobody touched is as old as a stream of a hundred thousand events.
_NO_AGE = 1e5
# Everybody's mean counts as three choosers: one alone says little.
_PRIOR = 3.0
# Rates are shares of an event; half a touch and ten events keep the first ones from being certain.
_HALF, _BEFORE = 0.5, 10.0


class Circumstances(NamedTuple):
    """Sums over an item's first choices whose circumstances are known."""

    born_at: npt.NDArray[np.float64]
    """float64[N], event clock of the first touch, -1 before it."""
    history: npt.NDArray[np.float64]
    """float64[N], sum of log(1 + distinct items the chooser had chosen before)."""
    gap: npt.NDArray[np.float64]
    """float64[N], sum of log(1 + minutes since the chooser's event before)."""
    told: npt.NDArray[np.float64]
    """float64[N], how many they are."""
    everybody: npt.NDArray[np.float64]
    """float64[3], the same three over all items."""


PER_ITEM = ("born_at", "history", "gap", "told")


def new_circumstances(items: int) -> Circumstances:
    return Circumstances(np.full(items, -1.0), np.zeros(items), np.zeros(items), np.zeros(items), np.zeros(3))


@njit(cache=True)
def log_gap(gap_ms):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """log(1 + minutes) since a user's event before.

    Args:
        gap_ms: FIRST_EVENT where there is none.
    """
    return NO_GAP if gap_ms < 0 else np.log(gap_ms / 60_000.0 + 1.0)


@njit(cache=True)
def note_circumstances(circumstances, item, clock, first, chosen, gap_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Note a touch.

    Args:
        clock: touches counted, this one included.
        first: whether it is the user's first choice of the item.
        chosen: distinct items he had chosen before.
        gap_ms: since his event before; FIRST_EVENT, NOT_TOLD.
    """
    if circumstances.born_at[item] < 0.0:
        circumstances.born_at[item] = clock
    if not first or gap_ms == NOT_TOLD:
        return
    history, gap = np.log(1.0 + chosen), log_gap(gap_ms)
    circumstances.history[item] += history
    circumstances.gap[item] += gap
    circumstances.told[item] += 1.0
    circumstances.everybody[0] += history
    circumstances.everybody[1] += gap
    circumstances.everybody[2] += 1.0


@njit(cache=True)
def usual(circumstances):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(log history, log gap) of a choice, everybody's mean."""
    count = max(circumstances.everybody[2], 1.0)
    return circumstances.everybody[0] / count, circumstances.everybody[1] / count


@njit(cache=True)
def measure(circumstances, choosers, items, clock, touches, born_ms, touched_ms, since_ms, levels, born_since):  # type: ignore[no-untyped-def]  # pragma: no cover
    """
    Args:
        items: int32[k], of a list.
        touches, born_ms, touched_ms: of all items.
        since_ms: time of the user's latest event, -1 = none.
        levels: float32[k, CIRCUMSTANCE_LEVELS], filled with what some features are the logarithms of.
        born_since: bool[k], filled: whether the item came since.
    """
    born_ats, totals, times_ms = circumstances.born_at, choosers.total, choosers.time_ms
    for row in range(items.shape[0]):
        item = np.uint32(items[row])
        born_at, total = born_ats[item], totals[item]
        age = clock - born_at if born_at >= 0.0 else _NO_AGE
        per_event = 1.0 / (age + _BEFORE)
        levels[row, 0] = 1.0 + age
        levels[row, 1] = (touches[item] + _HALF) * per_event
        levels[row, 2] = (total + _HALF) * per_event
        since = 0
        if touched_ms[item] > since_ms:  # of most items nothing is new
            for k in range(min(total, CHOOSERS)):
                since += times_ms[item, k] > since_ms
        levels[row, 3] = 1.0 + since
        born_since[row] = (born_at >= 0.0) & (born_ms[item] > since_ms)


@njit(cache=True)
def describe_circumstances(circumstances, items, history, gap, levels, born_since, features):  # type: ignore[no-untyped-def]  # pragma: no cover
    """
    Args:
        items: int32[k], of a list.
        history, gap: log(1 + distinct items) and log(1 + minutes) of the user, as of an item's choosers.
        levels: float32[k, CIRCUMSTANCE_LEVELS], the logarithms.
        born_since: bool[k], as `measure` found it.
        features: float32[>= k, len(CIRCUMSTANCE_FEATURES)], filled.
    """
    mean_history, mean_gap = usual(circumstances)
    histories, gaps, told = circumstances.history, circumstances.gap, circumstances.told
    for row in range(items.shape[0]):
        item, level, f = np.uint32(items[row]), levels[row], features[row]
        weight = 1.0 / (told[item] + _PRIOR)
        usual_history = (histories[item] + _PRIOR * mean_history) * weight
        usual_gap = (gaps[item] + _PRIOR * mean_gap) * weight
        f[0], f[1], f[2] = level[0], level[1], level[2]
        f[3], f[4] = usual_history, abs(history - usual_history)
        f[5], f[6] = usual_gap, abs(gap - usual_gap)
        f[7] = 1.0 if born_since[row] else 0.0
        f[8] = level[3]
