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

# Choosers kept an item, the latest ones, and fellows kept a user, the closest ones. On articles 32 and 512 do as well
# as everybody, 32 and 128 lose .005 nDCG@10 (models/README.md).
CHOOSERS = 32
FELLOWS = 512
# How close: those who were there before the user, and those who came after him. And of how many of his choices a fellow
# had been the very first chooser: who brings articles has readers.
AHEAD, BEHIND, FIRST = range(3)
SIDES = 3
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
# How often the user chose what the item's first chooser had chosen first.
FIRST_FEATURE = "first_chooser_followed"
# log(1 + 10 n): once is far from never.
_PER_FOLLOWED = np.float32(10.0)
# The work space: a fellow stands at one of two places that follow from his tag, and nobody else there. Eight places to
# a fellow: of 512 two or three find both taken. Those stand apart; after them their number, and room for an item's
# choosers.
_HASHED = 8 * FELLOWS
_APART = _HASHED + FELLOWS
FELLOW_SLOTS = _APART + 1 + CHOOSERS + 1
_MASK, _OTHER_BITS = _HASHED - 1, 12
# exp(-6.9): a closeness of a thousandth says nothing; features start from zero there.
_FLOOR = 1e-3


class Choosers(NamedTuple):
    """Who chose each item for the first time lately, in a ring; and who was the very first."""

    tag: npt.NDArray[np.int32]
    """int32[N, CHOOSERS], 0 = nobody."""
    weight: npt.NDArray[np.float32]
    """float32[N, CHOOSERS], 1 / sqrt(1 + items he had chosen): who chooses everything tells little."""
    time_ms: npt.NDArray[np.int64]
    """int64[N, CHOOSERS], event time of the choice."""
    total: npt.NDArray[np.int64]
    """int64[N], choosers ever."""
    first: npt.NDArray[np.int32]
    """int32[N], the first chooser's tag, 0 = not known."""


def new_choosers(items: int) -> Choosers:
    return Choosers(
        tag=np.zeros((items, CHOOSERS), np.int32),
        weight=np.zeros((items, CHOOSERS), np.float32),
        time_ms=np.zeros((items, CHOOSERS), np.int64),
        total=np.zeros(items, np.int64),
        first=np.zeros(items, np.int32),
    )


def first_choosers(tag: npt.NDArray[np.int32], total: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """`Choosers.first` as far as the ring, which a former release's snapshot has alone, still tells it."""
    return np.where(total <= CHOOSERS, tag[:, 0], 0).astype(np.int32)


@njit(cache=True)
def note_chooser(choosers, item, tag, chosen, event_time_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    """
    Args:
        tag: of the user; 0, from a worker of a former release, notes nothing.
        chosen: items he had chosen before.
    """
    if tag == 0:
        return
    if choosers.total[item] == 0:
        choosers.first[item] = tag
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
        led = _place(fellow, choosers.first[item])
        if led >= 0:
            closeness[led, FIRST] += np.float32(1.0)


@njit(cache=True)
def _meet_choosers(choosers, fellow, closeness, tag, item, since_ms, side):  # type: ignore[no-untyped-def]  # pragma: no cover
    weight = np.float32(1.0 / np.log2(2.0 + choosers.total[item]))
    for k in range(min(choosers.total[item], CHOOSERS)):
        if choosers.tag[item, k] != tag and choosers.time_ms[item, k] > since_ms:
            _closer(fellow, closeness, choosers.tag[item, k], weight * choosers.weight[item, k], side)


@njit(cache=True)
def _place(fellow, tag):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Place of `tag` among the fellows, -1 = not there."""
    if tag == 0:
        return -1
    found = np.int32(-1)
    for k in range(FELLOWS):  # no early exit: the loop is vectorised
        found = max(found, np.int32(k) if fellow[k] == tag else np.int32(-1))
    return np.int64(found)


@njit(cache=True)
def _closer(fellow, closeness, tag, weight, side):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The farthest fellow gives way to one who is closer at once."""
    at = _place(fellow, tag)
    if at < 0:
        at = _free_place(fellow, closeness, weight)
        if at < 0:
            return
        fellow[at] = tag
        closeness[at] = 0.0
    closeness[at, side] += weight


@njit(cache=True, fastmath={"nnan", "nsz"})
def _free_place(fellow, closeness, weight):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A place that nobody has, else that of the farthest fellow, else, where all are closer than `weight`, -1."""
    known = 0
    for k in range(FELLOWS):
        known += fellow[k] != 0
    if known < FELLOWS:
        return known
    least = np.float32(np.inf)
    for k in range(FELLOWS):
        one = closeness[k, AHEAD] + closeness[k, BEHIND]
        least = one if one < least else least
    if least >= weight:
        return -1
    for k in range(FELLOWS):
        if closeness[k, AHEAD] + closeness[k, BEHIND] == least:
            return k
    return -1


@njit(cache=True)
def gather(slots, places, fellow):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Lay a user's fellows out, so that a tag is found at once.

    Args:
        slots, places: int32[FELLOW_SLOTS], int16[FELLOW_SLOTS]; filled anew with tags and their places in `fellow`.
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
        places[at] = k
    slots[_APART] = apart


@njit(cache=True, fastmath={"reassoc", "nnan", "nsz"})
def describe_choosers(choosers, slots, places, closeness, items, norm, levels, shares):  # type: ignore[no-untyped-def]  # pragma: no cover
    """How close the choosers of a list's items are. No branch depends on a tag: who is close is noted, and summed
    afterwards. All items in one call: to hand a tuple of arrays over takes longer than what is done with an item's.

    Args:
        slots, places: `gather` of the user's fellows.
        closeness: float32[FELLOWS, SIDES], of the user.
        items: int32[k].
        norm: what closeness is multiplied by: 1 / sqrt(1 + events of the user).
        levels: float32[k, FELLOW_LEVELS], filled with what the features but the last are the logarithms of.
        shares: float32[k], filled with the last feature.
    """
    known, scale = slots[_APART + 1 :], norm / _FLOOR
    all_tags, totals = choosers.tag, choosers.total
    for row in range(items.shape[0]):
        item = np.uint32(items[row])
        close = 0
        for k in range(CHOOSERS):
            tag = all_tags[item, k]
            first, second = np.uint64(tag & _MASK), np.uint64((tag >> _OTHER_BITS) & _MASK)
            at_first, at_second = slots[first] == tag, slots[second] == tag
            known[close] = first if at_first else second
            close += at_first | at_second
        for other in range(_HASHED, _HASHED + slots[_APART]):
            for k in range(CHOOSERS):
                known[close] = other
                close += all_tags[item, k] == slots[other]
        ahead, both, ahead_best, both_best = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for k in range(close):
            at = np.uint64(places[np.uint64(known[k])])
            one = closeness[at, AHEAD]
            sides = one + closeness[at, BEHIND]
            ahead += one
            both += sides
            ahead_best = one if one > ahead_best else ahead_best
            both_best = sides if sides > both_best else both_best
        inverse = 1.0 / max(min(totals[item], CHOOSERS), 1)
        levels[row, 0] = 1.0 + scale * ahead
        levels[row, 1] = 1.0 + scale * inverse * ahead
        levels[row, 2] = 1.0 + scale * ahead_best
        levels[row, 3] = 1.0 + scale * both
        levels[row, 4] = 1.0 + scale * inverse * both
        levels[row, 5] = 1.0 + scale * both_best
        shares[row] = close * inverse


@njit(cache=True)
def count_followed(choosers, slots, places, closeness, items, levels):  # type: ignore[no-untyped-def]  # pragma: no cover
    """How often the user chose what an item's first chooser had chosen first.

    Args:
        levels: float32[k], filled with what FIRST_FEATURE is the logarithm of; the others as in `describe_choosers`.
    """
    firsts = choosers.first
    for row in range(items.shape[0]):
        tag = firsts[np.uint32(items[row])]
        at = np.uint64(tag & _MASK)
        if slots[at] != tag:
            at = np.uint64((tag >> _OTHER_BITS) & _MASK)
        for other in range(_HASHED, _HASHED + slots[_APART]):
            at = np.uint64(other) if slots[other] == tag else at
        times = closeness[np.uint64(places[at]), FIRST] if slots[at] == tag else np.float32(0.0)
        levels[row] = np.float32(1.0) + _PER_FOLLOWED * times
