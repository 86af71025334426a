"""The listwise ranker: features of the candidates of a list in, one score a candidate out.

Each candidate goes through two small layers; the second one also sees a summary of the whole list (what the candidate
competes with). Source: research/joint-ranker.md, "CTX". To that is added one weight a feature: of a few thousand lists
two layers learn less than a log-linear ranker does (models/README.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.learning.ranker_weights import RankerWeights

# Widths of the two layers: wider ones gain less than a second seed moves (models/README.md).
HIDDEN, SECOND = 48, 24


class Standard(NamedTuple):
    """Mean and deviation of each feature over the candidates of past lists."""

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]


class LogLinearRanker(nn.Module):
    """One weight a feature. Args: standard: of the F features, from past lists only."""

    def __init__(self, standard: Standard) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(standard.mean))
        self.register_buffer("scale", torch.from_numpy(standard.scale))
        self.weight = nn.Parameter(torch.zeros(len(standard.mean)))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """As `ListwiseRanker.forward`."""
        weight = self.scale * self.weight  # the weights are standardised, not the many features
        score: Tensor = features @ weight - self.mean @ weight  # [B, K]
        return score.masked_fill(~mask, -1e9)


class ListwiseRanker(nn.Module):
    """Args: standard: of the F features, from past lists only."""

    def __init__(self, standard: Standard) -> None:
        super().__init__()
        features = len(standard.mean)
        self.register_buffer("mean", torch.from_numpy(standard.mean))
        self.register_buffer("scale", torch.from_numpy(standard.scale))
        self.first = nn.Linear(features, HIDDEN)
        self.attention = nn.Linear(HIDDEN, 1)
        self.second = nn.Linear(HIDDEN, SECOND)
        self.context = nn.Linear(2 * HIDDEN, SECOND, bias=False)
        self.last = nn.Linear(SECOND, 1)
        # Fitted by itself, not with the layers: see `join`.
        self.straight = nn.Parameter(torch.zeros(features), requires_grad=False)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            features: float32[B, K, F].
            mask: bool[B, K], True where there is a candidate.
        Returns: float32[B, K], -1e9 where there is none.
        """
        x = (features - self.mean) * self.scale  # [B, K, F]
        h = F.relu(self.first(x))  # [B, K, H]
        share = self.attention(h)[..., 0].masked_fill(~mask, -1e9).softmax(1)  # [B, K]
        even = mask.to(h.dtype)
        even = even / even.sum(1, keepdim=True).clamp(min=1.0)  # [B, K]
        summary = torch.cat([(share[:, None] @ h)[:, 0], (even[:, None] @ h)[:, 0]], -1)  # [B, 2 H]
        g = F.relu(self.second(h) + self.context(summary)[:, None])  # [B, K, G]
        score: Tensor = self.last(g)[..., 0] + x @ self.straight  # [B, K]
        return score.masked_fill(~mask, -1e9)

    @torch.no_grad()
    def join(self, straight: Tensor, shares: tuple[float, float]) -> None:
        """Score the sum of what the layers say and of these weights (float32[F]), each times its share."""
        of_layers, of_weights = shares
        self.last.weight *= of_layers
        self.last.bias *= of_layers
        self.straight.copy_(of_weights * straight)

    def weights(self) -> RankerWeights:
        def linear(layer: nn.Linear) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
            return layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()

        return RankerWeights(
            mean=self.mean.numpy().copy(),
            scale=self.scale.numpy().copy(),
            first=linear(self.first),
            attention=linear(self.attention),
            second=linear(self.second),
            context=self.context.weight.detach().numpy().T.copy(),
            last=linear(self.last),
            straight=self.straight.detach().numpy().copy(),
        )
