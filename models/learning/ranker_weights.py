"""The ranker's weights as numpy arrays: what export writes. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RankerWeights:
    """The network as plain arrays; `mean` and `scale` standardise the features."""

    mean: npt.NDArray[np.float32]
    """float32[F]."""
    scale: npt.NDArray[np.float32]
    first: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    """Weight float32[F, H] and bias float32[H]."""
    attention: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    """float32[H, 1], float32[1]."""
    second: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    """float32[H, G], float32[G]."""
    context: npt.NDArray[np.float32]
    """float32[2 H, G]."""
    last: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    """float32[G, 1], float32[1]."""
    straight: npt.NDArray[np.float32]
    """float32[F], added to the score as they are."""
