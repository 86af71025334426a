"""The fixed projection of text embeddings to item space: a random one, since no data may choose a better.

It keeps inner products up to noise for any catalogue and any language model. Principal components of the language
model's own vocabulary were tried against it and lost where it counts (README).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SEED = 0
# Coarser than what processors and linear algebra libraries leave undetermined (1e-15), finer than a float32 embedding's
# own noise: every machine builds the same bytes, and so the same bundle version.
DECIMALS = 6


def random_projection(rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Orthonormal columns (rows where there are fewer); the same numbers every time.

    Returns: float32[rows, columns].
    """
    # The legacy generator: its stream is frozen, a `Generator`'s may change with numpy.
    drawn = np.random.RandomState(SEED).normal(size=(max(rows, columns), min(rows, columns)))
    orthonormal, upper = np.linalg.qr(drawn)
    # The signs of a QR decomposition are the library's choice; a positive diagonal makes it unique.
    unique = orthonormal * np.sign(np.diag(upper))
    oriented = unique if rows >= columns else unique.T
    return (oriented + 0.0).round(DECIMALS).astype(np.float32)
