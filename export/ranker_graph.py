"""The learned ranker as an ONNX graph, from its weights as arrays; the arithmetic is `models.learning.ranker`'s."""

from __future__ import annotations

import numpy as np

from export.onnx_graph import GraphBuilder
from models.learning.ranker_weights import RankerWeights


def ranker_graph(weights: RankerWeights, presence: int) -> bytes:
    """`features` [B, K, F] to `score` [B, K].

    Args:
        presence: a feature that is never zero for a candidate, and zero where there is none.
    """
    g = GraphBuilder()
    features, hidden = weights.first[0].shape
    second = len(weights.last[0])
    lists = g.op("Slice", g.op("Shape", "features"), g.axes(0), g.axes(2))  # B, K
    # One row a candidate: the product takes its sum and the rectifier along (Gemm). What the weights add by themselves
    # goes along as two units, what is above zero and what is below: ONNX Runtime is slow at a product of one column.
    rows = g.op("Reshape", "features", g.axes(-1, features))
    wide, bias = weights.first
    wide = np.concatenate([wide, weights.straight[:, None], -weights.straight[:, None]], axis=1)  # [F, H + 2]
    # Standardising is linear and goes into the first layer: one product over the features as they are.
    wide = weights.scale[:, None] * wide
    bias = np.concatenate([bias, np.zeros(2, np.float32)]) - weights.mean @ wide
    h = g.op("Relu", g.op("Gemm", rows, g.constant(wide), g.constant(bias)))  # [B K, H + 2]
    by_list = g.op("Concat", lists, g.axes(hidden + 2), axis=0)
    h = g.op("Reshape", h, by_list, allowzero=1)  # there may be no list at all
    column = g.op("Slice", rows, g.axes(presence), g.axes(presence + 1), g.axes(1))
    present = g.op("Abs", g.op("Sign", g.op("Reshape", column, lists, allowzero=1)))  # [B, K]
    # From here on candidates lie side by side: what a list's summary adds is one number for all of them, and ONNX
    # Runtime is slow at spreading numbers over a short last axis. The attention (its bias cancels in the softmax) and
    # what the weights add are two rows more of the same product.
    both = np.zeros((second + 2, hidden + 2), np.float32)
    both[:second, :hidden] = weights.second[0].T
    both[second, :hidden] = weights.attention[0][:, 0]
    both[second + 1, hidden:] = 1.0, -1.0
    own = g.op("MatMul", g.constant(both), g.op("Transpose", h, perm=(0, 2, 1)))  # [B, G + 2, K]
    logit, straight = (
        g.op("Squeeze", g.op("Slice", own, g.axes(row), g.axes(row + 1), g.axes(1)), g.axes(1))  # [B, K]
        for row in (second, second + 1)
    )
    absent = g.op("Mul", g.op("Sub", present, g.constant(1.0)), g.constant(1e9))
    share = g.op("Softmax", g.op("Add", logit, absent), axis=1)  # [B, K]
    # An empty list would divide by zero.
    count = g.op("Max", g.op("ReduceSum", present, g.axes(1), keepdims=1), g.constant(1.0))  # [B, 1]
    even = g.op("Div", present, count)  # [B, K]
    # Two products of one row each: for two rows at once ONNX Runtime copies `h` first.
    ways = (g.op("MatMul", g.op("Unsqueeze", way, g.axes(1)), h) for way in (share, even))  # [B, 1, H + 2]
    summary = g.op("Squeeze", g.op("Concat", *ways, axis=2), g.axes(1))  # [B, 2 (H + 2)]
    context = np.zeros((2, hidden + 2, second + 2), np.float32)
    context[:, :hidden, :second] = weights.context.reshape(2, hidden, second)
    none = np.zeros(2, np.float32)  # of the attention's row and the weights'
    level = g.constant(np.concatenate([weights.second[1], none]))
    added = g.op("Gemm", summary, g.constant(context.reshape(-1, second + 2)), level)
    known = g.op("Relu", g.op("Add", own, g.op("Unsqueeze", added, g.axes(2))))  # [B, G + 2, K]
    last = g.op("MatMul", g.constant(np.concatenate([weights.last[0][:, 0], none])[None]), known)  # [B, 1, K]
    score = g.op("Add", g.op("Squeeze", last, g.axes(1)), g.op("Add", straight, g.constant(weights.last[1])))  # [B, K]
    g.op("Add", score, absent, out="score")
    return g.model("ranker", {"features": ("B", "K", features)}, {"score": ("B", "K")})
