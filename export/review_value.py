"""The review head as an ONNX graph: gathered weights of hashed terms, two products, and the sum over levels.

Arithmetic, with K thresholds, f the idf of a term and n its count in the text:

    w    = (1 + ln n) f
    z    = sum(w words) / |w| + embedding W + past V + b
    from_text = base + sum over thresholds of step * sigmoid(z)

and the same without words and embedding for `from_state`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, checker, helper

from export.onnx_graph import IR_VERSION, OPSET, GraphBuilder
from models.domain.errors import ParityError
from models.domain.ports import F32
from models.encoders.review_value import OnnxReviewValue
from models.encoders.session import CPU, open_session
from models.learning.review_value_weights import ReviewValueWeights, from_state, from_text

FILE = "review_value.onnx"
# Sums of some 300 products in another order; on a scale of five stars this is 0.00005 stars.
TOLERANCE = 1e-5


def review_value_graph(weights: ReviewValueWeights) -> bytes:
    """The bytes of `review_value.onnx`; the contract stands in `models/encoders/review_value.py`."""
    g = GraphBuilder()
    levels = g.constant(weights.steps[:, None])  # [K, 1]
    base = g.constant(weights.base)

    def value(log_odds: str, out: str) -> None:
        expected = g.op("MatMul", g.op("Sigmoid", log_odds), levels)  # [B, 1]
        g.op("Add", g.op("Squeeze", expected, g.axes(1)), base, out=out)  # [B]

    width = len(weights.steps)
    logs = g.op("Add", g.op("Log", "counts"), g.constant(1.0))  # [M]
    idf = g.op("Gather", g.constant(weights.idf), "terms")  # [M]
    w = g.op("Unsqueeze", g.op("Mul", logs, idf), g.axes(1))  # [M, 1]
    weighted = g.op("Mul", w, g.op("Gather", g.constant(weights.words), "terms"))  # [M, K]
    parts = g.op("Concat", weighted, g.op("Mul", w, w), axis=1)  # [M, K + 1]
    shape = g.op("Concat", g.op("Shape", "past", start=0, end=1), g.axes(width + 1), axis=0)
    nothing = g.op("Expand", g.constant(0.0), shape)  # [B, K + 1]
    sums = g.op("ScatterND", nothing, g.op("Unsqueeze", "rows", g.axes(1)), parts, reduction="add")  # [B, K + 1]
    words = g.op("Slice", sums, g.axes(0), g.axes(width), g.axes(1))  # [B, K]
    squares = g.op("Slice", sums, g.axes(width), g.axes(width + 1), g.axes(1))  # [B, 1]
    z = g.op("Div", words, g.op("Max", g.op("Sqrt", squares), g.constant(1e-9)))  # [B, K]
    z = g.op("Add", z, g.op("MatMul", "past", g.constant(weights.text_past)))
    z = g.op("Add", z, g.constant(weights.text_bias))
    embeds = len(weights.embedding) > 0
    if embeds:
        z = g.op("Add", z, g.op("MatMul", "embedding", g.constant(weights.embedding)))
    value(z, "from_text")
    foreseen = g.op("MatMul", "past", g.constant(weights.state_past))  # [B, K]
    value(g.op("Add", foreseen, g.constant(weights.state_bias)), "from_state")

    def declared(name: str, *axes: str | int, kind: int = TensorProto.FLOAT) -> object:
        return helper.make_tensor_value_info(name, kind, axes)

    inputs = [
        declared("terms", "M", kind=TensorProto.INT64),
        declared("rows", "M", kind=TensorProto.INT64),
        declared("counts", "M"),
        *([declared("embedding", "B", len(weights.embedding))] if embeds else []),
        declared("past", "B", len(weights.text_past)),
    ]
    outputs = [declared("from_text", "B"), declared("from_state", "B")]
    graph = helper.make_graph(g.nodes, "review_value", inputs, outputs, g.constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="streamrec"
    )
    checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def export_review_value(
    weights: ReviewValueWeights, texts: Sequence[str], embeddings: F32 | None, past: F32
) -> tuple[bytes, float]:
    """The graph, and the largest difference between it and the weights on a sample of reviews.

    Args:
        texts, embeddings, past: the sample; shapes as in `fit_review_value`.
    Raises: ParityError when they differ by more than `TOLERANCE`.
    """
    data = review_value_graph(weights)
    head = OnnxReviewValue(open_session(FILE, data, [CPU], threads=1, shapes_vary=True))
    differences = [
        np.abs(head.foresee_many(past) - from_state(weights, past)),
        np.abs(head.predict_many(texts, embeddings, past) - from_text(weights, texts, embeddings, past)),
    ]
    worst = float(np.max(np.concatenate(differences), initial=0.0))
    if not worst <= TOLERANCE:
        raise ParityError(f"{FILE}: graph and weights differ by {worst:.2g}, allowed {TOLERANCE:.0e}")
    return data, worst
