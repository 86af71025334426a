"""SASRec and GRU4Rec in the form that folds one event after the other: histories in, scores of the whole catalogue out.

RecTools' SASRec is fitted on a whole table of interactions and scores every user once; asking it before each event of a
log and going on learning from there is not what its interface offers, hence these two in plain torch.
Source: Kang & McAuley 2018 (SASRec); Petrov & Macdonald 2023 (gSASRec's loss); Hidasi et al. 2016 (GRU4Rec).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class SequenceConfig:
    """What is searched on validation; `seen_mask`, `shuffle_ties` and `item_bias` are the tricks that lift SASRec."""

    body: str = "sasrec"
    layers: int = 1
    heads: int = 2
    width: int = 64
    window: int = 50
    dropout: float = 0.3
    loss: str = "full"
    negatives: int = 256
    rate: float = 2e-3
    weight_decay: float = 0.01
    batch: int = 32
    epochs: int = 24
    seen_mask: bool = True
    shuffle_ties: bool = True
    item_bias: bool = True


class SequenceNetwork(nn.Module):
    """Item embeddings (tied in and out) and a causal body; a learned state stands for the empty history."""

    def __init__(self, config: SequenceConfig, catalogue_size: int) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.items = nn.Embedding(catalogue_size, width)
        nn.init.normal_(self.items.weight, std=0.05)
        self.bias = nn.Parameter(torch.zeros(catalogue_size), requires_grad=config.item_bias)
        self.start = nn.Parameter(0.01 * torch.randn(width))
        self.dropout = nn.Dropout(config.dropout)
        if config.body == "sasrec":
            self.places = nn.Embedding(config.window, width)
            nn.init.normal_(self.places.weight, std=0.02)
            self.blocks = nn.ModuleList(_Block(width, config.heads, config.dropout) for _ in range(config.layers))
            self.norm = nn.LayerNorm(width)
        else:
            self.gru = nn.GRU(width, width, num_layers=config.layers, batch_first=True)
            self.out = nn.Linear(width, width)

    def forward(self, histories: Tensor) -> Tensor:
        """int64[B, T], filled up on the right -> states float32[B, T + 1, D] after 0 .. T events."""
        size, length = histories.shape
        x = self.items(histories)  # B, T, D
        if self.config.body == "sasrec":
            x = x * math.sqrt(self.config.width) + self.places.weight[:length]
            x = self.dropout(x)
            for block in self.blocks:
                x = block(x)
            x = self.norm(x)
        else:
            x = self.out(self.dropout(self.gru(self.dropout(x))[0]))
        return torch.cat([self.start.expand(size, 1, -1), x], 1)

    def scores(self, states: Tensor) -> Tensor:
        """float32[M, D] -> float32[M, N]."""
        return states @ self.items.weight.T + self.bias

    def loss(self, states: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """states float32[M, D], targets int64[M], seen bool[M, N] (no negatives) -> the mean over the M."""
        if self.config.loss == "full":
            return functional.cross_entropy(self.scores(states).masked_fill(seen, -1e9), targets)
        catalogue, drawn = self.items.num_embeddings, self.config.negatives
        negatives = torch.randint(0, catalogue, (drawn,))  # J, shared by the batch
        good = (states * self.items(targets)).sum(-1) + self.bias[targets]  # M
        bad = states @ self.items(negatives).T + self.bias[negatives]  # M, J
        wrong = (negatives == targets[:, None]) | seen[:, negatives]
        bad = bad.masked_fill(wrong, -1e9)
        if self.config.loss == "sampled":  # uniform negatives: the correction by log q is one constant for all of them
            bad = bad + math.log(catalogue / drawn)
            return functional.cross_entropy(torch.cat([good[:, None], bad], 1), torch.zeros_like(targets))
        share = drawn / (catalogue - 1)
        beta = share * (0.75 * (1 - 1 / share) + 1 / share)
        return (beta * functional.softplus(-good) + functional.softplus(bad).sum(1)).mean() / (1 + drawn)


class _Block(nn.Module):
    """One pre-norm transformer layer, causal."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_in, self.norm_out, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        parts = self.mix(self.norm_in(x)).view(size, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # B, H, T, D / H each
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.rate if self.training else 0.0
        )
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(size, length, width)))
        return x + self.dropout(self.feed(self.norm_out(x)))
