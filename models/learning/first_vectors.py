"""Where item vectors start: what is chosen soon after each other lies close. Knows no network and no training.

An optimiser that starts from zero needs most of a fit to find out which items go together; counting tells it at once.
How much more often two items meet than chance has it (pointwise mutual information) is split into vectors whose inner
products come near it. Rare pairs say little: both counts are raised, so that a short log gives short vectors.
Source: Levy and Goldberg 2014; Halko et al. 2011 (subspace iteration).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from models.learning.batches import Histories

F32 = npt.NDArray[np.float32]
# Choices of one user that are so far apart at most have met.
NEAR = 10
# Added to how often two items met and to how often chance would have it.
SHRINK = 10.0
# Directions beside the wanted ones, and products: what decides how exact the subspace is.
SPARE, PRODUCTS = 16, 8


def first_vectors(past: Histories, items: int, width: int, rng: np.random.Generator) -> F32:
    """float32[items, width]; zero for an item that met no other more often than by chance.

    Nothing of size items x items is made: memory is that of the pairs that met.
    """
    found = np.zeros((items, width), np.float32)
    pair, count = _pairs(past, items)
    if not len(pair):
        return found
    one, other = pair // items, pair % items
    total = np.bincount(one, count, minlength=items)
    chance = total[one] * total[other] / total.sum()
    information = np.log((count + SHRINK) / (chance + SHRINK))
    kept = information > 0
    matrix = torch.sparse_coo_tensor(
        torch.as_tensor(np.stack([one[kept], other[kept]])),
        torch.as_tensor(information[kept].astype(np.float32)),
        (items, items),
        is_coalesced=True,
        check_invariants=False,
    )
    base = torch.as_tensor(rng.standard_normal((items, min(items, width + SPARE)), np.float32))
    for _ in range(PRODUCTS):
        base = torch.linalg.qr(torch.sparse.mm(matrix, base))[0]
    values, turn = np.linalg.eigh((base.T @ torch.sparse.mm(matrix, base)).numpy().astype(np.float64))
    top = np.argsort(-values)[:width]
    found[:, : len(top)] = base.numpy() @ (turn[:, top] * np.sqrt(np.maximum(values[top], 0.0)))
    # Turned, so that no number of a vector is larger than another from the start.
    turned: F32 = (found @ np.linalg.qr(rng.standard_normal((width, width)))[0]).astype(np.float32)
    return turned


def _pairs(past: Histories, items: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of items that met, as one * items + other, both ways and ascending, and how often each did."""
    owner = past.first[np.flatnonzero(np.diff(past.targets_before))]
    item = past.target_item
    met = [np.empty(0, np.int64)]
    for apart in range(1, NEAR + 1):
        same = owner[apart:] == owner[:-apart]
        one, other = item[:-apart][same], item[apart:][same]
        met += [one * items + other, other * items + one]
    return np.unique(np.concatenate(met), return_counts=True)
