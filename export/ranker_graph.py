"""The learned ranker as an ONNX graph, from its weights as arrays; the arithmetic is `models.learning.ranker`'s."""

from __future__ import annotations

from export.onnx_graph import GraphBuilder
from models.learning.ranker_weights import RankerWeights


def ranker_graph(weights: RankerWeights, presence: int) -> bytes:
    """`features` [B, K, F] to `score` [B, K].

    Args:
        presence: a feature that is never zero for a candidate, and zero where there is none.
    """
    g = GraphBuilder()
    features, hidden = weights.first[0].shape
    lists = g.op("Slice", g.op("Shape", "features"), g.axes(0), g.axes(2))  # B, K

    def by_list(rows: str, *width: int) -> str:
        """[B K, X] to [B, K, X], [B K, 1] to [B, K]."""
        shape = g.op("Concat", lists, g.axes(*width), axis=0) if width else lists
        return g.op("Reshape", rows, shape, allowzero=1)  # there may be no list at all

    # One row a candidate: with two axes products take their sums and the rectifier along (Gemm), and a column that
    # stands for candidates is [B, K]; ONNX Runtime is slow at spreading something over a last axis of one.
    rows = g.op("Reshape", "features", g.axes(-1, features))
    # Standardising is linear and goes into the first layer: one product over the features as they are.
    weight = weights.scale[:, None] * weights.first[0]
    bias = weights.first[1] - weights.mean @ weight
    h = g.op("Relu", g.op("Gemm", rows, g.constant(weight), g.constant(bias)))  # [B K, H]
    column = g.op("Slice", rows, g.axes(presence), g.axes(presence + 1), g.axes(1))
    present = g.op("Abs", g.op("Sign", by_list(column)))  # [B, K]
    logit = by_list(g.op("MatMul", h, g.constant(weights.attention[0])))  # its bias cancels in the softmax
    absent = g.op("Mul", g.op("Sub", present, g.constant(1.0)), g.constant(1e9))
    share = g.op("Softmax", g.op("Add", logit, absent), axis=1)  # [B, K]
    # An empty list would divide by zero.
    count = g.op("Max", g.op("ReduceSum", present, g.axes(1), keepdims=1), g.constant(1.0))  # [B, 1]
    even = g.op("Div", present, count)  # [B, K]
    ways = g.op("Concat", *(g.op("Unsqueeze", way, g.axes(1)) for way in (share, even)), axis=1)  # [B, 2, K]
    summary = g.op("Reshape", g.op("MatMul", ways, by_list(h, hidden)), g.axes(0, 1, 2 * hidden))  # [B, 1, 2 H]
    context = g.op("MatMul", summary, g.constant(weights.context))  # [B, 1, G]
    own = by_list(g.op("Gemm", h, *map(g.constant, weights.second)), len(weights.last[0]))  # [B, K, G]
    known = g.op("Relu", g.op("Add", own, context))
    last = g.op("Gemm", g.op("Reshape", known, g.axes(-1, len(weights.last[0]))), *map(g.constant, weights.last))
    g.op("Add", by_list(last), absent, out="score")
    return g.model("ranker", {"features": ("B", "K", features)}, {"score": ("B", "K")})
