"""The review head as an ONNX graph: gathered weights of hashed terms, a product, and the sum over levels.

Arithmetic, with K thresholds, f the idf of a term and n its count in the text:

    w    = (1 + ln n) f
    z    = sum(w words) / |w| + embedding W + b
    value = base + sum over thresholds of step * sigmoid(z)
    level = the nearest to it of base, base + the first step, ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.onnx_graph import GraphBuilder
from models.domain.errors import ParityError
from models.domain.ports import F32
from models.encoders.review_value import OnnxReviewValue
from models.encoders.session import CPU, open_session
from models.learning.review_value_weights import ReviewValueWeights, from_text

FILE = "review_value.onnx"
# Sums of some 300 products in another order; on a scale of five stars this is 0.00005 stars.
TOLERANCE = 1e-5


def review_value_graph(weights: ReviewValueWeights) -> bytes:
    """The bytes of `review_value.onnx`; the contract stands in `models/encoders/review_value.py`."""
    g = GraphBuilder()
    width = len(weights.steps)
    logs = g.op("Add", g.op("Log", "counts"), g.constant(1.0))  # [M]
    idf = g.op("Gather", g.constant(weights.idf), "terms")  # [M]
    w = g.op("Unsqueeze", g.op("Mul", logs, idf), g.axes(1))  # [M, 1]
    weighted = g.op("Mul", w, g.op("Gather", g.constant(weights.words), "terms"))  # [M, K]
    parts = g.op("Concat", weighted, g.op("Mul", w, w), axis=1)  # [M, K + 1]
    shape = g.op("Concat", g.op("Shape", "embedding", start=0, end=1), g.axes(width + 1), axis=0)
    nothing = g.op("Expand", g.constant(0.0), shape)  # [B, K + 1]
    sums = g.op("ScatterND", nothing, g.op("Unsqueeze", "rows", g.axes(1)), parts, reduction="add")  # [B, K + 1]
    words = g.op("Slice", sums, g.axes(0), g.axes(width), g.axes(1))  # [B, K]
    squares = g.op("Slice", sums, g.axes(width), g.axes(width + 1), g.axes(1))  # [B, 1]
    z = g.op("Div", words, g.op("Max", g.op("Sqrt", squares), g.constant(1e-9)))  # [B, K]
    z = g.op("Add", z, g.op("MatMul", "embedding", g.constant(weights.embedding)))
    z = g.op("Add", z, g.constant(weights.text_bias))
    expected = g.op("MatMul", g.op("Sigmoid", z), g.constant(weights.steps[:, None]))  # [B, 1]
    g.op("Add", g.op("Squeeze", expected, g.axes(1)), g.constant(weights.base), out="value")  # [B]
    levels = g.constant(weights.levels)  # [K + 1]
    away = g.op("Abs", g.op("Sub", g.op("Unsqueeze", "value", g.axes(1)), levels))  # [B, K + 1]
    g.op("Gather", levels, g.op("ArgMin", away, axis=1, keepdims=0), out="level")  # [B]

    inputs = {"terms": ("M",), "rows": ("M",), "counts": ("M",), "embedding": ("B", len(weights.embedding))}
    return g.model("review_value", inputs, {"value": ("B",), "level": ("B",)})


def open_review_value(data: bytes) -> OnnxReviewValue:
    """The graph as a worker would have it, without a bundle on disk."""
    return OnnxReviewValue(open_session(FILE, data, [CPU], threads=1, shapes_vary=True))


def export_review_value(weights: ReviewValueWeights, texts: Sequence[str], embeddings: F32) -> tuple[bytes, float]:
    """The graph, and the largest difference between it and the weights on a sample of reviews.

    Args:
        texts, embeddings: the sample; shapes as in `fit_review_value`.
    Raises: ParityError when they differ by more than `TOLERANCE`.
    """
    data = review_value_graph(weights)
    differences = np.abs(open_review_value(data).expect_many(texts, embeddings) - from_text(weights, texts, embeddings))
    worst = float(np.max(differences, initial=0.0))
    if not worst <= TOLERANCE:
        raise ParityError(f"{FILE}: graph and weights differ by {worst:.2g}, allowed {TOLERANCE:.0e}")
    return data, worst
