"""Fellows: users who chose what a user chose. Where items live for hours, users are what lasts: an article of this
morning has no history, but those who opened it have. Compiled passes.

An item keeps who chose it last, as part of the statistics; a user keeps whom he met there, as part of his habits. Both
are bounded. Users are known by tags, which their states hold: once a user is forgotten, his tag points nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

# Choosers kept an item, the latest ones, and fellows kept a user, the closest ones. Validation part of the article
# stream, nDCG@10 of three seeds: none .489, 32 and 128 .504, everybody .512 (models/README.md).
CHOOSERS = 32
FELLOWS = 128
# How close: those who were there before the user, and those who came after him.
AHEAD, BEHIND = range(2)
SIDES = 2
# Of those ahead, and of both together: closeness to the item's choosers in all, on average, to the closest. And which
# share of them is close at all.
FELLOW_FEATURES = (
    "fellows_ahead",
    "fellows_ahead_mean",
    "fellows_ahead_best",
    "fellows",
    "fellows_mean",
    "fellows_best",
    "fellows_share",
)
# Places of the work space, four to a fellow, so that a look takes one or two steps.
FELLOW_SLOTS = 4 * FELLOWS
# exp(-6.9): a closeness of a thousandth says nothing; features start from zero there.
_FLOOR = 1e-3
_LOG_FLOOR = np.log(_FLOOR)


class Choosers(NamedTuple):
    """Who chose each item for the first time lately, in a ring."""

    tag: npt.NDArray[np.int32]
    """int32[N, CHOOSERS], 0 = nobody."""
    weight: npt.NDArray[np.float32]
    """float32[N, CHOOSERS], 1 / sqrt(1 + items he had chosen): who chooses everything tells little."""
    time_ms: npt.NDArray[np.int64]
    """int64[N, CHOOSERS], event time of the choice."""
    total: npt.NDArray[np.int64]
    """int64[N], choosers ever."""


def new_choosers(items: int) -> Choosers:
    return Choosers(
        tag=np.zeros((items, CHOOSERS), np.int32),
        weight=np.zeros((items, CHOOSERS), np.float32),
        time_ms=np.zeros((items, CHOOSERS), np.int64),
        total=np.zeros(items, np.int64),
    )


@njit(cache=True)
def note_chooser(choosers, item, tag, chosen, event_time_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    """
    Args:
        tag: of the user; 0, from a worker of a former release, notes nothing.
        chosen: items he had chosen before.
    """
    if tag == 0:
        return
    at = choosers.total[item] % CHOOSERS
    choosers.tag[item, at] = tag
    choosers.weight[item, at] = 1.0 / np.sqrt(1.0 + chosen)
    choosers.time_ms[item, at] = event_time_ms
    choosers.total[item] += 1


@njit(cache=True)
def meet(choosers, fellow, closeness, tag, item, first, recent, since_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    """A user chooses `item` and is not noted there yet. Who came to his latest items since he was seen last is behind
    him, who was there before him is ahead. To meet where few go means more.

    Args:
        fellow, closeness: int32[FELLOWS], float32[FELLOWS, SIDES], of the user.
        first: whether it is his first choice of the item.
        recent: int32[*], his latest distinct items before this one, -1 padded.
        since_ms: time of his event before.
    """
    for k in range(recent.shape[0]):
        if recent[k] < 0:
            break
        _meet_choosers(choosers, fellow, closeness, tag, recent[k], since_ms, BEHIND)
    if first:
        _meet_choosers(choosers, fellow, closeness, tag, item, np.int64(-1), AHEAD)


@njit(cache=True)
def _meet_choosers(choosers, fellow, closeness, tag, item, since_ms, side):  # type: ignore[no-untyped-def]  # pragma: no cover
    weight = np.float32(1.0 / np.log2(2.0 + choosers.total[item]))
    for k in range(min(choosers.total[item], CHOOSERS)):
        if choosers.tag[item, k] != tag and choosers.time_ms[item, k] > since_ms:
            _closer(fellow, closeness, choosers.tag[item, k], weight * choosers.weight[item, k], side)


@njit(cache=True)
def _closer(fellow, closeness, tag, weight, side):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The farthest fellow gives way to one who is closer at once."""
    farthest = 0
    least = np.float32(np.inf)
    for k in range(FELLOWS):
        if fellow[k] == tag:
            closeness[k, side] += weight
            return
        if fellow[k] == 0:
            fellow[k] = tag
            closeness[k, side] = weight
            return
        if closeness[k, AHEAD] + closeness[k, BEHIND] < least:
            farthest, least = k, closeness[k, AHEAD] + closeness[k, BEHIND]
    if least < weight:
        fellow[farthest] = tag
        closeness[farthest] = 0.0
        closeness[farthest, side] = weight


@njit(cache=True)
def gather(slots, values, fellow, closeness):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Lay a user's fellows out for `describe_choosers`.

    Args:
        slots, values: int32[FELLOW_SLOTS], float32[FELLOW_SLOTS, SIDES]; filled anew.
    """
    slots[:] = 0
    for k in range(FELLOWS):
        if fellow[k] == 0:
            break
        at = fellow[k] % FELLOW_SLOTS
        while slots[at] != 0:
            at = (at + 1) % FELLOW_SLOTS
        slots[at] = fellow[k]
        values[at] = closeness[k]


@njit(cache=True)
def describe_choosers(choosers, slots, values, item, norm, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """
    Args:
        norm: what closeness is multiplied by: 1 / sqrt(1 + events of the user).
        out: float32[len(FELLOW_FEATURES)], filled.
    """
    count = min(choosers.total[item], CHOOSERS)
    ahead, ahead_best, both, both_best, close = 0.0, 0.0, 0.0, 0.0, 0
    for k in range(count):
        tag = choosers.tag[item, k]
        at = tag % FELLOW_SLOTS
        while slots[at] != 0 and slots[at] != tag:
            at = (at + 1) % FELLOW_SLOTS
        if slots[at] == tag:
            one, other = values[at, AHEAD], values[at, BEHIND]
            ahead += one
            ahead_best = max(ahead_best, one)
            both += one + other
            both_best = max(both_best, one + other)
            close += 1
    share = norm / max(count, 1)
    out[0] = np.log(_FLOOR + norm * ahead) - _LOG_FLOOR
    out[1] = np.log(_FLOOR + share * ahead) - _LOG_FLOOR
    out[2] = np.log(_FLOOR + norm * ahead_best) - _LOG_FLOOR
    out[3] = np.log(_FLOOR + norm * both) - _LOG_FLOOR
    out[4] = np.log(_FLOOR + share * both) - _LOG_FLOOR
    out[5] = np.log(_FLOOR + norm * both_best) - _LOG_FLOOR
    out[6] = close / max(count, 1)
