"""How many passes of a fit pay off, from what was foreseen after some of them."""

from __future__ import annotations

import numpy as np
import pytest

from models.learning.passes import LOOKS, PassEvidence

ALL = 12


def told(behind: dict[int, float], *, events: int = 2_000, spread: float = 0.5, seed: int = 0) -> dict[int, np.ndarray]:
    """Octaves after each look, so far behind those after all passes in the mean, whatever was drawn."""
    rng = np.random.default_rng(seed)
    base = rng.normal(5.0, 2.0, events)
    found = {ALL: base}
    for passes in behind:
        noise = rng.normal(0.0, spread, events)
        found[passes] = base + noise - noise.mean() + behind[passes]
    return found


@pytest.mark.parametrize(
    ("behind", "enough"),
    [
        ({2: 0.5, 3: 0.3, 4: 0.2, 6: 0.1}, None),  # a log that bears all of them
        ({2: -0.1, 3: -0.3, 4: -0.2, 6: -0.1}, 3),  # one that is known by heart afterwards
        ({2: 0.1, 3: 0.005, 4: 0.0, 6: -0.005}, 3),  # nobody can tell: the fewest that may be the best
        ({2: 0.1, 3: 0.1, 4: 0.1, 6: -0.004}, 6),
    ],
)
def test_the_fewest_passes_that_may_be_the_best_are_enough(behind: dict[int, float], enough: int | None) -> None:
    evidence = PassEvidence()
    evidence.add(told(behind))
    assert evidence.enough() == enough


def test_nothing_known_asks_for_all_passes() -> None:
    assert PassEvidence().enough() is None


def test_what_was_told_before_counts_half_and_outweighs_a_hair() -> None:
    evidence = PassEvidence()
    evidence.add(told({2: 0.5, 3: 0.3, 4: 0.2, 6: 0.1}))
    evidence.add(told({2: 0.3, 3: 0.2, 4: 0.1, 6: -0.002}, seed=1))
    assert evidence.enough() is None
    for seed in range(2, 5):
        evidence.add(told({2: 0.3, 3: -0.2, 4: 0.1, 6: 0.1}, seed=seed))
    assert evidence.enough() == 3
    kept = PassEvidence(evidence.sums)
    evidence.add(told({2: 0.3, 3: 0.2, 4: 0.1, 6: 0.1}))
    assert kept.enough() == 3


def test_a_short_fit_tells_nothing_of_looks_that_it_does_not_reach() -> None:
    evidence = PassEvidence()
    evidence.add(told({2: 0.2, 3: 0.1, 4: 0.05}))
    assert evidence.enough() is None
    evidence.add(told({2: 0.2, 3: 0.1, 4: 0.05, 6: 0.05}))
    six = LOOKS.index(6)
    before = evidence.sums[:, six].copy()
    evidence.add(told({2: 0.2, 3: 0.1, 4: 0.05}, seed=1))
    np.testing.assert_array_equal(evidence.sums[:, six], before)
    assert evidence.enough() is None


def test_a_fit_of_as_many_passes_as_a_look_has_no_look_there() -> None:
    found = told({2: 0.2, 3: 0.1, 4: 0.05})
    evidence = PassEvidence()
    evidence.add({2: found[2], 3: found[3], 4: found[ALL]})
    assert not evidence.sums[:, LOOKS.index(4)].any()
    assert evidence.enough() is None
