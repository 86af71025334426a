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
    # Standardising is linear and goes into the first layer: one product over the features as they are.
    weight = weights.scale[:, None] * weights.first[0]
    bias = weights.first[1] - weights.mean @ weight
    h = g.op("Relu", g.op("Add", g.op("MatMul", "features", g.constant(weight)), g.constant(bias)))  # [B, K, H]
    column = g.op("Slice", "features", g.axes(presence), g.axes(presence + 1), g.axes(2))
    present = g.op("Abs", g.op("Sign", column))  # [B, K, 1]
    logit = g.op("MatMul", h, g.constant(weights.attention[0]))  # [B, K, 1]; its bias cancels in the softmax
    absent = g.op("Mul", g.op("Sub", present, g.constant(1.0)), g.constant(1e9))
    share = g.op("Softmax", g.op("Add", logit, absent), axis=1)  # [B, K, 1]
    # An empty list would divide by zero.
    count = g.op("Max", g.op("ReduceSum", present, g.axes(1), keepdims=1), g.constant(1.0))  # [B, 1, 1]
    even = g.op("Div", present, count)  # [B, K, 1]
    ways = g.op("Transpose", g.op("Concat", share, even, axis=2), perm=[0, 2, 1])  # [B, 2, K]
    summary = g.op("Reshape", g.op("MatMul", ways, h), g.axes(0, 1, 2 * hidden))  # [B, 1, 2 H]
    context = g.op("MatMul", summary, g.constant(weights.context))  # [B, 1, G]
    own = g.op("Add", g.op("MatMul", h, g.constant(weights.second[0])), g.constant(weights.second[1]))
    last = g.op("MatMul", g.op("Relu", g.op("Add", own, context)), g.constant(weights.last[0]))  # [B, K, 1]
    score = g.op("Add", g.op("Add", last, g.constant(weights.last[1])), absent)
    g.op("Squeeze", score, g.axes(2), out="score")
    return g.model("ranker", {"features": ("B", "K", features)}, {"score": ("B", "K")})
