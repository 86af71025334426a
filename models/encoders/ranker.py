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
# Candidates a call of the runtime: their hidden layer (400 KiB) stays in the second-level cache. 64 lists of 128 at
# once take three times as long as in four calls.
_ROWS = 2_048


class OnnxRanker:
    """`Ranker` on ONNX Runtime; safe to call from several threads.

    Args:
        features: names of the F features, in the order of the axis.
        initial_weights: float32[F] for a graph with the input `weights`, None for a learned one.
        candidates, source_weights: see the port.
    Raises: EncoderError when graph and weights do not agree.
    """

    def __init__(
        self,
        session: Any,
        *,
        features: Sequence[str],
        initial_weights: Sequence[float] | None,
        candidates: int = 0,
        source_weights: Sequence[float] | None = None,
    ) -> None:
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
        self.candidates = candidates
        self.source_weights = None if source_weights is None else np.array(source_weights, np.float32)
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
        lists = max(1, _ROWS // max(1, features.shape[1]))
        if len(features) <= lists:
            scores: F32 = run(self._session, OUTPUTS, feed)[0]
            return scores
        parts = [
            run(self._session, OUTPUTS, {name: array[at : at + lists] for name, array in feed.items()})[0]
            for at in range(0, len(features), lists)
        ]
        return np.concatenate(parts)
