"""How many passes over the past pay off, seen on events that came after it. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


def kept_passes(made: int) -> frozenset[int]:
    """The passes of a fit after which the weights are kept: every doubling, and the last."""
    return frozenset({made, *(2**power for power in range(made.bit_length()) if 2**power <= made)})


def most_that_pay(gains: Mapping[int, npt.NDArray[np.float64]]) -> int:
    """The largest number of passes that is worse than the best one by no more than a standard error.

    Too many passes cost a small stream half of what its encoder is worth; too few cost a large one, where neighbouring
    numbers differ by less than the noise.

    Args:
        gains: by number of passes, float64[e], nDCG of the same events; without events the largest number is taken.
    """
    if not len(next(iter(gains.values()))):
        return max(gains)
    best = max(gains, key=lambda passes: (float(gains[passes].mean()), passes))
    enough = best
    for passes, gain in gains.items():
        lost = gains[best] - gain
        if passes > enough and lost.mean() <= lost.std() / math.sqrt(len(lost)):
            enough = passes
    return enough
