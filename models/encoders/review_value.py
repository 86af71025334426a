"""The review head over one ONNX graph: a text's hashed terms, its embedding and past means to a value.

Graph contract: `terms` int64[M], the `rows` they stand in int64[M], `counts` float32[M] and `past` float32[B, P] ->
`from_text` float32[B] and `from_state` float32[B]; fitted with embeddings, it also takes `embedding` float32[B, E].
Knows no event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.domain.errors import EncoderError
from models.domain.ports import F32
from models.domain.review_text import Terms, hashed_terms
from models.encoders.session import input_names, output_names, run, static_shape

INPUTS = ("terms", "rows", "counts", "past")
OUTPUTS = ("from_text", "from_state")


class OnnxReviewValue:
    """Predicts the value of a review on ONNX Runtime, 0 to 1; safe to call from several threads.

    Args:
        session: the graph of the contract above.
    Raises: EncoderError when the graph has other inputs or outputs.
    """

    def __init__(self, session: Any) -> None:
        declared, given = set(input_names(session)), output_names(session)
        self.takes_embeddings = "embedding" in declared
        if not set(INPUTS) <= declared <= {*INPUTS, "embedding"} or given != OUTPUTS:
            raise EncoderError(
                f"review value: {sorted(declared)} -> {given}, needed {INPUTS}[, embedding] -> {OUTPUTS}"
            )
        shapes = {node.name: static_shape(node) for node in session.get_inputs()}
        self.past_columns = shapes["past"][1] or 0
        self.text_dimension = shapes["embedding"][1] or 0 if self.takes_embeddings else 0
        self._session = session

    def predict_many(self, texts: Sequence[str], embeddings: F32 | None, past: F32) -> F32:
        """The value that each event's own text speaks of; of an empty text, what its past foresees.

        Args:
            embeddings: float32[B, E] of the same texts; None exactly where the head was fitted without.
            past: float32[B, P], a row of `PastValues` each.
        Returns: float32[B], 0 to 1.
        Raises: EncoderError when the shapes do not fit each other or the graph.
        """
        self._checked(len(texts), embeddings, past)
        terms = hashed_terms(texts)
        read, foreseen = self._run(OUTPUTS, terms, embeddings, past)
        return np.where(np.diff(terms.offsets) > 0, read, foreseen)

    def foresee_many(self, past: F32) -> F32:
        """float32[B], 0 to 1, the value that the past alone foresees: before a text is there, or without one."""
        embeddings = np.zeros((len(past), self.text_dimension), np.float32) if self.takes_embeddings else None
        self._checked(len(past), embeddings, past)
        return self._run(("from_state",), hashed_terms([]), embeddings, past)[0]

    def _run(self, outputs: Sequence[str], terms: Terms, embeddings: F32 | None, past: F32) -> list[F32]:
        sizes = np.diff(terms.offsets)
        rows = np.repeat(np.arange(len(sizes)), sizes)
        feed: dict[str, Any] = {"terms": terms.ids, "rows": rows, "counts": terms.counts, "past": past}
        if embeddings is not None:
            feed["embedding"] = embeddings
        return run(self._session, outputs, feed)

    def _checked(self, count: int, embeddings: F32 | None, past: F32) -> None:
        if (embeddings is not None) != self.takes_embeddings:
            raise EncoderError(
                f"review value: the head was fitted {'with' if self.takes_embeddings else 'without'} embeddings"
            )
        for name, rows, width in (("past", past, self.past_columns), ("embedding", embeddings, self.text_dimension)):
            if rows is not None and rows.shape != (count, width):
                raise EncoderError(f"review value: `{name}` of shape {rows.shape}, needed {(count, width)}")
