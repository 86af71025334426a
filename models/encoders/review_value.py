"""The review head over one ONNX graph: a text's hashed terms and its embedding to a value.

Graph contract: `terms` int64[M], the `rows` they stand in int64[M], `counts` float32[M] and `embedding` float32[B, E]
-> `value` float32[B], what is expected, and `level` float32[B], the value on the users' scale nearest to it. Knows no
event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.domain.errors import EncoderError
from models.domain.ports import F32, NO_VALUE
from models.domain.review_text import hashed_terms
from models.encoders.session import input_names, output_names, run, static_shape

INPUTS = ("terms", "rows", "counts", "embedding")
OUTPUTS = ("value", "level")


class OnnxReviewValue:
    """`ValueReader` on ONNX Runtime; safe to call from several threads.

    Args:
        session: the graph of the contract above.
    Raises: EncoderError when the graph has other inputs or outputs.
    """

    def __init__(self, session: Any) -> None:
        declared, given = set(input_names(session)), output_names(session)
        if declared != set(INPUTS) or given != OUTPUTS:
            raise EncoderError(f"review value: {sorted(declared)} -> {given}, needed {INPUTS} -> {OUTPUTS}")
        shapes = {node.name: static_shape(node) for node in session.get_inputs()}
        self.text_dimension = shapes["embedding"][1] or 0
        self._session = session

    def read_many(self, texts: Sequence[str], embeddings: F32) -> F32:
        """See `ValueReader`. Raises: EncoderError when the shapes do not fit each other or the graph."""
        return self._read("level", texts, embeddings)

    def expect_many(self, texts: Sequence[str], embeddings: F32) -> F32:
        """As `read_many`, between the values of the scale: the nearest to the truth on average."""
        return self._read("value", texts, embeddings)

    def _read(self, output: str, texts: Sequence[str], embeddings: F32) -> F32:
        if embeddings.shape != (len(texts), self.text_dimension):
            raise EncoderError(
                f"review value: `embedding` of shape {embeddings.shape}, needed {(len(texts), self.text_dimension)}"
            )
        terms = hashed_terms(texts)
        sizes = np.diff(terms.offsets)
        rows = np.repeat(np.arange(len(sizes)), sizes)
        feed: dict[str, Any] = {"terms": terms.ids, "rows": rows, "counts": terms.counts, "embedding": embeddings}
        return np.where(sizes > 0, run(self._session, (output,), feed)[0], np.float32(NO_VALUE))
