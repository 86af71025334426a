"""How many passes over a log from nothing pay off: gathered from what fits foresaw after fewer and after all."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

# Passes after which weights are remembered where it is asked how many paid off; the last one beside them.
LOOKS = (2, 3, 4, 6)
# What was told before counts half as much with each later telling: a log that grows bears fewer passes.
KEPT = 0.5
# Standard errors within which fewer passes stand for the best: where nobody can tell, they make the better lists.
ERRORS = 2.0


class PassEvidence:
    """Sums over events that fits had not seen, the latest counting most.

    Args:
        sums: float64[1 + L, 1 + L], of x x^T over the events, x being 1 and for each look how many octaves farther from
            the top than after all passes the chosen item stood; None = nothing known.
    """

    def __init__(self, sums: F64 | None = None) -> None:
        self.sums: F64 = np.zeros((1 + len(LOOKS), 1 + len(LOOKS))) if sums is None else sums

    def add(self, octaves: Mapping[int, F64]) -> None:
        """
        Args:
            octaves: log2 of the chosen items' places, float64[events], after each number of passes; the largest is all.
        """
        last = octaves[max(octaves)]
        told = np.stack([np.ones(len(last)), *(octaves.get(passes, last) - last for passes in LOOKS)])  # [1 + L, n]
        self.sums = KEPT * self.sums + told @ told.T

    def enough(self) -> int | None:
        """The fewest passes that may be the best (within `ERRORS`); None where more than any look are needed."""
        count = self.sums[0, 0]
        if not count:
            return None
        mean = np.append(self.sums[0, 1:], 0.0) / count
        square = np.pad(self.sums[1:, 1:], (0, 1)) / count
        best = int(np.argmin(mean))
        for at, passes in enumerate(LOOKS):
            behind = mean[at] - mean[best]
            variance = square[at, at] + square[best, best] - 2 * square[at, best] - behind**2
            looked = square[at, at] > 0  # else no fit went beyond it
            if looked and behind <= ERRORS * math.sqrt(max(0.0, variance) / count):
                return passes
        return None
