"""Bootstrap intervals over whole users: the events of one user are not independent."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.benchmarks.quality.protocol import K, Ranked, gains
from tests.benchmarks.quality.stream import F64, I64, Stream

RESAMPLES = 2_000
SEED = 0


def interval_by_user(values: F64, users: I64) -> tuple[float, float]:
    """95% interval of the mean of float64[S] with users int64[S], whole users drawn with replacement."""
    _, group = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group).astype(np.float64)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def paired(stream: Stream, ours: Ranked, theirs: Ranked) -> dict[str, Any]:
    """Ours minus theirs on the same events: means and 95% intervals by user of nDCG@10 and HR@10."""
    if not np.array_equal(ours.positions, theirs.positions):
        raise ValueError("the two runs answered different events")
    users = stream.users[ours.positions]
    out: dict[str, Any] = {}
    for name, of in (("ndcg_at_10", gains), ("hr_at_10", lambda ranks: (ranks <= K).astype(np.float64))):
        difference = of(ours.ranks) - of(theirs.ranks)
        out[name] = float(difference.mean())
        out[f"{name}_interval"] = interval_by_user(difference, users)
    return out
