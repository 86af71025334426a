"""Candidate sources of one list: who proposes what, and in which order the proposals are taken. Compiled.

Owns the query of a list, the arrays it is written into and the work space; knows item indices only. What the ranker
sees of a candidate is `models.domain.features`' affair.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from models.domain.fellows import FELLOW_SLOTS
from models.domain.places import places
from models.domain.statistics import FOLLOW_WINDOW, nearness

# In the order in which they are asked; the name of the source is published with each item. States keep places of this
# tuple: after a change, the last few lists of before it are told with wrong sources.
SOURCES: tuple[str, ...] = (
    "covisitation",
    "encoder",
    "trending_10_events",
    "trending_100_events",
    "popular_24_hours",
    "popular_10000_events",
    "new_and_rising",
    "latest",
    "catalogue",
)
# The sources that compete; the last one only fills a list that would otherwise be short.
SOURCE_COUNT = len(SOURCES) - 1
CATALOGUE = SOURCES.index("catalogue")
COVISITATION = SOURCES.index("covisitation")
# Candidates below which the catalogue itself is asked: a list's length, so that what nobody chose displaces nothing.
FEW_CANDIDATES = 10
# Places of the co-visitation source that can be reached.
COVISITED = 128
# A log-linear ranker's first ten hardly ever stand deeper by every source: 200 gave films .1141 and articles .5222
# nDCG@10, 120 .1146 and .5207, for two thirds of the time.
CANDIDATES = 128
# Latest items that co-visitation is summed over: with decay .8 the thirteenth weighs 5%; twenty were no better (films
# .1141, twelve .1142 nDCG@10) and cost a third more.
QUERY_WINDOW = 12
# A learned ranker reads slower decays too (.95 at twelve still weighs 54%).
LEARNED_QUERY_WINDOW = 20
# A list is explained by one of the latest five items: an older one rarely carries it, and every item asked costs a
# comparison.
REASON_WINDOW = 5
# Added to all that the last item was ever near to: a single pair is no certainty.
_NEAR_PRIOR = 3.0
# Columns of Scratch.covisit and Scratch.follow.
COVISIT_80, COVISIT_95, COVISIT_50, COVISIT_LAST, COVISIT_LIKED = range(5)
COVISIT_NEAR, COVISIT_NEAR_NOW, COVISIT_NEAR_LAST = range(5, 8)
COVISIT_COLUMNS = 8
FOLLOW_THREE, FOLLOW_LAST, FOLLOW_SECOND = range(3)
FOLLOW_COLUMNS = 3


class Query(NamedTuple):
    """For whom and when a list is made: one row a list."""

    user: npt.NDArray[np.float32]
    """float32[L, D], user vectors."""
    now_ms: npt.NDArray[np.int64]
    last_ms: npt.NDArray[np.int64]
    """int64[L], the user's event before, -1 = none."""
    recent: npt.NDArray[np.int32]
    """int32[L, QUERY_WINDOW or LEARNED_QUERY_WINDOW], latest distinct items first, -1 padded."""
    recent_ms: npt.NDArray[np.int64]
    """int64[L, as many], time of the user's latest interaction with each."""
    liked: npt.NDArray[np.bool_]
    """bool[L, LEARNED_QUERY_WINDOW], whether the user spoke well of the item."""
    history: npt.NDArray[np.float32]
    """float32[L], events the user has had."""
    chosen: npt.NDArray[np.float32]
    """float32[L], distinct items he has chosen."""
    person: npt.NDArray[np.int64]
    """int64[L], row of `People`."""
    target: npt.NDArray[np.int32]
    """int32[L], what was chosen of the list, where that is known: to see which sources reach it; -1 = not known."""
    deep: npt.NDArray[np.bool_]
    """bool[L], whether every feature of the candidates is filled in, or only those that a log-linear ranker reads."""
    encoder_top: npt.NDArray[np.int32]
    """int32[L, E], the vector index's proposals, best first, -1 padded."""
    newest: npt.NDArray[np.int32]
    """int32[*], items of the catalogue, the latest declared first: proposed where nobody did anything yet."""
    excluded_from: npt.NDArray[np.int64]
    """int64[L], where the user's excluded items start in `excluded`."""
    excluded_to: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.int32]
    """int32[*], item indices, all users one after the other; -1 = none."""


class Lists(NamedTuple):
    """The candidates of each list and what is known of them."""

    item: npt.NDArray[np.int32]
    """int32[L, K], -1 padded."""
    size: npt.NDArray[np.int32]
    source: npt.NDArray[np.int8]
    """int8[L, K], index into SOURCES of the source that proposed the item first."""
    because: npt.NDArray[np.int32]
    """int32[L, K], the recent item that co-visitation owes the candidate to most, -1 for none."""
    reached: npt.NDArray[np.bool_]
    """bool[L, SOURCE_COUNT], whether the source came to the query's target before the list was full."""
    features: npt.NDArray[np.float32]
    """float32[L, K, F]; zero rows where there is no candidate. Where the list is not `deep`, zero columns too."""


class Scratch(NamedTuple):
    """Work space over the catalogue, all zero (or below the stamp) between lists."""

    stamp: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.int64]
    listed: npt.NDArray[np.int64]
    covisit: npt.NDArray[np.float32]
    """float32[N, 8]: summed with decays .8, .95, .5; of the last item; of liked items; pairs by their nearness in time
    with decay .9; these times the recent item's nearness to now; of the last item alone."""
    follow: npt.NDArray[np.float32]
    """float32[N, 3], what followed the latest three items, the last one, the one before it."""
    strongest: npt.NDArray[np.float32]
    because: npt.NDArray[np.int32]
    touched: npt.NDArray[np.int32]
    """int32[N + 1]; the last entry is how many are touched."""
    covisited: npt.NDArray[np.int32]
    """int32[COVISITED], the best by co-visitation, best first."""
    passed: npt.NDArray[np.int32]
    """int32[N], 1 + place of the item among those the user passed over, 0 = not among them."""
    fellow_slots: npt.NDArray[np.int32]
    fellow_places: npt.NDArray[np.int16]
    """int32[FELLOW_SLOTS] and int16[FELLOW_SLOTS], `fellows.gather` of the user; nothing of the list before is read."""


def new_lists(lists: int, features: int, candidates: int = CANDIDATES) -> Lists:
    return Lists(
        item=np.full((lists, candidates), -1, np.int32),
        size=np.zeros(lists, np.int32),
        source=np.zeros((lists, candidates), np.int8),
        because=np.full((lists, candidates), -1, np.int32),
        reached=np.zeros((lists, SOURCE_COUNT), np.bool_),
        features=np.zeros((lists, candidates, features), np.float32),
    )


def new_scratch(items: int) -> Scratch:
    return Scratch(
        stamp=np.zeros(1, np.int64),
        excluded=np.zeros(items, np.int64),
        listed=np.zeros(items, np.int64),
        covisit=np.zeros((items, COVISIT_COLUMNS), np.float32),
        follow=np.zeros((items, FOLLOW_COLUMNS), np.float32),
        strongest=np.zeros(items, np.float32),
        because=np.full(items, -1, np.int32),
        touched=np.zeros(items + 1, np.int32),
        covisited=np.zeros(COVISITED, np.int32),
        passed=np.zeros(items, np.int32),
        fellow_slots=np.zeros(FELLOW_SLOTS, np.int32),
        fellow_places=np.zeros(FELLOW_SLOTS, np.int16),
    )


@njit(cache=True)
def propose(arrays, scratch, available, query, lists, row, turns, learned):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Fill in the candidates of list `row`; leaves the co-visitation sums in the scratch for the features."""
    scratch.stamp[0] += 1
    for e in range(query.excluded_from[row], query.excluded_to[row]):
        if query.excluded[e] >= 0:
            scratch.excluded[query.excluded[e]] = scratch.stamp[0]
    best = _sum_covisitation(arrays, scratch, available, query, row, learned)
    _take_turns(arrays, scratch, available, query, lists, row, turns, best)


@njit(cache=True)
def _sum_covisitation(arrays, scratch, available, query, row, learned):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Sum what was chosen near the latest items. Returns: how many of the best stand in `scratch.covisited`."""
    recent, pairs, follows = query.recent[row], arrays.pairs, arrays.follows
    follow, members = scratch.follow, scratch.touched
    touched = 0
    decay_80, decay_95, decay_50, decay_90 = 1.0, 1.0, 1.0, 1.0
    window = LEARNED_QUERY_WINDOW if learned else QUERY_WINDOW
    for age in range(min(window, recent.shape[0])):
        other = recent[age]
        if other < 0:
            break
        norm = pairs.inverse_root[other]
        w80, w95 = np.float32(decay_80 * norm), np.float32(decay_95 * norm)
        w50, liked, w90, w_now = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        if learned:
            w50 = np.float32(decay_50 * norm)
            liked = np.float32(w80 if query.liked[row, age] else 0.0)
            w90 = np.float32(decay_90 * pairs.near_root[other])
            w_now = w90 * nearness(max(query.now_ms[row] - query.recent_ms[row, age], 0))
        decay_80 *= 0.8
        decay_95 *= 0.95
        decay_50 *= 0.5
        decay_90 *= 0.9
        start, end = pairs.start[other], pairs.start[other] + pairs.size[other]
        neighbour, weight, near = pairs.neighbour[start:end], pairs.weight[start:end], pairs.near[start:end]
        touched = _add_neighbours(
            neighbour, weight, near, w80, w95, w50, liked, w90, w_now, scratch.covisit, members, touched
        )
        if learned and age == 0:
            of_last = np.float32(1.0 / (pairs.near_total[other] + _NEAR_PRIOR))
            for k in range(neighbour.shape[0]):
                scratch.covisit[neighbour[k], COVISIT_LAST] = weight[k]
                scratch.covisit[neighbour[k], COVISIT_NEAR_LAST] = near[k] * of_last
        if age < REASON_WINDOW:
            _explain(neighbour, weight, w80, other, scratch.strongest, scratch.because)
        if age < FOLLOW_WINDOW:
            follow_norm = np.float32(0.6**age / (follows.total[other] + 3.0))
            for k in range(follows.start[other], follows.start[other] + follows.size[other]):
                share = follows.weight[k] * follow_norm
                follow[follows.neighbour[k], FOLLOW_THREE] += share
                if learned and age < 2:
                    follow[follows.neighbour[k], FOLLOW_LAST + age] = share
    members[members.shape[0] - 1] = touched
    return _best_covisited(arrays, scratch, available, touched)


@njit(cache=True)
def _add_neighbours(neighbour, weight, near, w80, w95, w50, liked, w90, w_now, covisit, members, touched):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add one item's pairs to the sums. Without a branch: which neighbours are new is a toss-up, and guessing wrong
    took longer than the sums. Returns: how many items are touched by now.
    """
    for k in range(neighbour.shape[0]):
        item, pair = np.uint32(neighbour[k]), weight[k]
        before = covisit[item, COVISIT_95]
        covisit[item, COVISIT_80] += w80 * pair
        covisit[item, COVISIT_95] = before + w95 * pair
        covisit[item, COVISIT_50] += w50 * pair
        covisit[item, COVISIT_LIKED] += liked * pair
        covisit[item, COVISIT_NEAR] += w90 * near[k]
        covisit[item, COVISIT_NEAR_NOW] += w_now * near[k]
        members[touched] = item  # the place after the last one is free, at the worst that of their number
        touched += before == 0.0
    return touched


@njit(cache=True)
def _explain(neighbour, weight, w80, other, strongest, because):  # type: ignore[no-untyped-def]  # pragma: no cover
    for k in range(neighbour.shape[0]):
        item = np.uint32(neighbour[k])
        share, most = w80 * weight[k], strongest[item]
        better = share > most
        strongest[item] = share if better else most
        because[item] = other if better else because[item]


# Keys are told apart by their exponent and three bits of the mantissa: positive numbers are ordered as their bits are.
_BIN_BITS = 20
_BINS = 1 << (31 - _BIN_BITS)


@njit(cache=True)
def _best_covisited(arrays, scratch, available, touched):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Norm the sums and put the best into `scratch.covisited`. Counted by size first, so that hardly more are sorted
    than are kept. Returns: how many.
    """
    stamp, covisit, inverse_root, members = (
        scratch.stamp[0],
        scratch.covisit,
        arrays.pairs.inverse_root,
        scratch.touched,
    )
    keys, held, limit = np.empty(touched, np.float32), np.zeros(_BINS, np.int32), scratch.covisited.shape[0]
    bits = keys.view(np.int32)
    for m in range(touched):
        item = np.uint32(members[m])
        key = covisit[item, COVISIT_80] * inverse_root[item]
        covisit[item, COVISIT_80] = key
        keys[m] = key if (scratch.excluded[item] != stamp) & available[item] else np.float32(0.0)
        held[np.uint32(bits[m]) >> np.uint32(_BIN_BITS)] += 1
    last, reached = _BINS, 0
    while reached < limit and last > 0:
        last -= 1
        reached += held[last]
    least, count = max(np.int32(last << _BIN_BITS), np.int32(1)), 0  # 0 = may not be proposed
    found, found_keys = np.empty(touched + 1, np.int32), np.empty(touched + 1, np.float32)
    for m in range(touched):
        found[count], found_keys[count] = members[m], keys[m]
        count += bits[m] >= least
    by_key = places(found_keys[:count])
    for k in range(count):
        place = np.int64(by_key[k])
        if place < limit:
            scratch.covisited[place] = found[k]
    return min(count, limit)


def turns_of(worth: npt.NDArray[np.float64], depth: int) -> npt.NDArray[np.int8]:
    """Which source is asked when: place / worth is least, so that one of twice the worth gives two candidates for one.

    Args:
        worth: float64[SOURCE_COUNT], positive.
        depth: turns of each source; none has more to propose than that.
    Returns: int8[SOURCE_COUNT * depth].
    """
    source = np.repeat(np.arange(SOURCE_COUNT), depth)
    return source[np.lexsort((source, np.tile(np.arange(1, depth + 1), SOURCE_COUNT) / worth[source]))].astype(np.int8)


@njit(cache=True)
def _take_turns(arrays, scratch, available, query, lists, row, turns, best):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Each source's next item, in the order of `turns`, until the list is full or nobody has any more."""
    stamp, target, limit = scratch.stamp[0], query.target[row], lists.item.shape[1]
    excluded, listed, explained = scratch.excluded, scratch.listed, scratch.because
    items, sources, because = lists.item[row], lists.source[row], lists.because[row]
    covisited, encoder_top = scratch.covisited, query.encoder_top[row]
    asked, held = np.zeros(SOURCE_COUNT, np.int64), np.zeros(SOURCE_COUNT, np.int64)
    held[0], held[1], held[2:] = best, encoder_top.shape[0], arrays.top_size
    size, left = 0, SOURCE_COUNT
    for turn in range(turns.shape[0]):
        if size >= limit or left == 0:
            break
        source = turns[turn]
        at, end, found = asked[source], held[source], -1
        if end < 0:
            continue
        while at < end and found < 0:
            if source == 0:
                item = covisited[at]
            elif source == 1:
                item = encoder_top[at]
            else:
                item = arrays.top[source - 2, at]
            at += 1
            if item >= 0 and excluded[item] != stamp and available[item]:
                found = item
        asked[source] = at
        if found < 0:
            held[source] = -1
            left -= 1
            continue
        if found == target:
            lists.reached[row, source] = True
        # Whether another source had it before is a toss-up: written anyway, and kept if it is new.
        items[size], sources[size], because[size] = found, source, explained[found]
        size += listed[found] != stamp
        listed[found] = stamp
    if size < limit:
        items[size], sources[size], because[size] = -1, 0, -1
    for m in range(query.newest.shape[0]):
        if size >= FEW_CANDIDATES:
            break
        item = query.newest[m]
        if excluded[item] != stamp and available[item] and listed[item] != stamp:
            items[size], sources[size], because[size] = item, CATALOGUE, explained[item]
            listed[item] = stamp
            size += 1
    lists.size[row] = size


@njit(cache=True)
def clear(arrays, scratch, query, row):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Leave the work space as it was before the list."""
    for m in range(scratch.touched[scratch.touched.shape[0] - 1]):
        item = scratch.touched[m]
        for column in range(COVISIT_COLUMNS):
            scratch.covisit[item, column] = 0.0
        scratch.strongest[item] = 0.0
        scratch.because[item] = -1
    follows = arrays.follows
    for age in range(min(FOLLOW_WINDOW, query.recent.shape[1])):
        other = query.recent[row, age]
        if other >= 0:
            for k in range(follows.start[other], follows.start[other] + follows.size[other]):
                for column in range(FOLLOW_COLUMNS):
                    scratch.follow[follows.neighbour[k], column] = 0.0
