"""The ranker over one ONNX graph: features in, scores out. Knows names and order of features, not their meaning.

Graph contract: `features` float32[B, K, F] and, where it is log-linear with the caller's weights, `weights`
float32[B, F] -> `score` float32[B, K].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.domain.errors import EncoderError
from models.domain.ports import F32
from models.encoders.session import input_names, output_names, run

OUTPUTS = ("score",)


class OnnxRanker:
    """`Ranker` on ONNX Runtime; safe to call from several threads.

    Args:
        features: names of the F features, in the order of the axis.
        initial_weights: float32[F] for a graph with the input `weights`, None for a learned one.
    Raises: EncoderError when graph and weights do not agree.
    """

    def __init__(self, session: Any, *, features: Sequence[str], initial_weights: Sequence[float] | None) -> None:
        declared = set(input_names(session))
        if not {"features"} <= declared <= {"features", "weights"} or output_names(session) != OUTPUTS:
            raise EncoderError(
                f"ranker: {sorted(declared)} -> {output_names(session)}, needed features[, weights] -> {OUTPUTS}"
            )
        self._takes_weights = "weights" in declared
        if self._takes_weights != (initial_weights is not None):
            raise EncoderError("ranker: `initial_weights` belong to a graph with the input `weights`, and only to it")
        if initial_weights is not None and len(initial_weights) != len(features):
            raise EncoderError(f"ranker: {len(features)} features and {len(initial_weights)} initial weights")
        self.features: Sequence[str] = tuple(features)
        self._session = session
        self._initial_weights = None if initial_weights is None else np.array(initial_weights, np.float32)

    @property
    def initial_weights(self) -> F32 | None:
        """A copy: weights that adapt start from it and must not change it."""
        return None if self._initial_weights is None else self._initial_weights.copy()

    def score(self, features: F32, weights: F32 | None) -> F32:
        if features.ndim != 3 or features.shape[2] != len(self.features):
            raise EncoderError(f"ranker: features of shape {features.shape}, needed [B, K, {len(self.features)}]")
        feed: dict[str, Any] = {"features": features}
        if self._takes_weights:
            if weights is None or weights.shape != (features.shape[0], features.shape[2]):
                shape = None if weights is None else weights.shape
                raise EncoderError(f"ranker: weights of shape {shape}, needed {(features.shape[0], features.shape[2])}")
            feed["weights"] = weights
        elif weights is not None:
            raise EncoderError("ranker: weights were given to a graph that has its own")
        scores: F32 = run(self._session, OUTPUTS, feed)[0]
        return scores
