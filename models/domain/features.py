"""Candidate sources and ranking features of one list, as compiled passes over the streamed statistics.

Owns which candidates are proposed and what the ranker sees of each; knows item indices only. A list is proposed and
described in one go because co-visitation serves both: it is summed once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from models.domain.statistics import (
    COUNT_NAMES,
    COUNTS,
    FOLLOW_WINDOW,
    MS_PER_HOUR,
)

# In the order in which they are asked; the name of the source is published with each item.
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
# The sources that take turns; the last one only fills a list that would otherwise be short.
SOURCE_COUNT = len(SOURCES) - 1
CATALOGUE = SOURCES.index("catalogue")
# Candidates below which the catalogue itself is asked: a list's length, so that what nobody chose displaces nothing.
FEW_CANDIDATES = 10
# Places of the co-visitation source that can be reached.
COVISITED = 48
COVISITATION = SOURCES.index("covisitation")
# A log-linear ranker's first ten hardly ever stand deeper by every source: 200 gave films .1141 and articles .5222
# nDCG@10, 120 .1146 and .5207, for two thirds of the time.
CANDIDATES = 128

FEATURES: tuple[str, ...] = (
    "encoder_score",
    "encoder_softmax",
    "covisit_80",
    "covisit_95",
    "follow",
    *COUNT_NAMES,
    "touches",
    "minutes_since_touch",
    "events_since_touch",
    "age_hours",
    "value_mean",
    "unknown",
    "pairs_x_history",
    "popularity_x_newcomer",
)
FEATURE_COUNT = len(FEATURES)
_COUNTS_AT = FEATURES.index(COUNT_NAMES[0])
_AFTER_COUNTS = _COUNTS_AT + len(COUNT_NAMES)
_BY_EVENTS = np.array([clock == "events" for _, clock, *_ in COUNTS])
_HALF_LIVES = np.array([half_life for _, _, half_life, _ in COUNTS])
# Latest items that co-visitation is summed over: with decay .8 the thirteenth weighs 5%; twenty were no better (films
# .1141, twelve .1142 nDCG@10) and cost a third more.
QUERY_WINDOW = 12
# A list is explained by one of the latest five items: an older one rarely carries it, and every item asked costs a
# comparison.
REASON_WINDOW = 5
_LN2 = np.log(2.0)
# exp(-6): a decayed count below 1/400 says "not lately", however much below.
_COUNT_FLOOR = -6.0
# exp(14), a million at once: an event of long before the item's latest would see counts that are still to come.
_COUNT_CEILING = 14.0
# A share of the co-visitation mass below 1/10,000 says nothing; features start from zero there.
_SHARE_FLOOR = np.float32(1e-4)
_LOG_SHARE_FLOOR = np.float32(np.log(1e-4))
_FOLLOW_FLOOR = np.float32(1e-3)
_LOG_FOLLOW_FLOOR = np.float32(np.log(1e-3))


class Query(NamedTuple):
    """For whom and when a list is made: one row a list."""

    user: npt.NDArray[np.float32]
    """float32[L, D], user vectors."""
    now_ms: npt.NDArray[np.int64]
    recent: npt.NDArray[np.int32]
    """int32[L, PAIR_WINDOW], latest distinct items first, -1 padded."""
    history: npt.NDArray[np.float32]
    """float32[L], events the user has had."""
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
    features: npt.NDArray[np.float32]
    """float32[L, K, F]; zero rows where there is no candidate."""


class Scratch(NamedTuple):
    """Work space over the catalogue, all zero (or below the stamp) between lists."""

    stamp: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.int64]
    listed: npt.NDArray[np.int64]
    covisit: npt.NDArray[np.float32]
    """float32[N, 2]: summed with decays .8 and .95."""
    follow: npt.NDArray[np.float32]
    """float32[N], what followed the latest three items."""
    strongest: npt.NDArray[np.float32]
    because: npt.NDArray[np.int32]
    touched: npt.NDArray[np.int32]
    heap: npt.NDArray[np.int32]


def new_lists(lists: int, candidates: int = CANDIDATES) -> Lists:
    return Lists(
        item=np.full((lists, candidates), -1, np.int32),
        size=np.zeros(lists, np.int32),
        source=np.zeros((lists, candidates), np.int8),
        because=np.full((lists, candidates), -1, np.int32),
        features=np.zeros((lists, candidates, FEATURE_COUNT), np.float32),
    )


def new_scratch(items: int) -> Scratch:
    return Scratch(
        stamp=np.zeros(1, np.int64),
        excluded=np.zeros(items, np.int64),
        listed=np.zeros(items, np.int64),
        covisit=np.zeros((items, 2), np.float32),
        follow=np.zeros(items, np.float32),
        strongest=np.zeros(items, np.float32),
        because=np.full(items, -1, np.int32),
        touched=np.zeros(items, np.int32),
        heap=np.zeros(COVISITED, np.int32),
    )


@njit(cache=True)
def _before(keys, a, b):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return keys[a] > keys[b] or (keys[a] == keys[b] and a < b)


@njit(cache=True)
def push(keys, item, out, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Put an item into the heap out[:size], worst kept first, of at most len(out) items; returns the new size."""
    if size < out.shape[0]:
        at = size
        while at > 0:
            parent = (at - 1) // 2
            if _before(keys, item, out[parent]):
                break
            out[at] = out[parent]
            at = parent
        out[at] = item
        return size + 1
    if _before(keys, item, out[0]):
        _sink(keys, item, out, size)
    return size


@njit(cache=True)
def _sink(keys, item, out, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(keys, out[child], out[child + 1]):
            child += 1
        if _before(keys, out[child], item):
            break
        out[at] = out[child]
        at = child
    out[at] = item


@njit(cache=True)
def sort_heap(keys, out, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Turn the heap out[:size] into a list, best first."""
    for end in range(size - 1, 0, -1):
        item = out[end]
        out[end] = out[0]
        _sink(keys, item, out, end)


@njit(cache=True)
def top_of(keys, members, count, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The best of members[:count] by keys (ties by index) into `out`, best first; returns how many."""
    size = 0
    for m in range(count):
        size = push(keys, members[m], out, size)
    sort_heap(keys, out, size)
    return size


@njit(cache=True, fastmath={"reassoc", "contract"})
def dot(a, b):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    total = np.float32(0.0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@njit(cache=True)
def describe_list(arrays, scratch, vectors, available, query, lists, row):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Propose the candidates of list `row` and fill in their features."""
    scratch.stamp[0] += 1
    stamp = scratch.stamp[0]
    recent = query.recent[row]
    pairs, follows = arrays.pairs, arrays.follows
    neighbour, pair_weight, candidates = pairs.neighbour, pairs.weight, scratch.touched
    inverse_root, excluded = pairs.inverse_root, scratch.excluded
    covisit, follow, strongest, because = scratch.covisit, scratch.follow, scratch.strongest, scratch.because

    for e in range(query.excluded_from[row], query.excluded_to[row]):
        if query.excluded[e] >= 0:
            excluded[query.excluded[e]] = stamp
    touched = 0
    decay_80, decay_95 = 1.0, 1.0
    for age in range(min(QUERY_WINDOW, recent.shape[0])):
        other = recent[age]
        if other < 0:
            break
        w80, w95 = np.float32(decay_80 * inverse_root[other]), np.float32(decay_95 * inverse_root[other])
        decay_80 *= 0.8
        decay_95 *= 0.95
        for k in range(pairs.start[other], pairs.start[other] + pairs.size[other]):
            item = neighbour[k]
            weight = pair_weight[k]
            if covisit[item, 1] == 0.0:
                candidates[touched] = item
                touched += 1
            covisit[item, 0] += w80 * weight
            covisit[item, 1] += w95 * weight
            if age < REASON_WINDOW and w80 * weight > strongest[item]:
                strongest[item] = w80 * weight
                because[item] = other
        if age < FOLLOW_WINDOW:
            follow_norm = np.float32(0.6**age / (follows.total[other] + 3.0))
            for k in range(follows.start[other], follows.start[other] + follows.size[other]):
                follow[follows.neighbour[k]] += follows.weight[k] * follow_norm
    # The heap's worst is looked at first: most items fall there, before anything else is asked of them.
    scores, heap, best = covisit[:, 0], scratch.heap, 0
    for m in range(touched):
        item = candidates[m]
        covisit[item, 0] *= inverse_root[item]
        if best == heap.shape[0] and covisit[item, 0] < covisit[heap[0], 0]:
            continue
        if excluded[item] != stamp and available[item]:
            best = push(scores, item, heap, best)
    sort_heap(scores, heap, best)

    # candidates: every source in turn gives its next one, so that an item's place is its best place in any source
    places = np.zeros(SOURCE_COUNT, np.int64)
    limit = lists.item.shape[1]
    size = 0
    open_sources = SOURCE_COUNT
    while size < limit and open_sources > 0:
        open_sources = 0
        for source in range(SOURCE_COUNT):
            while True:
                at = places[source]
                if source == 0:
                    if at >= best:
                        break
                    item = scratch.heap[at]
                elif source == 1:
                    if at >= query.encoder_top.shape[1] or query.encoder_top[row, at] < 0:
                        break
                    item = query.encoder_top[row, at]
                else:
                    if at >= arrays.top_size[source - 2]:
                        break
                    item = arrays.top[source - 2, at]
                places[source] += 1
                if excluded[item] == stamp or not available[item]:
                    continue
                open_sources += 1
                if scratch.listed[item] != stamp and size < limit:
                    scratch.listed[item] = stamp
                    lists.item[row, size] = item
                    lists.source[row, size] = source
                    lists.because[row, size] = because[item]
                    size += 1
                break
    for m in range(query.newest.shape[0]):
        if size >= FEW_CANDIDATES:
            break
        item = query.newest[m]
        if excluded[item] != stamp and available[item] and scratch.listed[item] != stamp:
            scratch.listed[item] = stamp
            lists.item[row, size] = item
            lists.source[row, size] = CATALOGUE
            lists.because[row, size] = because[item]
            size += 1
    lists.size[row] = size

    # features
    now_ms = query.now_ms[row]
    hours = now_ms / MS_PER_HOUR
    clock = arrays.clock[0]
    user = query.user[row]
    newcomer = np.float32(1.0 / (1.0 + query.history[row]))
    known = np.float32(1.0 - newcomer)
    mean = arrays.value_all[0] / max(arrays.value_all[1], 1.0)
    top_score = np.float32(-1e30)
    for k in range(size):
        score = dot(user, vectors[lists.item[row, k]])
        lists.features[row, k, 0] = score
        top_score = max(top_score, score)
    total = np.float32(0.0)
    for k in range(size):
        total += np.exp(np.float32(8.0) * (lists.features[row, k, 0] - top_score))
    log_total = np.log(max(total, 1e-9))  # type: ignore[call-overload]  # numba's max has one type
    sum_80, sum_95 = np.float32(1e-9), np.float32(1e-9)
    for k in range(size):
        item = lists.item[row, k]
        covisit[item, 1] *= inverse_root[item]
        sum_80 += covisit[item, 0]
        sum_95 += covisit[item, 1]
    inverse_80, inverse_95 = np.float32(1.0) / sum_80, np.float32(1.0) / sum_95
    for k in range(size):
        item = lists.item[row, k]
        f = lists.features[row, k]
        f[1] = max(8.0 * (f[0] - top_score) - log_total, -9.0) * 0.5
        f[2:5] = 0.0
        if covisit[item, 1] > 0.0:
            f[2] = np.log(np.float32(covisit[item, 0] * inverse_80 + _SHARE_FLOOR)) - _LOG_SHARE_FLOOR
            f[3] = np.log(np.float32(covisit[item, 1] * inverse_95 + _SHARE_FLOOR)) - _LOG_SHARE_FLOOR
        if follow[item] > 0.0:
            f[4] = np.log(follow[item] + _FOLLOW_FLOOR) - _LOG_FOLLOW_FLOOR
        for c in range(_BY_EVENTS.shape[0]):
            at = clock if _BY_EVENTS[c] else hours
            level = (arrays.log_count[item, c] - at / _HALF_LIVES[c]) * _LN2
            f[_COUNTS_AT + c] = min(max(level, _COUNT_FLOOR), _COUNT_CEILING)
        touches = np.log(np.float32(1.0 + arrays.touches[item]))
        f[_AFTER_COUNTS] = touches
        if arrays.touches[item] > 0.0:
            f[_AFTER_COUNTS + 1] = np.log(np.float32(1.0 + max(now_ms - arrays.touched_ms[item], 0) / 60_000.0))
            f[_AFTER_COUNTS + 2] = np.log(np.float32(1.0 + clock - arrays.touched_at[item]))
            f[_AFTER_COUNTS + 3] = np.log(np.float32(max(now_ms - arrays.born_ms[item], 0) / MS_PER_HOUR + 0.1))
        else:
            f[_AFTER_COUNTS + 1] = 14.0
            f[_AFTER_COUNTS + 2] = np.log1p(clock)
            f[_AFTER_COUNTS + 3] = 9.5
        f[_AFTER_COUNTS + 5] = 0.0 if arrays.touches[item] > 0.0 else 1.0
        f[_AFTER_COUNTS + 4] = (arrays.value_sum[item] + 5.0 * mean) / (arrays.touches[item] + 5.0)
        f[_AFTER_COUNTS + 6] = f[2] * known
        f[_AFTER_COUNTS + 7] = touches * newcomer

    for m in range(touched):
        item = candidates[m]
        covisit[item, 0] = 0.0
        covisit[item, 1] = 0.0
        strongest[item] = 0.0
        because[item] = -1
    for age in range(min(FOLLOW_WINDOW, recent.shape[0])):
        other = recent[age]
        if other >= 0:
            for k in range(follows.start[other], follows.start[other] + follows.size[other]):
                follow[follows.neighbour[k]] = 0.0
