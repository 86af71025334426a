"""Exact search by inner product over vectors held in one array. It knows nothing of durability, threads or engines."""

from __future__ import annotations

import heapq

import numpy as np

from models.domain.ports import F32

# Queries multiplied at a time: 100,000 scores of each are 6 MB.
BLOCK_ROWS = 16

_FIRST_CAPACITY = 1024


class ItemMatrix:
    """Item vectors by id with their availability; rows are kept dense by moving the last one into a gap."""

    def __init__(self, dimension: int) -> None:
        self._vectors = np.zeros((_FIRST_CAPACITY, dimension), np.float32)  # [N, D]
        self._off = np.zeros(_FIRST_CAPACITY, np.bool_)  # [N], True where the item is not available
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def set(self, item_id: str, vector: F32, available: bool) -> None:
        row = self._rows.get(item_id)
        if row is None:
            row = len(self._ids)
            if row == len(self._vectors):
                self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
                self._off = np.concatenate([self._off, np.zeros_like(self._off)])
            self._ids.append(item_id)
            self._rows[item_id] = row
        self._vectors[row] = vector
        self._off[row] = not available

    def remove(self, item_id: str) -> None:
        row = self._rows.pop(item_id, None)
        if row is None:
            return
        last_id = self._ids.pop()
        last = len(self._ids)
        if row != last:
            self._ids[row] = last_id
            self._rows[last_id] = row
            self._vectors[row] = self._vectors[last]
            self._off[row] = self._off[last]

    def search(self, vectors: F32, k: int) -> list[list[tuple[str, float]]]:
        """The k available items of largest inner product, best first, ties by item_id.

        Args:
            vectors: float32[B, D].
        Returns: B lists of (item_id, score), shorter than k where fewer items are available.
        """
        items = len(self._ids)
        off = np.flatnonzero(self._off[:items])
        k = min(k, items - len(off))
        if k == 0:
            return [[] for _ in range(len(vectors))]
        found: list[list[tuple[str, float]]] = []
        for start in range(0, len(vectors), BLOCK_ROWS):
            scores = self._products(vectors[start : start + BLOCK_ROWS])
            scores[:, off] = -np.inf
            found.extend(self._best(scores, k))
        return found

    def _products(self, rows: F32) -> F32:
        """A batch of n gives what n batches of one give, to the bit.

        Args: rows: float32[R, D], at most BLOCK_ROWS. Returns: float32[R, N].
        """
        from models.domain.heaps import products  # here: whoever only writes and reads loads no compiler

        found = np.empty((len(rows), len(self._ids)), np.float32)
        products(np.ascontiguousarray(rows), self._vectors[: len(self._ids)], found)
        return found

    def _best(self, scores: F32, k: int) -> list[list[tuple[str, float]]]:
        items = scores.shape[1]
        top = np.argpartition(scores, items - k, axis=1)[:, items - k :]  # [B, k]
        top_scores = np.take_along_axis(scores, top, axis=1)
        order = np.argsort(-top_scores, axis=1)
        top = np.take_along_axis(top, order, axis=1)
        top_scores = np.take_along_axis(top_scores, order, axis=1)
        worst = top_scores[:, -1:]
        # A tie is rare between learned vectors and certain between items without text (zero vectors).
        tied = (top_scores[:, 1:] == top_scores[:, :-1]).any(axis=1) | ((scores >= worst).sum(axis=1) > k)
        ids = self._ids
        lists = []
        for row, (columns, values) in enumerate(zip(top.tolist(), top_scores.tolist(), strict=True)):
            if tied[row]:
                lists.append(self._by_name(scores[row], k, values[-1]))
            else:
                lists.append([(ids[column], value) for column, value in zip(columns, values, strict=True)])
        return lists

    def _by_name(self, scores: F32, k: int, worst: float) -> list[tuple[str, float]]:
        ids = self._ids
        best = sorted(((ids[c], float(scores[c])) for c in np.flatnonzero(scores > worst)), key=lambda x: (-x[1], x[0]))
        names = heapq.nsmallest(k - len(best), (ids[c] for c in np.flatnonzero(scores == worst)))
        return best + [(name, worst) for name in names]
