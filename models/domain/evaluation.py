"""The online metric and its baseline: HR@10 and nDCG@10 of one place, intervals by user, decayed popularity.

Full catalogue, global time order, never sampled negatives. Worker, backtest and demo share it, so that their numbers
mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CUTOFF = 10


def hit(place: int) -> float:
    """1 if a 1-based place is among the first ten; 0 means not in the list."""
    return 1.0 if 1 <= place <= CUTOFF else 0.0


def ndcg(place: int) -> float:
    """nDCG@10 with one relevant item: 1 / log2(1 + place)."""
    return 1.0 / math.log2(1 + place) if 1 <= place <= CUTOFF else 0.0


def interval_by_user(
    values: Sequence[float], users: Sequence[str], *, resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of the mean, whole users resampled (a user's events are not independent).

    Returns: (low, high); (nan, nan) without events.
    """
    if not values:
        return math.nan, math.nan
    _, group = np.unique(np.asarray(users), return_inverse=True)
    sums = np.bincount(group, weights=np.asarray(values, np.float64))
    counts = np.bincount(group).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1.0 / len(sums)), size=resamples)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return float(low), float(high)


class DecayedPopularity:
    """The baseline: the most popular unseen items, counts halved every `half_life` events.

    Exponential decay leaves the order of untouched items alone, so counts only ever grow (by 2^(n / half-life)).
    """

    # Of the half-lives tried in research/model-study.md the best on film ratings.
    HALF_LIFE_EVENTS = 10_000.0

    def __init__(self, half_life: float = HALF_LIFE_EVENTS) -> None:
        self._index: dict[str, int] = {}
        self._log_count: npt.NDArray[np.float64] = np.full(1_024, -np.inf)
        self._seen: dict[str, set[int]] = {}
        self._half_life = half_life
        self._events = 0

    def place(self, user_id: str, item_id: str) -> int:
        """Where the item stands for the user now: 1-based among what he has not seen, ties counted half, rounded up."""
        at = self._index.get(item_id)
        if at is None:
            return 0
        counts = self._log_count[: len(self._index)].copy()
        seen = self._seen.get(user_id)
        if seen:
            counts[list(seen - {at})] = -np.inf
        own = counts[at]
        return 1 + int((counts > own).sum()) + int((counts == own).sum()) // 2

    def update(self, user_id: str, item_id: str) -> None:
        at = self._index.setdefault(item_id, len(self._index))
        if at == len(self._log_count):
            self._log_count = np.concatenate([self._log_count, np.full(at, -np.inf)])
        self._events += 1
        self._log_count[at] = np.logaddexp2(self._log_count[at], self._events / self._half_life)
        self._seen.setdefault(user_id, set()).add(at)
