"""EASE and implicit ALS: fitted on the touches so far, asked with the history by recency, refitted under p2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from tests.benchmarks.quality.peers.pairs import recency
from tests.benchmarks.quality.protocol import BLOCK_ROWS, Part
from tests.benchmarks.quality.stream import F32, I64, Stream

# Longest history that is folded in: under a decay of 0.95 the 200th weighs 3e-5.
FOLDED = 200
# EASE inverts a square of items: 1,682 take a second, 5,000 take 15. Beyond that the least touched ones score 0.
EASE_ITEMS = 5_000
# Fits of one validation pass, so that configurations which differ only in how the history is asked share them.
FITS_HELD = 8


def touches_matrix(stream: Stream, stop: int) -> csr_matrix:
    """float32[U, N] of 0 and 1: first touches among events [0, stop)."""
    at = np.flatnonzero(stream.first[:stop])
    shape = (len(stream.user_ids), stream.catalogue_size)
    return csr_matrix((np.ones(len(at), np.float32), (stream.users[at], stream.items[at])), shape=shape)


def ease(part: Part, *, regularisation: float, decay: float, every: int = 1_000) -> Iterator[F32]:
    """Item weights from the touches so far; the history enters weighted by recency. Source: Steck 2019, equation 8."""

    def ask_after(stop: int) -> Callable[[I64], F32]:
        kept, weights = _ease_weights(part.stream, stop, regularisation)
        place = np.full(part.stream.catalogue_size, -1)
        place[kept] = np.arange(len(kept))

        def ask(history: I64) -> F32:
            at = place[history]
            scores = np.zeros(part.stream.catalogue_size, np.float32)
            scores[kept] = recency(len(history), decay)[at >= 0] @ weights[at[at >= 0]]
            return scores

        return ask

    return _refitted(part, ask_after, every)


def als(
    part: Part, *, factors: int, regularisation: float, alpha: float, decay: float, every: int = 1_000
) -> Iterator[F32]:
    """Item factors by `implicit`; the user is solved anew from his history, confidences weighted by recency.

    Source: Hu, Koren & Volinsky 2008, equation 4; an empty history gets the mean item's direction.
    """

    def ask_after(stop: int) -> Callable[[I64], F32]:
        items = _als_items(part.stream, stop, factors, regularisation, alpha)
        ground = items.T @ items + regularisation * np.eye(factors, dtype=np.float32)

        def ask(history: I64) -> F32:
            if not len(history):
                return items @ items.mean(0)
            weights, own = recency(len(history), decay), items[history]
            confident = ground + (own.T * (alpha * weights)) @ own
            return items @ np.linalg.solve(confident, ((1 + alpha) * weights) @ own).astype(np.float32)

        return ask

    return _refitted(part, ask_after, every)


@lru_cache(maxsize=FITS_HELD)
def _ease_weights(stream: Stream, stop: int, regularisation: float) -> tuple[I64, F32]:
    """(items int64[E], weights float32[E, E]) of the most touched items."""
    touched = touches_matrix(stream, stop)
    counts = np.asarray(touched.sum(0)).ravel()
    kept = np.sort(np.argsort(-counts, kind="stable")[:EASE_ITEMS])
    kept = kept[counts[kept] > 0]
    gram = (touched[:, kept].T @ touched[:, kept]).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularisation
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0
    return kept, weights.astype(np.float32)


@lru_cache(maxsize=FITS_HELD)
def _als_items(stream: Stream, stop: int, factors: int, regularisation: float, alpha: float) -> F32:
    """float32[N, F]."""
    model = AlternatingLeastSquares(
        factors=factors, regularization=regularisation, alpha=alpha, iterations=15, random_state=0, num_threads=1
    )
    model.fit(touches_matrix(stream, stop), show_progress=False)
    return np.asarray(model.item_factors, np.float32)


def _refitted(part: Part, ask_after: Callable[[int], Callable[[I64], F32]], every: int) -> Iterator[F32]:
    for before, positions in part.blocks(every):
        if not len(positions):
            continue
        ask = ask_after(before)
        for start in range(0, len(positions), BLOCK_ROWS):
            yield np.stack([ask(part.history(k)[-FOLDED:]) for k in positions[start : start + BLOCK_ROWS]])
