"""The review head's weights as numpy arrays, and what they read: what export is held to. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.domain.ports import NO_VALUE
from models.domain.review_text import F32, Terms, hashed_terms


@dataclass(frozen=True)
class ReviewValueWeights:
    """Two ordinal models over K thresholds: the one that is served reads a text, `state_*` foresees from the past.

    Both give K log-odds that the value lies above a threshold; a value is `base` + the steps weighted by those odds.
    """

    idf: F32
    """float32[H], 0 for a bucket seen in fewer than two texts."""
    words: F32
    """float32[H, K]."""
    embedding: F32
    """float32[E, K]."""
    text_bias: F32
    """float32[K]."""
    state_past: F32
    """float32[P, K]."""
    state_bias: F32
    """float32[K]."""
    base: float
    """The lowest level, 0 to 1."""
    steps: F32
    """float32[K], from level to level, so that base + sum of steps is the highest."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation errors and chosen penalties, for people."""

    @property
    def levels(self) -> F32:
        """float32[K + 1], the values that the scale has, rising."""
        return (self.base + np.concatenate([[0.0], np.cumsum(self.steps)])).astype(np.float32)

    def value(self, log_odds: F32) -> F32:
        """float32[n, K] -> float32[n], 0 to 1."""
        odds = 1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))
        return (self.base + odds @ self.steps).astype(np.float32)


def word_entries(terms: Terms, idf: F32) -> F32:
    """float32[M], sublinear counts times idf, each text's of length 1."""
    entries = (1 + np.log(terms.counts)) * idf[terms.ids]
    rows = np.repeat(np.arange(len(terms.offsets) - 1), np.diff(terms.offsets))
    lengths = np.sqrt(np.bincount(rows, entries.astype(np.float64) ** 2, minlength=len(terms.offsets) - 1))
    return (entries / np.maximum(lengths, 1e-9)[rows]).astype(np.float32)


def from_text(weights: ReviewValueWeights, texts: Sequence[str], embeddings: F32) -> F32:
    """float32[n], the values that the texts speak of; NO_VALUE for one without terms.

    Shapes as in `fit_review_value`.
    """
    terms = hashed_terms(texts)
    entries = word_entries(terms, weights.idf)
    rows = np.repeat(np.arange(len(texts)), np.diff(terms.offsets))
    log_odds = embeddings @ weights.embedding + weights.text_bias
    for k in range(log_odds.shape[1]):
        log_odds[:, k] += np.bincount(rows, entries * weights.words[terms.ids, k], minlength=len(texts))
    return np.where(np.diff(terms.offsets) > 0, weights.value(log_odds), np.float32(NO_VALUE))


def from_state(weights: ReviewValueWeights, past: F32) -> F32:
    """float32[n], the values that the past alone foresees."""
    return weights.value(past @ weights.state_past + weights.state_bias)
