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
        sums: float64[3, 1 + L, 1 + L], of each pair of looks, the last one being all passes: events, octaves that the
            chosen item stood farther from the top after the first of both, and their squares; None = nothing known.
    """

    def __init__(self, sums: F64 | None = None) -> None:
        self.sums: F64 = np.zeros((3, 1 + len(LOOKS), 1 + len(LOOKS))) if sums is None else sums

    def add(self, octaves: Mapping[int, F64]) -> None:
        """
        Args:
            octaves: log2 of the chosen items' places, float64[events], after each number of passes; the largest is all.
        """
        every = max(octaves)
        looks = [at for at, passes in enumerate(LOOKS) if passes in octaves and passes != every]
        told = np.stack([octaves[LOOKS[at]] for at in looks] + [octaves[every]])  # [looks and all, n]
        behind = told[:, None] - told[None]
        pairs = np.ix_(range(3), [*looks, len(LOOKS)], [*looks, len(LOOKS)])
        # A look that a short fit does not reach stays what it was.
        sums = self.sums.copy()
        count = np.full(behind.shape[:2], behind.shape[2])
        sums[pairs] = KEPT * sums[pairs] + [count, behind.sum(2), (behind**2).sum(2)]
        self.sums = sums

    def enough(self) -> int | None:
        """The fewest passes that may be the best (within `ERRORS`); None where more than any look are needed."""
        count, total, square = self.sums
        known = count > 0
        mean = np.divide(total, count, out=np.zeros_like(total), where=known)
        best = int(np.argmin(np.where(known[:, -1], mean[:, -1], np.inf)))
        for at, passes in enumerate(LOOKS):
            if not known[at, best]:
                continue
            events, behind = count[at, best], mean[at, best]
            variance = max(0.0, square[at, best] / events - behind**2)
            if behind <= ERRORS * math.sqrt(variance / events):
                return passes
        return None
