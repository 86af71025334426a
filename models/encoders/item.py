"""The item tower over one ONNX graph: `text` float32[N, E] -> `item` float32[N, D]. Knows no catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.domain.errors import EncoderError
from models.domain.ports import F32
from models.encoders.session import input_names, output_names, run

OUTPUTS = ("item",)


class OnnxItemEncoder:
    """`ItemEncoder` on ONNX Runtime. It reads an item's text alone, so that an item is known before its first event.

    Raises: EncoderError when the graph has other inputs or outputs than the contract above.
    """

    def __init__(self, session: Any, *, dimension: int) -> None:
        if input_names(session) != ("text",) or output_names(session) != OUTPUTS:
            raise EncoderError(
                f"item: {input_names(session)} -> {output_names(session)}, needed ('text',) -> {OUTPUTS}"
            )
        self.dimension = dimension
        self._session = session

    def encode_many(self, item_ids: Sequence[str], text: F32) -> F32:
        if len(item_ids) != len(text):
            raise EncoderError(f"item: {len(item_ids)} ids and {len(text)} texts")
        items: F32 = run(self._session, OUTPUTS, {"text": np.asarray(text, np.float32)})[0]
        return items
