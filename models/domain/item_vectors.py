"""One model's vectors of the catalogue's items, numbered as the catalogue numbers them.

Knows nothing of the items themselves; the catalogue keeps it in step while it is attached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class ItemVectors:
    """
    Args:
        dimension: D of the vectors.
        placeholder: the vector of an item of which nothing is known but its id; None = zeros.
    """

    def __init__(self, capacity: int, dimension: int, placeholder: Callable[[str], F32] | None = None) -> None:
        self.rows: F32 = np.zeros((capacity, dimension), np.float32)
        """float32[capacity, D]."""
        self.present = np.zeros(capacity, np.bool_)
        """Whether a row says more than a bias: zeros in its other columns recommend nothing."""
        self.placeholder = placeholder

    def put(self, indices: Sequence[int] | npt.NDArray[np.int32], vectors: F32) -> None:
        """
        Args:
            vectors: float32[n, D].
        """
        at = np.asarray(indices, np.int64)
        self.rows[at] = vectors
        self.present[at] = np.any(vectors[:, :-1] != 0.0, axis=1)

    def hold_place(self, at: int, item_id: str) -> None:
        """The item is known by its id alone."""
        if self.placeholder is not None:
            self.put([at], self.placeholder(item_id)[None])

    def clear(self, at: int) -> None:
        self.rows[at] = 0.0
        self.present[at] = False

    def grow(self, capacity: int) -> None:
        rows, present = np.zeros((capacity, self.rows.shape[1]), np.float32), np.zeros(capacity, np.bool_)
        rows[: len(self.rows)], present[: len(self.rows)] = self.rows, self.present
        self.rows, self.present = rows, present
