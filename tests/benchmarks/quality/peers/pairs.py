"""Windowed co-visitation and item-kNN by cosine, both counted event by event, both with a decay along the history."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.benchmarks.quality.peers.streaming import streamed
from tests.benchmarks.quality.protocol import Part
from tests.benchmarks.quality.stream import F32, I64, Stream

# Items of the history that are asked: under a decay of 0.9 the hundredth weighs 3e-5.
ASKED = 100


def recency(length: int, decay: float) -> F32:
    """float32[length], newest last with weight 1."""
    return (decay ** np.arange(length - 1, -1, -1.0)).astype(np.float32)


class Covisitation:
    """Pairs within `window` first touches of one user, weighted by `pair_decay` a step, damped by popularity."""

    SHRINK = 1.0

    def __init__(self, size: int, window: int, pair_decay: float, exponent: float, decay: float) -> None:
        self.pairs, self.sums = np.zeros((size, size), np.float32), np.zeros(size, np.float32)
        self.window, self.pair_decay, self.exponent, self.decay = window, pair_decay, exponent, decay

    def observe(self, stream: Stream, position: int) -> None:
        if not stream.first[position]:
            return
        near, item = stream.seen(position)[-self.window :], stream.items[position]
        if len(near):
            weights = recency(len(near), self.pair_decay)
            self.pairs[near, item] += weights
            self.pairs[item, near] += weights
            self.sums[near] += weights
            self.sums[item] += weights.sum()

    def score(self, history: I64, now_ms: int) -> F32:
        asked = history[-ASKED:]
        damped = self.sums**self.exponent + self.SHRINK
        return (recency(len(asked), self.decay) / damped[asked]) @ self.pairs[asked] / damped


class CosineNeighbours:
    """Users in common over the root of the users of each: |a and b| / (|a|^e |b|^e + shrink)."""

    def __init__(self, size: int, exponent: float, shrink: float, decay: float) -> None:
        self.common, self.users = np.zeros((size, size), np.float32), np.zeros(size, np.float32)
        self.exponent, self.shrink, self.decay = exponent, shrink, decay

    def observe(self, stream: Stream, position: int) -> None:
        if not stream.first[position]:
            return
        held, item = stream.seen(position), stream.items[position]
        self.common[held, item] += 1
        self.common[item, held] += 1
        self.users[item] += 1

    def score(self, history: I64, now_ms: int) -> F32:
        asked = history[-ASKED:]
        sizes = self.users**self.exponent
        near = self.common[asked] / (sizes[asked][:, None] * sizes + self.shrink)
        return recency(len(asked), self.decay) @ near


def covisitation(part: Part, *, window: int, pair_decay: float, exponent: float, decay: float) -> Iterator[F32]:
    return streamed(part, Covisitation(part.stream.catalogue_size, window, pair_decay, exponent, decay))


def neighbours(part: Part, *, exponent: float, shrink: float, decay: float) -> Iterator[F32]:
    return streamed(part, CosineNeighbours(part.stream.catalogue_size, exponent, shrink, decay))
