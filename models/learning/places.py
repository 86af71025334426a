"""Where the item that a user chose stood among all items he had not had yet: the yardstick of training. numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.domain.evaluation import CUTOFF
from models.learning.log import TrainingLog

F32 = npt.NDArray[np.float32]
ROWS = 512


def places(users: F32, items: F32, log: TrainingLog, start: int, end: int) -> npt.NDArray[np.float64]:
    """1-based places of the targets among events [start, end); a tie counts half.

    Args:
        users: float32[end - start, D], before each event.
        items: float32[N, D].
    Returns: float64[end - start], NaN for an event that is no target.
    """
    seen: dict[int, list[int]] = {}
    asked = set(log.user[start:end].tolist())
    for user, item in zip(log.user[:start].tolist(), log.item[:start].tolist(), strict=True):
        if user in asked and item >= 0:
            seen.setdefault(user, []).append(item)
    found = np.full(end - start, np.nan)
    for first in range(start, end, ROWS):
        last = min(first + ROWS, end)
        scores = users[first - start : last - start] @ items.T  # [b, N]
        own = scores[np.arange(last - first), np.maximum(log.item[first:last], 0)].copy()
        for row, event in enumerate(range(first, last)):
            had = seen.setdefault(int(log.user[event]), [])
            scores[row, had] = -np.inf
            if log.item[event] >= 0:
                had.append(int(log.item[event]))
        above = (scores > own[:, None]).sum(1)
        equal = (scores == own[:, None]).sum(1) - 1
        target = log.target[first:last]
        found[first - start : last - start][target] = (1 + above + 0.5 * equal)[target]
    return found


def gains(found: npt.NDArray[np.float64], cutoff: int = CUTOFF) -> npt.NDArray[np.float64]:
    """What each place is worth, nDCG@10 with one relevant item; places that are NaN do not count."""
    known = found[~np.isnan(found)]
    return np.where(known <= cutoff, 1 / np.log2(1 + known), 0.0)


def mean_ndcg(found: npt.NDArray[np.float64], cutoff: int = CUTOFF) -> float:
    each = gains(found, cutoff)
    return float(each.mean()) if len(each) else 0.0


def hit_rate(found: npt.NDArray[np.float64], cutoff: int = CUTOFF) -> float:
    known = found[~np.isnan(found)]
    return float((known <= cutoff).mean()) if len(known) else 0.0
