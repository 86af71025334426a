"""What the ranker sees of each candidate of a list, as compiled passes over the streamed statistics.

A log-linear ranker reads the first BASE_COUNT features; a learned one reads all of them. Knows item indices only.
Source: research/ranker-and-protocol.md section 2, research/joint-ranker.md "Exact settings".
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models.domain.candidates import (
    COVISIT_50,
    COVISIT_80,
    COVISIT_95,
    COVISIT_LAST,
    COVISIT_LIKED,
    COVISIT_NEAR,
    COVISIT_NEAR_LAST,
    COVISIT_NEAR_NOW,
    FOLLOW_LAST,
    FOLLOW_SECOND,
    FOLLOW_THREE,
    clear,
    propose,
)
from models.domain.circumstances import (
    CIRCUMSTANCE_FEATURES,
    CIRCUMSTANCE_LEVELS,
    FIRST_EVENT,
    describe_circumstances,
    log_gap,
    measure,
)
from models.domain.fellows import (
    FELLOW_FEATURES,
    FELLOW_LEVELS,
    FIRST_FEATURE,
    count_followed,
    describe_choosers,
    gather,
)
from models.domain.habits import (
    HABIT_AGE,
    HABIT_RECENCY,
    HABIT_TOUCHES,
    HABIT_VALUE,
    PASSED_LENGTH,
    PENDING_LENGTH,
)
from models.domain.heaps import dot
from models.domain.logarithms import exp_all, log_all
from models.domain.places import places
from models.domain.statistics import BASE_COUNTS, COUNT_NAMES, COUNTS, MS_PER_HOUR

BASE_FEATURES: tuple[str, ...] = (
    "encoder_score",
    "encoder_softmax",
    "covisit_80",
    "covisit_95",
    "follow",
    *COUNT_NAMES[:BASE_COUNTS],
    "touches",
    "minutes_since_touch",
    "events_since_touch",
    "age_hours",
    "value_mean",
    "unknown",
    "pairs_x_history",
    "popularity_x_newcomer",
)
# Of pairs by how near in time they were chosen (`statistics.nearness`): with the last item; with the recent ones, each
# by how near it is now, as a share of the list's and by itself; with the recent ones whenever they were.
NEAR_FEATURES = ("near_last", "near_now_share", "near_now", "near")
LEARNED_FEATURES: tuple[str, ...] = (
    *COUNT_NAMES[BASE_COUNTS:],
    "encoder_log_softmax",
    "encoder_rank",
    "encoder_best",
    "encoder_entropy",
    "has_vector",
    "last_vector",
    "covisit_50",
    "covisit_last",
    "covisit_liked",
    "covisit_rank",
    "follow_last",
    "follow_second",
    "popularity_rank",
    "recency_rank",
    "user_events",
    "user_gap_minutes",
    "habit_age",
    "habit_touches",
    "habit_recency",
    "habit_value",
    "age_off_habit",
    "touches_off_habit",
    "recency_off_habit",
    "age_over_gap",
    "touch_over_gap",
    "passed_chance",
    "passed_chance_lately",
    "passed_times",
    *FELLOW_FEATURES,
    *CIRCUMSTANCE_FEATURES,
    FIRST_FEATURE,
    *NEAR_FEATURES,
)
FEATURES: tuple[str, ...] = BASE_FEATURES + LEARNED_FEATURES
BASE_COUNT, FEATURE_COUNT = len(BASE_FEATURES), len(FEATURES)
# log(chance + 1e-3) of a candidate is never zero; a place without a candidate is all zeros.
PRESENCE = FEATURES.index("passed_chance")
# What the encoder says of a candidate (`score_by_encoder`, `place_by_encoder`); all others are the stream's.
ENCODER_FEATURES: tuple[str, ...] = (
    "encoder_score",
    "encoder_softmax",
    "encoder_log_softmax",
    "encoder_rank",
    "encoder_best",
    "encoder_entropy",
    "has_vector",
    "last_vector",
)

_COUNTS_AT = FEATURES.index(COUNT_NAMES[0])
_AFTER_COUNTS = _COUNTS_AT + BASE_COUNTS
_MORE_COUNTS = len(COUNTS) - BASE_COUNTS
_AFTER_MORE = BASE_COUNT + _MORE_COUNTS
_BY_EVENTS = np.array([clock == "events" for _, clock, *_ in COUNTS])
_HALF_LIVES = np.array([half_life for _, _, half_life, _ in COUNTS])
_FELLOWS = FEATURES.index(FELLOW_FEATURES[0])
_AFTER_FELLOWS = _FELLOWS + len(FELLOW_FEATURES)
_CIRCUMSTANCES = FEATURES.index(CIRCUMSTANCE_FEATURES[0])
_FIRST = FEATURES.index(FIRST_FEATURE)
_NEAR = FEATURES.index(NEAR_FEATURES[0])
_POPULARITY = _COUNTS_AT + COUNT_NAMES.index("count_10000_events")
_EVENTS_SINCE_TOUCH = FEATURES.index("events_since_touch")
_AGE = FEATURES.index("age_hours")
_LN2 = np.log(2.0)
# exp(-6): a decayed count below 1/400 says "not lately", however much below.
_COUNT_FLOOR = -6.0
# exp(14), a million at once: an event of long before the item's latest would see counts that are still to come.
_COUNT_CEILING = 14.0
# A share of the co-visitation mass below 1/10,000 says nothing; features start from zero there:
# log(share + floor) - log(floor) = log(1 + share / floor).
_PER_SHARE_FLOOR = np.float32(1e4)
_PER_FOLLOW_FLOOR = np.float32(1e3)
# Sums of nearness are shares of what both items were near to: 1/100 is little.
_PER_NEAR_FLOOR = np.float32(100.0)
# Logarithms of a candidate, taken of a whole list at once: of the base features, and of the others.
_FELLOW_LEVELS = 10
_CIRCUMSTANCE_LEVELS = _FELLOW_LEVELS + FELLOW_LEVELS
_FIRST_LEVEL = _CIRCUMSTANCE_LEVELS + CIRCUMSTANCE_LEVELS
_NEAR_LEVELS = _FIRST_LEVEL + 1
_BASE_LEVELS, _MORE_LEVELS = 7, _NEAR_LEVELS + len(NEAR_FEATURES)
# log hours of an item nobody touched, about 1.5 years.
_NO_AGE = 9.5


@njit(cache=True)
def describe_list(arrays, scratch, vectors, available, query, people, turns, lists, row):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Propose the candidates of list `row` and fill in their features: where `lists` has room, all of a deep list's,
    and of any other list what `await_verdict` reads.
    """
    room = lists.features.shape[2] > BASE_COUNT
    deep = room and query.deep[row]
    propose(arrays, scratch, available, query, lists, row, turns, deep)
    _describe(arrays, scratch, vectors, query, lists, row)
    if deep:
        _describe_more(arrays, scratch, vectors, query, people, lists, row)
    elif room:
        place_by_encoder(vectors, -1, lists.item[row, : lists.size[row]], lists.features[row])
    clear(arrays, scratch, query, row)


@njit(cache=True)
def _describe(arrays, scratch, vectors, query, lists, row):  # type: ignore[no-untyped-def]  # pragma: no cover
    now_ms, size = query.now_ms[row], lists.size[row]
    clock = arrays.clock[0]
    covisit, follow, inverse_root = scratch.covisit, scratch.follow, arrays.pairs.inverse_root
    newcomer = np.float32(1.0 / (1.0 + query.history[row]))
    known = np.float32(1.0 - newcomer)
    mean = arrays.value_all[0] / max(arrays.value_all[1], 1.0)
    no_recency = np.float32(np.log1p(clock))
    items, f = lists.item[row, :size], lists.features[row]
    score_by_encoder(vectors, query.user[row], items, f)
    sum_80, sum_95 = np.float32(1e-9), np.float32(1e-9)
    for k in range(size):
        item = np.uint32(items[k])
        covisit[item, COVISIT_95] *= inverse_root[item]
        sum_80 += covisit[item, COVISIT_80]
        sum_95 += covisit[item, COVISIT_95]
    per_80, per_95 = _PER_SHARE_FLOOR / sum_80, _PER_SHARE_FLOOR / sum_95
    levels = np.empty((size, _BASE_LEVELS), np.float32)
    for k in range(size):
        item = np.uint32(items[k])
        levels[k, 0] = 1.0 + covisit[item, COVISIT_80] * per_80
        levels[k, 1] = 1.0 + covisit[item, COVISIT_95] * per_95
        levels[k, 2] = 1.0 + follow[item, FOLLOW_THREE] * _PER_FOLLOW_FLOOR
        levels[k, 3] = 1.0 + arrays.touches[item]
        levels[k, 4] = 1.0 + max(now_ms - arrays.touched_ms[item], 0) / 60_000.0
        levels[k, 5] = 1.0 + clock - arrays.touched_at[item]
        levels[k, 6] = max(now_ms - arrays.born_ms[item], 0) / MS_PER_HOUR + 0.1
    log_all(levels.reshape(size * _BASE_LEVELS))
    offsets = _clocks(clock, now_ms)
    for k in range(size):
        item = np.uint32(items[k])
        touched = arrays.touches[item] > 0.0
        f[k, 2], f[k, 3], f[k, 4] = levels[k, 0], levels[k, 1], levels[k, 2]
        for c in range(BASE_COUNTS):
            f[k, _COUNTS_AT + c] = _level(arrays.log_count[item, c], offsets[c])
        f[k, _AFTER_COUNTS] = levels[k, 3]
        f[k, _AFTER_COUNTS + 1] = levels[k, 4] if touched else np.float32(14.0)
        f[k, _AFTER_COUNTS + 2] = levels[k, 5] if touched else no_recency
        f[k, _AFTER_COUNTS + 3] = levels[k, 6] if touched else np.float32(_NO_AGE)
        f[k, _AFTER_COUNTS + 4] = (arrays.value_sum[item] + 5.0 * mean) / (arrays.touches[item] + 5.0)
        f[k, _AFTER_COUNTS + 5] = 0.0 if touched else 1.0
        f[k, _AFTER_COUNTS + 6] = levels[k, 0] * known
        f[k, _AFTER_COUNTS + 7] = levels[k, 3] * newcomer


@njit(cache=True)
def score_by_encoder(vectors, user, items, features):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The encoder's features among the base ones: its score of each candidate, and a softmax over them.

    Args:
        vectors: float32[N, D]; user: float32[D].
        items: int32[k], candidates of one list.
        features: float32[>= k, F], of the list.
    """
    top_score = np.float32(-1e30)
    for k in range(items.shape[0]):
        score = dot(user, vectors[items[k]])
        features[k, 0] = score
        top_score = max(top_score, score)
    chances = np.empty(items.shape[0], np.float32)
    for k in range(items.shape[0]):
        chances[k] = np.float32(8.0) * (features[k, 0] - top_score)
    exp_all(chances)
    total = np.float32(0.0)
    for k in range(items.shape[0]):
        total += chances[k]
    log_total = np.log(max(total, 1e-9))  # type: ignore[call-overload]  # numba's max has one type
    for k in range(items.shape[0]):
        features[k, 1] = max(8.0 * (features[k, 0] - top_score) - log_total, -9.0) * 0.5


@njit(cache=True)
def place_by_encoder(vectors, last, items, features):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The encoder's features that only a learned ranker reads; arguments as in `score_by_encoder`, which runs before.

    Args:
        last: the user's latest item, -1 = none.
    """
    bias, size, at = vectors.shape[1] - 1, items.shape[0], _AFTER_MORE
    best = np.float32(-1e30)
    for k in range(size):
        best = max(best, features[k, 0])
    chances = np.empty(size, np.float32)
    for k in range(size):
        chances[k] = features[k, 0] - best
    exp_all(chances)
    mass, behind = 0.0, 0.0
    for k in range(size):
        mass += chances[k]
        behind += chances[k] * (features[k, 0] - best)
    mass = max(mass, 1e-9)
    log_mass = np.log(mass)
    entropy = log_mass - behind / mass
    by_encoder = _log_places(features[:size, 0])
    for k in range(size):
        item = np.uint32(items[k])
        features[k, at] = max(features[k, 0] - best - log_mass, -20.0)
        features[k, at + 1] = by_encoder[k]
        features[k, at + 2] = -log_mass
        features[k, at + 3] = entropy
        features[k, at + 4] = 1.0 if vectors[item, 0] != 0.0 else 0.0
        features[k, at + 5] = dot(vectors[item, :bias], vectors[last, :bias]) if last >= 0 else 0.0


@njit(cache=True)
def _log_places(keys):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """log(1 + place) of each entry by falling key, float32[k]."""
    found = places(keys.copy())
    for k in range(found.shape[0]):
        found[k] += np.float32(1.0)
    log_all(found)
    return found


@njit(cache=True)
def _clocks(clock, now_ms):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """float64[C], by how much each count has decayed."""
    found = np.empty(len(_HALF_LIVES))
    for c in range(len(_HALF_LIVES)):
        found[c] = (clock if _BY_EVENTS[c] else now_ms / MS_PER_HOUR) / _HALF_LIVES[c]
    return found


@njit(cache=True)
def _level(log_count, decayed):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return min(max((log_count - decayed) * _LN2, _COUNT_FLOOR), _COUNT_CEILING)


@njit(cache=True)
def _describe_more(arrays, scratch, vectors, query, people, lists, row):  # type: ignore[no-untyped-def]  # pragma: no cover
    now_ms, size, person, history = query.now_ms[row], lists.size[row], query.person[row], query.history[row]
    covisit, follow, inverse_root = scratch.covisit, scratch.follow, arrays.pairs.inverse_root
    near_root = arrays.pairs.near_root
    choice, passed, weight = people.choice[person], people.passed[person], people.weight[person]
    for p in range(PASSED_LENGTH):
        if passed[p] >= 0:
            scratch.passed[passed[p]] = p + 1
    items, f = lists.item[row, :size], lists.features[row]
    place_by_encoder(vectors, query.recent[row, 0], items, f)
    # The whole list: sums of shares, places.
    sum_50, sum_last, sum_80, sum_near = np.float32(1e-9), np.float32(1e-9), np.float32(1e-9), np.float32(1e-9)
    for k in range(size):
        item = np.uint32(items[k])
        sum_80 += covisit[item, COVISIT_80]
        sum_50 += covisit[item, COVISIT_50] * inverse_root[item]
        sum_last += covisit[item, COVISIT_LAST] * inverse_root[item]
        sum_near += covisit[item, COVISIT_NEAR_NOW] * near_root[item]
    per_80, per_50, per_last = _PER_SHARE_FLOOR / sum_80, _PER_SHARE_FLOOR / sum_50, _PER_SHARE_FLOOR / sum_last
    per_near = _PER_SHARE_FLOOR / sum_near
    by_pairs = _log_places(f[:size, 2])
    by_popularity = _log_places(f[:size, _POPULARITY])
    by_recency = _log_places(-f[:size, _EVENTS_SINCE_TOUCH])
    gap_ms = max(now_ms - query.last_ms[row], 0) if query.last_ms[row] >= 0 else FIRST_EVENT
    gap_minutes = gap_ms / 60_000.0 if gap_ms >= 0 else 1e6
    per_gap = 1.0 / (gap_minutes + 1.0)
    slots, places_of, closeness = scratch.fellow_slots, scratch.fellow_places, people.closeness[person]
    gather(slots, places_of, people.fellow[person])
    norm = np.float32(1.0 / np.sqrt(1.0 + history))
    levels, born_since = np.empty((size, _MORE_LEVELS), np.float32), np.empty(size, np.bool_)
    for k in range(size):
        item = np.uint32(items[k])
        levels[k, 0] = 1.0 + covisit[item, COVISIT_50] * inverse_root[item] * per_50
        levels[k, 1] = 1.0 + covisit[item, COVISIT_LAST] * inverse_root[item] * per_last
        levels[k, 2] = 1.0 + covisit[item, COVISIT_LIKED] * inverse_root[item] * per_80
        levels[k, 3] = 1.0 + follow[item, FOLLOW_LAST] * _PER_FOLLOW_FLOOR
        levels[k, 4] = 1.0 + follow[item, FOLLOW_SECOND] * _PER_FOLLOW_FLOOR
        levels[k, 5] = (max(now_ms - arrays.born_ms[item], 0) / 60_000.0 + 1.0) * per_gap
        levels[k, 6] = (max(now_ms - arrays.touched_ms[item], 0) / 60_000.0 + 1.0) * per_gap
        near_now = covisit[item, COVISIT_NEAR_NOW] * near_root[item]
        levels[k, _NEAR_LEVELS] = 1.0 + covisit[item, COVISIT_NEAR_LAST] * _PER_FOLLOW_FLOOR
        levels[k, _NEAR_LEVELS + 1] = 1.0 + near_now * per_near
        levels[k, _NEAR_LEVELS + 2] = 1.0 + near_now * _PER_NEAR_FLOOR
        levels[k, _NEAR_LEVELS + 3] = 1.0 + covisit[item, COVISIT_NEAR] * near_root[item] * _PER_NEAR_FLOOR
        place = scratch.passed[item] - 1
        levels[k, 7], levels[k, 8], levels[k, 9] = 1e-3, 1e-3, 1.0
        if place >= 0:
            levels[k, 7] += weight[place, 0]
            levels[k, 8] += weight[place, 1]
            levels[k, 9] += weight[place, 2]
    describe_choosers(
        arrays.choosers,
        slots,
        places_of,
        closeness,
        items,
        norm,
        levels[:, _FELLOW_LEVELS:_CIRCUMSTANCE_LEVELS],
        f[:, _AFTER_FELLOWS - 1],
    )
    count_followed(arrays.choosers, slots, places_of, closeness, items, levels[:, _FIRST_LEVEL])
    measure(
        arrays.circumstances,
        arrays.choosers,
        items,
        arrays.clock[0],
        arrays.touches,
        arrays.born_ms,
        arrays.touched_ms,
        query.last_ms[row],
        levels[:, _CIRCUMSTANCE_LEVELS:_FIRST_LEVEL],
        born_since,
    )
    log_all(levels.reshape(size * _MORE_LEVELS))
    offsets = _clocks(arrays.clock[0], now_ms)
    log_history = np.float32(np.log(np.float32(1.0 + history)))
    gap = np.float32(log_gap(gap_ms))
    age, touches = choice[HABIT_AGE], choice[HABIT_TOUCHES]
    recency, value = choice[HABIT_RECENCY], choice[HABIT_VALUE]
    for k in range(size):
        item = np.uint32(items[k])
        for c in range(_MORE_COUNTS):
            f[k, BASE_COUNT + c] = _level(arrays.log_count[item, BASE_COUNTS + c], offsets[BASE_COUNTS + c])
        at = _AFTER_MORE
        f[k, at + 6], f[k, at + 7], f[k, at + 8] = levels[k, 0], levels[k, 1], levels[k, 2]
        f[k, at + 9] = by_pairs[k]
        f[k, at + 10], f[k, at + 11] = levels[k, 3], levels[k, 4]
        f[k, at + 12], f[k, at + 13] = by_popularity[k], by_recency[k]
        f[k, at + 14], f[k, at + 15] = log_history, gap
        f[k, at + 16], f[k, at + 17] = _or(age, 5.0), _or(touches, 4.0)
        f[k, at + 18], f[k, at + 19] = _or(recency, 4.0), _or(value, 0.6)
        f[k, at + 20] = _or(abs(f[k, _AGE] - age), 2.0)
        f[k, at + 21] = _or(abs(f[k, _AFTER_COUNTS] - touches), 1.0)
        f[k, at + 22] = _or(abs(f[k, _EVENTS_SINCE_TOUCH] - recency), 1.0)
        touched = arrays.touches[item] > 0.0
        f[k, at + 23] = min(max(levels[k, 5], -8.0), 8.0) if touched else 0.0
        f[k, at + 24] = min(max(levels[k, 6], -8.0), 8.0) if touched else 0.0
        f[k, at + 25], f[k, at + 26], f[k, at + 27] = levels[k, 7], levels[k, 8], levels[k, 9]
        for c in range(FELLOW_LEVELS):
            f[k, _FELLOWS + c] = levels[k, _FELLOW_LEVELS + c]
        f[k, _FIRST] = levels[k, _FIRST_LEVEL]
        for c in range(len(NEAR_FEATURES)):
            f[k, _NEAR + c] = levels[k, _NEAR_LEVELS + c]
    describe_circumstances(
        arrays.circumstances,
        items,
        np.log(np.float32(1.0) + query.chosen[row]),
        gap,
        levels[:, _CIRCUMSTANCE_LEVELS:_FIRST_LEVEL],
        born_since,
        f[:, _CIRCUMSTANCES:_FIRST],
    )
    for p in range(PASSED_LENGTH):
        if passed[p] >= 0:
            scratch.passed[passed[p]] = 0


@njit(cache=True)
def _or(value, otherwise):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return value if value == value else otherwise  # NaN is not equal to itself


@njit(cache=True)
def await_verdict(lists, row, people, person):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Note the head of a published list by the encoder: passed over, once the user does something else."""
    at = _AFTER_MORE
    pending, chance = people.pending[person], people.chance[person]
    pending[:] = -1
    chance[:] = 0.0
    for k in range(lists.size[row]):
        rank = np.int64(np.exp(lists.features[row, k, at + 1]) - 0.5)  # of log(1 + rank)
        if rank < PENDING_LENGTH:
            pending[rank] = lists.item[row, k]
            chance[rank] = np.exp(lists.features[row, k, at])
