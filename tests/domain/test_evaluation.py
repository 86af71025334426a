"""The online metric, its interval and the popularity baseline against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.domain.evaluation import DecayedPopularity, hit, interval_by_user, ndcg


@pytest.mark.parametrize(
    ("place", "hits", "gain"),
    [(0, 0.0, 0.0), (1, 1.0, 1.0), (2, 1.0, 1 / math.log2(3)), (10, 1.0, 1 / math.log2(11)), (11, 0.0, 0.0)],
)
def test_only_the_first_ten_places_count(place: int, hits: float, gain: float) -> None:
    assert hit(place) == hits
    assert ndcg(place) == pytest.approx(gain)


@pytest.mark.parametrize("half_life", [20.0, 10_000.0])
def test_decayed_popularity_equals_a_brute_force_count(half_life: float) -> None:
    rng = np.random.default_rng(0)
    baseline, log = DecayedPopularity(half_life), []
    for n in range(400):
        user, item = f"u{rng.integers(8)}", f"i{min(int(rng.exponential(8)), 39)}"
        counts: dict[str, float] = {}
        for at, (_, other) in enumerate(log):
            counts[other] = counts.get(other, 0.0) + 0.5 ** ((n - at) / half_life)
        seen = {other for someone, other in log if someone == user} - {item}
        rivals = [count for other, count in counts.items() if other not in seen and other != item]
        expected = 0
        if item in counts:
            higher = sum(count > counts[item] * (1 + 1e-9) for count in rivals)
            ties = sum(abs(count / counts[item] - 1) <= 1e-9 for count in rivals)
            expected = 1 + higher + math.ceil(ties / 2)
        assert baseline.place(user, item) == expected
        baseline.update(user, item)
        log.append((user, item))


def test_the_baseline_grows_with_the_catalogue() -> None:
    baseline = DecayedPopularity()
    for n in range(1_500):
        baseline.update("u", f"i{n}")
    assert baseline.place("v", "i1499") == 1
    assert baseline.place("v", "i0") == 1_500
    assert baseline.place("v", "unknown") == 0


def test_the_interval_lies_around_the_mean_and_narrows_with_users() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for users in (20, 500):
        values = rng.random(users * 4).tolist()
        low, high = interval_by_user(values, [f"u{n % users}" for n in range(users * 4)])
        assert low < np.mean(values) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_the_interval_resamples_users_not_events() -> None:
    """A hundred equal events of one user say as little as one of them."""
    values = [1.0] * 100 + [0.0] * 2
    users = ["a"] * 100 + ["b", "c"]
    low, high = interval_by_user(values, users)
    assert low < 0.1
    assert high == 1.0


def test_intervals_at_the_edges() -> None:
    assert all(math.isnan(bound) for bound in interval_by_user([], []))
    assert interval_by_user([0.5], ["u"]) == (0.5, 0.5)
    assert interval_by_user([0.1, 0.9], ["u", "v"]) == interval_by_user([0.1, 0.9], ["u", "v"])
