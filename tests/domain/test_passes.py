"""How many passes over the past are taken."""

from __future__ import annotations

import numpy as np

from models.learning.passes import kept_passes, most_that_pay


def test_every_doubling_and_the_last_pass_are_kept() -> None:
    assert kept_passes(1) == {1}
    assert kept_passes(9) == {1, 2, 4, 8, 9}


def test_more_passes_are_taken_while_they_lose_no_more_than_the_noise() -> None:
    rng = np.random.default_rng(0)
    level = rng.random(400)
    noise = rng.normal(0, 0.1, 400)
    assert most_that_pay({1: level - 0.2, 2: level, 4: level + noise - noise.mean() - 0.001}) == 4


def test_passes_that_lose_more_than_the_noise_are_not_taken() -> None:
    rng = np.random.default_rng(0)
    level = rng.random(400)
    assert most_that_pay({1: level - 0.2, 2: level, 4: level - 0.05 + rng.normal(0, 0.1, 400), 8: level - 0.3}) == 2


def test_where_nothing_came_after_a_fit_all_its_passes_are_taken() -> None:
    assert most_that_pay({1: np.empty(0), 2: np.empty(0)}) == 2
