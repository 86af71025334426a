"""Logistic regressions over sparse and dense columns at once, by Newton's method. Knows no text and no event.

Convex and without chance: the same data gives the same weights, so there is no seed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MAX_NEWTON, MAX_CONJUGATE = 12, 40
# Newton needs no exact step, and the penalties blur the optimum anyway: at (0.1, 0.002) the products are twice as many
# and the validation error is the same to the third digit.
CONJUGATE_TOLERANCE, NEWTON_TOLERANCE = 0.25, 1e-2
MAX_HALVINGS = 6


class Sparse(NamedTuple):
    """float32[n, H] by rows and by columns, so that both products are sums over bags."""

    columns: Tensor
    """int64[M], by rows."""
    by_row: Tensor
    """float32[M]."""
    row_offsets: Tensor
    """int64[n + 1]."""
    rows: Tensor
    """int64[M], by columns."""
    by_column: Tensor
    """float32[M]."""
    column_offsets: Tensor
    """int64[H + 1]."""

    def times(self, weights: Tensor) -> Tensor:
        """[n, H] x [H, K] -> [n, K]."""
        return functional.embedding_bag(
            self.columns,
            weights,
            self.row_offsets,
            mode="sum",
            per_sample_weights=self.by_row,
            include_last_offset=True,
        )

    def transposed_times(self, rows: Tensor, *, squared: bool = False) -> Tensor:
        """[H, n] x [n, K] -> [H, K]; of the squared entries where asked."""
        entries = self.by_column.square() if squared else self.by_column
        return functional.embedding_bag(
            self.rows, rows, self.column_offsets, mode="sum", per_sample_weights=entries, include_last_offset=True
        )


def sparse(columns: Tensor, entries: Tensor, row_offsets: Tensor, width: int) -> Sparse:
    """Both orders of a matrix [n, width] given by rows."""
    rows = torch.repeat_interleave(torch.arange(len(row_offsets) - 1), row_offsets.diff())
    order = torch.argsort(columns, stable=True)
    counts = torch.bincount(columns, minlength=width)
    column_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return Sparse(columns, entries, row_offsets, rows[order], entries[order], column_offsets)


class Design(NamedTuple):
    """The columns of a regression; the last dense one is 1, the intercept."""

    words: Sparse | None
    dense: Tensor
    """float32[n, d]."""


class Weights(NamedTuple):
    words: Tensor
    """float32[H, K], H = 0 without words."""
    dense: Tensor
    """float32[d, K]."""


def scores(design: Design, weights: Weights) -> Tensor:
    """float32[n, K], log-odds."""
    dense = design.dense @ weights.dense
    return dense if design.words is None else dense + design.words.times(weights.words)


def fit_logistic(
    design: Design, above: Tensor, word_penalty: float, dense_penalty: Tensor, start: Weights | None = None
) -> Weights:
    """K regressions over the same columns, minimising the summed log loss + half the penalised squares.

    Args:
        above: float32[n, K], 0 or 1.
        dense_penalty: float32[d], one a column.
        start: weights to start from, of a like problem.
    """
    width = 0 if design.words is None else len(design.words.column_offsets) - 1
    outputs = above.shape[1]
    weights = start or Weights(torch.zeros(width, outputs), torch.zeros(design.dense.shape[1], outputs))
    penalties = Weights(torch.full((width, 1), word_penalty), dense_penalty[:, None])
    # How far there is to go is measured from nothing learned, so that a good start ends sooner.
    nothing = above.mean(0, keepdim=True) - above
    first = _norm(_transposed(design, nothing))
    logits = scores(design, weights)
    loss = _loss(logits, above, weights, penalties)
    for _ in range(MAX_NEWTON):
        probability = torch.sigmoid(logits)
        gradient = _transposed(design, probability - above)
        gradient = Weights(*(g + p * w for g, p, w in zip(gradient, penalties, weights, strict=True)))
        if bool((_norm(gradient) <= NEWTON_TOLERANCE * first).all()):
            break
        step = _newton_step(design, probability * (1 - probability), gradient, penalties)
        moved = scores(design, step)
        # Column by column: the K problems share nothing but the data.
        share = torch.ones(outputs)
        for _halving in range(MAX_HALVINGS):
            trial = Weights(*(w - share * s for w, s in zip(weights, step, strict=True)))
            trial_loss = _loss(logits - share * moved, above, trial, penalties)
            if bool((trial_loss <= loss).all()):
                break
            share = torch.where(trial_loss <= loss, share, share / 2)
        share = torch.where(trial_loss <= loss, share, 0.0)
        if not bool(share.any()):
            break
        weights = Weights(*(w - share * s for w, s in zip(weights, step, strict=True)))
        logits = scores(design, weights)
        loss = _loss(logits, above, weights, penalties)
    return weights


def _loss(logits: Tensor, above: Tensor, weights: Weights, penalties: Weights) -> Tensor:
    """float32[K]."""
    fit = functional.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(0)
    squares: Tensor = sum(
        ((p * w.square()).sum(0) for p, w in zip(penalties, weights, strict=True)), torch.zeros(above.shape[1])
    )
    return fit + squares / 2


def _newton_step(design: Design, curvature: Tensor, gradient: Weights, penalties: Weights) -> Weights:
    """Conjugate gradients on the Hessian, preconditioned by its diagonal; K systems side by side."""
    dense = design.dense.square().T @ curvature + penalties.dense  # [d, K]
    words = penalties.words.expand_as(gradient.words)
    if design.words is not None:
        words = words + design.words.transposed_times(curvature, squared=True)  # [H, K]
    diagonal = Weights(words, dense)
    step = Weights(*(torch.zeros_like(g) for g in gradient))
    rest = gradient
    solved = Weights(*(r / d for r, d in zip(rest, diagonal, strict=True)))
    direction = solved
    energy = _dot(rest, solved)
    goal = CONJUGATE_TOLERANCE**2 * energy
    for _ in range(MAX_CONJUGATE):
        image = _transposed(design, curvature * scores(design, direction))
        image = Weights(*(i + p * v for i, p, v in zip(image, penalties, direction, strict=True)))
        length = energy / _dot(direction, image).clamp_min(1e-30)
        step = Weights(*(s + length * v for s, v in zip(step, direction, strict=True)))
        rest = Weights(*(r - length * i for r, i in zip(rest, image, strict=True)))
        solved = Weights(*(r / d for r, d in zip(rest, diagonal, strict=True)))
        before, energy = energy, _dot(rest, solved)
        if bool((energy <= goal).all()):
            break
        turn = energy / before.clamp_min(1e-30)
        direction = Weights(*(s + turn * v for s, v in zip(solved, direction, strict=True)))
    return step


def _transposed(design: Design, rows: Tensor) -> Weights:
    words = torch.zeros(0, rows.shape[1]) if design.words is None else design.words.transposed_times(rows)
    return Weights(words, (rows.T @ design.dense).T)


def _dot(a: Weights, b: Weights) -> Tensor:
    """float32[K]."""
    return (a.words * b.words).sum(0) + (a.dense * b.dense).sum(0)


def _norm(a: Weights) -> Tensor:
    """float32[K]."""
    return _dot(a, a).sqrt()
