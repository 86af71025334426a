"""Fits the head that reads a review's value from its text, and what it is measured against: the value's past alone.

Ordinal logistic regression over hashed words and the text's embedding, or over past means; every penalty is chosen on
the validation part, then all is fitted again on both parts. Knows no event log and no graph.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.domain.errors import TrainingError
from models.domain.review_text import BUCKETS, F32, Terms, hashed_terms
from models.learning.logistic import Design, Sparse, Weights, fit_logistic, scores, sparse
from models.learning.review_value_weights import ReviewValueWeights, word_entries

log = logging.getLogger(__name__)

# A scale of more levels (half stars have ten) is cut at quantiles: the expected value then is a sum over bins' means.
MAX_LEVELS = 10
# Fewer say less than the mean does, and leave nothing to choose penalties on.
MIN_FIT, MIN_VALIDATION = 200, 50
# A term in a single text can only be learned by heart.
MIN_TEXTS = 2
# Half the squared weight costs this much, in nats. The search walks each grid from the middle, downhill.
WORD_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
EMBEDDING_PENALTIES = (10.0, 30.0, 100.0, 300.0)
PAST_PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
BIAS_PENALTY = 1e-3

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Scale:
    """Levels of a value and the thresholds between them."""

    base: float
    steps: F32
    thresholds: F32

    def above(self, values: F32) -> Tensor:
        return torch.from_numpy((values[:, None] > self.thresholds).astype(np.float32))

    def value(self, log_odds: Tensor) -> F32:
        value: F32 = (self.base + torch.sigmoid(log_odds) @ torch.from_numpy(self.steps)).numpy()
        return value


@dataclass(frozen=True)
class _Block:
    """Dense columns of one kind, standardised on the rows that are fitted."""

    raw: F32
    mean: F32
    scale: F32

    def rows(self, of: npt.NDArray[np.intp]) -> F32:
        return (self.raw[of] - self.mean) / self.scale


def fit_review_value(
    texts: Sequence[str],
    embeddings: F32,
    values: F32,
    past: F32,
    *,
    fit_end: int,
    validation_end: int,
) -> ReviewValueWeights:
    """Fit both models on events in time order; nothing behind `validation_end` is read.

    Args:
        texts: n, "" where an event has none.
        embeddings: float32[n, E] of the texts as the worker embeds them.
        values: float32[n], shares of the value scale, 0 to 1; negative where an event has none.
        past: float32[n, P], rows of `PastValues`.
    Raises: TrainingError when there are too few values to fit or to choose on, or all are the same.
    """
    valued = values[:validation_end] >= 0
    written = np.array([bool(text) for text in texts[:validation_end]])
    fits, chooses = np.arange(validation_end) < fit_end, np.arange(validation_end) >= fit_end
    for part, least in ((fits, MIN_FIT), (chooses, MIN_VALIDATION)):
        found = int((valued & written & part).sum())
        if found < least:
            raise TrainingError(f"{found} texts with a value, at least {least} are needed")
    scale = _scale(values[:validation_end][valued & fits])
    metrics: dict[str, float] = {}
    chosen_on = np.flatnonzero(valued & written & chooses)  # the same for both, so that their errors can be compared

    state = _Search(values, scale, None, past)
    (past_penalty,), error = state.choose(np.flatnonzero(valued & fits), chosen_on, [PAST_PENALTIES], [3])
    metrics |= {"state_rmse": error, "state_past_penalty": past_penalty}
    _, state_past, state_bias = state.refit(np.flatnonzero(valued), [past_penalty])

    text = _Search(values, scale, hashed_terms(texts[:validation_end]), embeddings)
    penalties, error = text.choose(
        np.flatnonzero(valued & written & fits), chosen_on, [WORD_PENALTIES, EMBEDDING_PENALTIES], [2, 1]
    )
    metrics |= {"text_rmse": error, "text_word_penalty": penalties[0], "text_embedding_penalty": penalties[1]}
    words, embedding, text_bias = text.refit(np.flatnonzero(valued & written), penalties)
    return ReviewValueWeights(
        idf=text.idf,
        words=words,
        embedding=embedding,
        text_bias=text_bias,
        state_past=state_past,
        state_bias=state_bias,
        base=scale.base,
        steps=scale.steps,
        metrics=metrics,
    )


def _scale(values: F32) -> _Scale:
    levels = np.unique(values).astype(np.float64)
    thresholds = (levels[:-1] + levels[1:]) / 2
    if len(levels) > MAX_LEVELS:
        quantiles = np.unique(np.quantile(values, np.arange(1, MAX_LEVELS) / MAX_LEVELS, method="lower"))
        thresholds = quantiles[quantiles < values.max()].astype(np.float64)
        bins = np.searchsorted(thresholds, values)
        levels = np.array([values[bins == b].mean() for b in range(len(thresholds) + 1)])
    if len(levels) < 2:
        raise TrainingError("all values are the same: there is nothing to tell apart")
    return _Scale(float(levels[0]), np.diff(levels).astype(np.float32), thresholds.astype(np.float32))


class _Search:
    """One regression with a penalty for words, where there are any, and one for the dense columns."""

    def __init__(self, values: F32, scale: _Scale, terms: Terms | None, dense: F32) -> None:
        self._values, self._scale, self._terms, self._dense = values, scale, terms, dense
        self.idf = np.zeros(BUCKETS, np.float32)

    def choose(
        self,
        fits: npt.NDArray[np.intp],
        chooses: npt.NDArray[np.intp],
        grids: Sequence[Sequence[float]],
        start: Sequence[int],
    ) -> tuple[list[float], float]:
        """The penalties with the least validation error, one kind at a time, twice around; and that error (RMSE)."""
        train, valid, _ = self._designs(fits, chooses)
        above = self._scale.above(self._values[fits])
        tried: dict[tuple[int, ...], float] = {}
        warm: Weights | None = None

        def error(at: tuple[int, ...]) -> float:
            nonlocal warm
            if at not in tried:
                warm = self._fit(train, above, [grid[i] for grid, i in zip(grids, at, strict=True)], warm)
                missed = self._scale.value(scores(valid, warm)) - self._values[chooses]
                tried[at] = float(np.sqrt(np.mean(np.square(missed))))
                log.debug("review value: penalties %s, validation RMSE %.4f", at, tried[at])
            return tried[at]

        best = tuple(start)
        for _ in range(2):
            before = best
            for kind, grid in enumerate(grids):
                for direction in (-1, 1):
                    while 0 <= best[kind] + direction < len(grid):
                        beside = (*best[:kind], best[kind] + direction, *best[kind + 1 :])
                        if error(beside) >= error(best):
                            break
                        best = beside
            if best == before:
                break
        return [grid[i] for grid, i in zip(grids, best, strict=True)], error(best)

    def refit(self, fits: npt.NDArray[np.intp], penalties: Sequence[float]) -> tuple[F32, F32, F32]:
        """Weights of raw columns (words, dense, bias), standardisation folded in."""
        train, _, block = self._designs(fits, fits[:0])
        weights = self._fit(train, self._scale.above(self._values[fits]), penalties, None)
        dense = weights.dense.numpy()
        folded: F32 = (dense[:-1] / block.scale[:, None]).astype(np.float32)
        bias: F32 = dense[-1] - block.mean @ folded
        words = np.zeros((BUCKETS, weights.dense.shape[1]), np.float32)
        if self._terms is not None:
            words[self.idf > 0] = weights.words.numpy()
        return words, folded, bias

    def _fit(self, train: Design, above: Tensor, penalties: Sequence[float], warm: Weights | None) -> Weights:
        word = penalties[0] if self._terms is not None else 0.0
        columns = torch.cat([torch.full((self._dense.shape[1],), penalties[-1]), torch.tensor([BIAS_PENALTY])])
        return fit_logistic(train, above, word, columns, warm)

    def _designs(self, fits: npt.NDArray[np.intp], chooses: npt.NDArray[np.intp]) -> tuple[Design, Design, _Block]:
        block = _block(self._dense, fits)

        def dense(of: npt.NDArray[np.intp]) -> Tensor:
            return torch.from_numpy(np.concatenate([block.rows(of), np.ones((len(of), 1), np.float32)], axis=1))

        words: tuple[Sparse | None, Sparse | None] = (None, None)
        if self._terms is not None:
            self.idf = _idf(self._terms, fits)
            entries = word_entries(self._terms, self.idf)
            words = (self._words(entries, fits), self._words(entries, chooses))
        return Design(words[0], dense(fits)), Design(words[1], dense(chooses)), block

    def _words(self, entries: F32, of: npt.NDArray[np.intp]) -> Sparse:
        """Rows `of` as a matrix over the buckets that have a weight, a small log's being few."""
        assert self._terms is not None
        known = np.cumsum(self.idf > 0)
        sizes = np.diff(self._terms.offsets)[of]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        at = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes) + np.repeat(self._terms.offsets[of], sizes)
        at, ends = at[entries[at] != 0], np.concatenate([np.zeros(1, np.int64), np.cumsum(entries[at] != 0)])[offsets]
        columns = known[self._terms.ids[at]] - 1
        return sparse(torch.from_numpy(columns), torch.from_numpy(entries[at]), torch.from_numpy(ends), int(known[-1]))


def _block(raw: F32, fits: npt.NDArray[np.intp]) -> _Block:
    """Past columns differ in unit; an embedding's share one, yet dividing each by its own spread fitted no worse."""
    rows = raw[fits]
    spread = rows.std(axis=0)
    return _Block(raw, rows.mean(axis=0), np.where(spread > 1e-6, spread, 1.0).astype(np.float32))


def _idf(terms: Terms, fits: npt.NDArray[np.intp]) -> F32:
    known = np.zeros(len(terms.offsets) - 1, np.bool_)
    known[fits] = True
    texts = np.bincount(terms.ids[np.repeat(known, np.diff(terms.offsets))], minlength=BUCKETS)
    idf: F32 = np.where(texts >= MIN_TEXTS, np.log((len(fits) + 1) / (texts + 1)) + 1, 0).astype(np.float32)
    return idf
