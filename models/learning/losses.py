"""Losses over the catalogue: full softmax with its gradient written out, and sampled softmax with log-q correction.

Both read a soft target (the next few choices, the nearest weighing most) and leave out what the user had already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of scores handled at once: at 1,700 items 1.7 MB, which stays in a core's own cache.
BLOCK = 256
EXCLUDED = -1e9
# Smallest probability whose logarithm is taken; float32 ends a little below.
TINY = 1e-37


class SoftmaxLoss(torch.autograd.Function):
    """Mean cross-entropy of a masked softmax over all items, in nats.

    Scores and probabilities live in one block of rows; neither [n, N] scores nor a mask of that size is ever whole.

    Args:
        users: float32[n, D].
        items: float32[N, D].
        excluded: int64[m], places row * N + item that are no candidates, ascending by row.
        bounds: list of int, where the rows 0, BLOCK, 2 BLOCK, ... start in `excluded`, and its length.
        labels: int64[n, H], items.
        weights: float32[n, H], a row sums to one; zero where there is no label.
    Returns: float32[].
    """

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, excluded: Tensor, bounds: list[int], labels: Tensor, weights: Tensor
    ) -> Tensor:
        count, size = len(users), len(items)
        to_users, to_items = torch.empty_like(users), torch.zeros_like(items)
        loss = 0.0
        for block, first in enumerate(range(0, count, BLOCK)):
            rows = users[first : first + BLOCK]
            target, share = labels[first : first + BLOCK], weights[first : first + BLOCK]
            scores = rows @ items.T  # [b, N]
            hidden = excluded[bounds[block] : bounds[block + 1]] - first * size
            scores.view(-1).index_fill_(0, hidden, EXCLUDED)
            torch.softmax(scores, dim=1, out=scores)
            loss -= float((scores.gather(1, target).clamp_(min=TINY).log_() * share).sum())
            scores.scatter_add_(1, target, -share)  # gradient of the scores
            torch.mm(scores, items, out=to_users[first : first + BLOCK])
            to_items.addmm_(scores.T, rows)
        ctx.save_for_backward(to_users.div_(count), to_items.div_(count))
        return users.new_tensor(loss / count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        to_users, to_items = ctx.saved_tensors
        return to_users * gradients[0], to_items * gradients[0], None, None, None, None


def sampled_softmax_loss(
    users: Tensor, positives: Tensor, weights: Tensor, negatives: Tensor, log_count: Tensor, excluded: Tensor
) -> Tensor:
    """Cross-entropy where the partition function is estimated from sampled items.

    exp(score of a sampled item) / (its expected number of draws) estimates the sum over all items without bias; the
    labels themselves are not drawn and carry no correction. Draws of a row's own labels must be excluded.

    Args:
        users: float32[n, D].
        positives: float32[n, H, D], item vectors of the labels.
        weights: float32[n, H], a row sums to one; zero where there is no label.
        negatives: float32[S, D], the distinct items drawn.
        log_count: float32[S], log of (times drawn / expected times).
        excluded: int64[m], places row * S + draw that are no candidates.
    Returns: float32[], nats.
    Source: Khrylchenko et al. 2025, "Correcting the LogQ Correction"; Bengio and Senecal 2008.
    """
    chosen = torch.einsum("nd,nhd->nh", users, positives)  # [n, H]
    scores = users @ negatives.T + log_count  # [n, S]
    scores.view(-1).index_fill_(0, excluded, EXCLUDED)
    present = chosen.masked_fill(weights == 0, EXCLUDED)
    total = torch.logsumexp(torch.cat([present, scores], dim=1), dim=1)  # [n]
    return (total - (weights * chosen).sum(1)).mean()
