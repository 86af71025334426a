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
# Logarithms among them, which the caller takes (`describe_choosers`).
FELLOW_LEVELS = len(FELLOW_FEATURES) - 1
# The work space: a fellow stands at one of two places that follow from his tag, and nobody else there. Eight places to
# a fellow: of 128 one finds both taken. Those stand apart; after them their number, and room for an item's choosers.
_HASHED = 8 * FELLOWS
_APART = _HASHED + FELLOWS
FELLOW_SLOTS = _APART + 1 + CHOOSERS + 1
_MASK, _OTHER_BITS = _HASHED - 1, 10
# exp(-6.9): a closeness of a thousandth says nothing; features start from zero there.
_FLOOR = 1e-3


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
    slots[:_HASHED] = -1  # an item's choosers include 0, nobody
    apart = 0
    for k in range(FELLOWS):
        tag = fellow[k]
        if tag == 0:
            break
        at = tag & _MASK
        if slots[at] >= 0:
            at = (tag >> _OTHER_BITS) & _MASK
        if slots[at] >= 0:
            at = _HASHED + apart
            apart += 1
        slots[at] = tag
        values[at] = closeness[k]
    slots[_APART] = apart


@njit(cache=True, fastmath={"reassoc", "nnan", "nsz"})
def describe_choosers(choosers, slots, values, item, norm, levels):  # type: ignore[no-untyped-def]  # pragma: no cover
    """How close an item's choosers are. No branch depends on a tag: who is close is noted, and summed afterwards.

    Args:
        norm: what closeness is multiplied by: 1 / sqrt(1 + events of the user).
        levels: float32[FELLOW_LEVELS], filled with what the features but the last are the logarithms of.
    Returns: the last feature.
    """
    tags, known = choosers.tag[item], slots[_APART + 1 :]
    close = 0
    for k in range(CHOOSERS):
        tag = tags[k]
        first, second = np.uint64(tag & _MASK), np.uint64((tag >> _OTHER_BITS) & _MASK)
        at_first, at_second = slots[first] == tag, slots[second] == tag
        known[close] = first if at_first else second
        close += at_first | at_second
    for other in range(_HASHED, _HASHED + slots[_APART]):
        for k in range(CHOOSERS):
            known[close] = other
            close += tags[k] == slots[other]
    ahead, both, ahead_best, both_best = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for k in range(close):
        at = np.uint64(known[k])
        one = values[at, AHEAD]
        sides = one + values[at, BEHIND]
        ahead += one
        both += sides
        ahead_best = one if one > ahead_best else ahead_best
        both_best = sides if sides > both_best else both_best
    inverse = 1.0 / max(min(choosers.total[item], CHOOSERS), 1)
    scale = norm / _FLOOR
    levels[0] = 1.0 + scale * ahead
    levels[1] = 1.0 + scale * inverse * ahead
    levels[2] = 1.0 + scale * ahead_best
    levels[3] = 1.0 + scale * both
    levels[4] = 1.0 + scale * inverse * both
    levels[5] = 1.0 + scale * both_best
    return close * inverse
