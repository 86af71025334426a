"""Playing a slice of events over the statistics, in order: ask, learn, count, publish. Also picks the places of a list.

Everything compiled works event by event, so that a batch of n gives to the bit what n batches of one give. The ranker's
own network runs after it, over all lists of the slice at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from models.domain.features import BASE_COUNT, BASE_FEATURES, await_verdict, describe_list
from models.domain.habits import choose, pass_over
from models.domain.heaps import dot, push, sort_heap, top_of
from models.domain.statistics import touch_one

# Adagrad step: chosen on the validation parts of films and articles (see models/README.md).
LEARNING_RATE = 0.1
# Features reach 14, so a first Adagrad step of .1 a weight would turn a list over for one choice; from 100 on the first
# steps are several times smaller. Later it makes no difference: films .1126 and .1125, articles .5165 and .5164 nDCG@10
# (from 1, from 100).
FIRST_SQUARES = 100.0
# A log-linear ranker that has seen nothing: co-visitation first, then what is popular now. It is left within some
# hundred events.
BOOTSTRAP_WEIGHTS: dict[str, float] = {
    "encoder_softmax": 0.1,
    "covisit_80": 0.4,
    "covisit_95": 0.3,
    "count_100_events": 0.1,
    "count_24_hours": 0.1,
    "first_20_events": 0.1,
    "value_mean": 0.3,
    "popularity_x_newcomer": 0.5,
}


def bootstrap_weights() -> tuple[float, ...]:
    return tuple(BOOTSTRAP_WEIGHTS.get(name, 0.0) for name in BASE_FEATURES)


class AdaptiveWeights:
    """Weights of a log-linear ranker that follow the stream by Adagrad on the listwise softmax loss.

    Both arrays only ever have gradients' sums added, so that workers share them as differences, like the statistics.
    """

    def __init__(self, initial: npt.ArrayLike) -> None:
        self.weights = np.array(initial, np.float64)
        self.squares = np.full(BASE_COUNT, FIRST_SQUARES)
        """Sum of squared gradients, started so that the first steps are no leaps."""

    def add(self, weights: npt.ArrayLike, squares: npt.ArrayLike) -> None:
        self.weights += np.asarray(weights)
        self.squares += np.asarray(squares)


class Timeline(NamedTuple):
    """What happens at each event of a slice; rows index the lists."""

    ask_row: npt.NDArray[np.int64]
    """int64[n], list asked just before the event, -1 = none."""
    ask_fresh: npt.NDArray[np.bool_]
    """bool[n], False when that list is the one published just before: nothing changed in between."""
    target: npt.NDArray[np.int32]
    """int32[n], what was chosen of the asked list (-1: not a first choice of a known item)."""
    learn: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.bool_]
    """bool[n], the interaction enters the statistics."""
    publish_row: npt.NDArray[np.int64]
    item: npt.NDArray[np.int32]
    event_time_ms: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]
    first: npt.NDArray[np.bool_]
    strong: npt.NDArray[np.bool_]
    recent: npt.NDArray[np.int32]
    recent_gap_ms: npt.NDArray[np.int64]
    """int64[n, PAIR_WINDOW], since the user's latest touch of each of `recent`."""
    tag: npt.NDArray[np.int32]
    """int32[n], the user's."""
    chosen: npt.NDArray[np.int32]
    """int32[n], distinct items the user had chosen before."""
    since_ms: npt.NDArray[np.int64]
    """int64[n], the user's event before, -1 = none."""
    gap_ms: npt.NDArray[np.int64]
    """int64[n], since then (`Touches.gap_ms`)."""
    person: npt.NDArray[np.int64]
    """int64[n], row of the slice's `People`."""


@njit(cache=True)
def _learn(features, size, chosen, weights, squares):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    count = weights.shape[0]
    score = np.empty(size)
    best = -1e300
    for k in range(size):
        total = 0.0
        for f in range(count):
            total += features[k, f] * weights[f]
        score[k] = total
        best = max(best, total)
    mass = 0.0
    for k in range(size):
        score[k] = np.exp(score[k] - best)
        mass += score[k]
    gradient = np.empty(count)
    for f in range(count):
        gradient[f] = features[chosen, f]
    for k in range(size):
        share = score[k] / mass
        for f in range(count):
            gradient[f] -= share * features[k, f]
    for f in range(count):
        squares[f] += gradient[f] * gradient[f]
        weights[f] += LEARNING_RATE * gradient[f] / np.sqrt(squares[f])


@njit(cache=True, nogil=True)
def play(arrays, scratch, vectors, available, query, people, turns, lists, weights, squares, row_weights, timeline):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Play one slice. Fills `lists` and row_weights (float32[L, F], the weights when each list was made)."""
    learned = lists.features.shape[2] > BASE_COUNT
    for k in range(timeline.item.shape[0]):
        row, person = timeline.ask_row[k], timeline.person[k]
        if row >= 0:
            if timeline.ask_fresh[k]:
                describe_list(arrays, scratch, vectors, available, query, people, turns, lists, row)
                for f in range(weights.shape[0]):
                    row_weights[row, f] = weights[f]
            if timeline.learn[k] and timeline.target[k] >= 0:
                for at in range(lists.size[row]):
                    if lists.item[row, at] == timeline.target[k]:
                        _learn(lists.features[row], lists.size[row], at, weights, squares)
                        break
            if learned and timeline.publish_row[k] < 0:
                # Nothing is published: what is asked stands for it.
                await_verdict(lists, row, people, person)
                pass_over(people, person)
        item, first = timeline.item[k], timeline.first[k]
        if learned and item >= 0:
            choose(
                arrays,
                people,
                person,
                item,
                timeline.event_time_ms[k],
                timeline.value[k],
                first,
                timeline.tag[k],
                timeline.recent[k],
                timeline.since_ms[k],
            )
        if timeline.counts[k]:
            touch_one(
                arrays,
                item,
                timeline.event_time_ms[k],
                timeline.value[k],
                first,
                timeline.strong[k],
                timeline.recent[k],
                timeline.recent_gap_ms[k],
                timeline.tag[k],
                timeline.chosen[k],
                timeline.gap_ms[k],
            )
        row = timeline.publish_row[k]
        if row >= 0:
            if learned:
                pass_over(people, person)
            describe_list(arrays, scratch, vectors, available, query, people, turns, lists, row)
            if learned:
                await_verdict(lists, row, people, person)
            for f in range(weights.shape[0]):
                row_weights[row, f] = weights[f]


@njit(cache=True, nogil=True)
def best_places(scores, sizes, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Places of the best candidates of each list.

    Args:
        scores: float32[L, K].
        sizes: int32[L], candidates of each list.
        out: int32[L, k], filled best first, -1 padded; ties by place.
    """
    members = np.arange(scores.shape[1]).astype(np.int32)
    for row in range(scores.shape[0]):
        got = top_of(scores[row], members, sizes[row], out[row])
        out[row, got:] = -1


# Items scored for all users before the next ones: 128 vectors of 65 dimensions stay in the first-level cache.
_BLOCK = 128


@njit(cache=True, nogil=True)
def inner_products(users, vectors, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Score every item for every user, each pair by itself.

    A matrix product rounds by its shape: the length of the batch would decide between items that are all but equal.

    Args:
        users: float32[L, D].
        vectors: float32[>= N, D].
        out: float32[L, N], filled.
    """
    items = out.shape[1]
    for start in range(0, items, _BLOCK):
        for row in range(users.shape[0]):
            for item in range(start, min(start + _BLOCK, items)):
                out[row, item] = dot(users[row], vectors[item])


@njit(cache=True, nogil=True)
def nearest(scores, eligible, excluded, excluded_from, excluded_to, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The eligible items of largest score for each row, without the row's excluded ones.

    Args:
        scores: float32[L, N], inner products.
        eligible: bool[N].
        out: int32[L, E], filled best first, -1 padded; ties by index.
    """
    items = scores.shape[1]
    stamp = np.full(items, -1, np.int64)
    for row in range(scores.shape[0]):
        for e in range(excluded_from[row], excluded_to[row]):
            if 0 <= excluded[e] < items:
                stamp[excluded[e]] = row
        keys, heap, size = scores[row], out[row], 0
        limit = heap.shape[0]
        for item in range(items):
            if size == limit and keys[item] <= keys[heap[0]]:
                continue  # an equal score loses to the smaller index
            if eligible[item] and stamp[item] != row:
                size = push(keys, item, heap, size)
        sort_heap(keys, heap, size)
        out[row, size:] = -1
