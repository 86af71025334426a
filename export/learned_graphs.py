"""The three graphs of a trained user encoder, written from numpy weights with the `onnx` helper API (no tracing).

The arithmetic is that of `models.learning.encoder`. All is linear in the state, so the sequence graph is closed: each
event's weight is its banks' decay to the power of the decaying events after it, from a reversed cumulative sum.
"""

from __future__ import annotations

import math

import numpy as np

from export.onnx_graph import GraphBuilder
from models.learning.encoder_weights import GAP_POWERS, VALUE_TENTHS, EncoderWeights

# torch.nn.LayerNorm's own.
EPSILON = 1e-5


class _Graph(GraphBuilder):
    def affine(self, rows: str, weight: object, bias: object) -> str:
        """rows [..., I] times weight [I, O] plus bias [O]."""
        return self.op("Add", self.op("MatMul", rows, self.constant(weight)), self.constant(bias))  # type: ignore[arg-type]

    def value_bucket(self, value: str) -> str:
        """`models.learning.encoder_weights.value_bucket`: 0 below zero, else 1 + the nearest tenth."""
        share = self.op("Clip", value, self.constant(0.0), self.constant(1.0))
        tenth = self.op("Round", self.op("Mul", share, self.constant(float(VALUE_TENTHS))))
        bucket = self.op("Add", tenth, self.constant(1.0))
        none = self.op("Less", value, self.constant(0.0))
        return self.op("Cast", self.op("Where", none, self.constant(0.0), bucket), to=_INT64)

    def gap_bucket(self, gap: str) -> str:
        """`models.learning.encoder_weights.gap_bucket`: the last one below zero, else the whole part."""
        whole = self.op("Clip", self.op("Floor", gap), self.constant(0.0), self.constant(float(GAP_POWERS - 1)))
        first = self.op("Less", gap, self.constant(0.0))
        return self.op("Cast", self.op("Where", first, self.constant(float(GAP_POWERS)), whole), to=_INT64)

    def moves(
        self, weights: EncoderWeights, item: str, text: str, kind: str, value: str, gap: str, sign: str, axis: int
    ) -> tuple[str, str]:
        """What each event adds, and whether it decays.

        Args:
            sign: [...], sign of the strength, 0 for a masked place.
            axis: number of the last axis of `item`.
        Returns: [..., W] and [..., 1].
        """
        last = self.axes(axis)
        own = self.op("Slice", item, self.axes(0), self.axes(weights.width), last)  # [..., W]
        column = self.op("Unsqueeze", sign, last)  # [..., 1]

        def with_text() -> tuple[str, str]:
            projected = self.op("MatMul", text, self.constant(weights.projection))  # [..., W]
            scaled = self.op("Mul", projected, self.op("Gather", self.constant(weights.text_scale), kind))
            return scaled, self.op("ReduceL1", projected, axes=[-1], keepdims=1)

        def without() -> tuple[str, str]:
            return self.op("ConstantOfShape", self.op("Shape", own)), self.op(
                "ConstantOfShape", self.op("Shape", column)
            )

        # Most events have no text of their own, and its projection would be a quarter of the arithmetic.
        # Of a batch without text the largest number is 0; of one with text it is not, short of a text without a single
        # positive coordinate.
        some = self.op("Not", self.op("Equal", self.op("ReduceMax", text, keepdims=0), self.constant(0.0)))
        told, length = self.when(some, with_text, without)  # [..., W], [..., 1]
        named = self.op("ReduceL1", item, axes=[-1], keepdims=1)  # [..., 1]
        signs = self.op("Mul", column, self.op("Sign", self.op("Add", named, length)))  # [..., 1]
        # One table for value and gap: a lookup and an addition less.
        both = weights.value[:, None] + weights.gap  # [value buckets, gap buckets, W]
        bucket = self.op(
            "Add",
            self.op("Mul", self.value_bucket(value), self.constant(len(weights.gap), np.int64)),
            self.gap_bucket(gap),
        )
        parts = [
            self.op("Mul", own, signs),
            told,
            self.op("Gather", self.constant(weights.kind), kind),
            self.op("Gather", self.constant(both.reshape(-1, weights.width)), bucket),
        ]
        x = parts[0]
        for part in parts[1:]:
            x = self.op("Add", x, part)  # [..., W]
        width = weights.width
        move = self.affine(x, weights.move_weight[:, :width], weights.move_bias[:width])  # [..., W]
        gate = self.affine(x, weights.move_weight[:, width:], weights.move_bias[width:])  # [..., W]
        gated = self.op("Mul", move, self.op("Sigmoid", gate))
        return self.op("Mul", gated, self.op("Abs", signs)), self.op("Relu", signs)

    def read_out(self, weights: EncoderWeights) -> None:
        """`next_state` [B, S], which must exist, to the output `user` [B, D]."""
        normed = self.op(
            "LayerNormalization",
            "next_state",
            self.constant(weights.norm_weight),
            self.constant(weights.norm_bias),
            axis=-1,
            epsilon=EPSILON,
        )  # [B, S]
        inner = self.affine(normed, weights.hidden_weight, weights.hidden_bias)  # [B, H]
        error = self.op("Erf", self.op("Div", inner, self.constant(math.sqrt(2.0))))
        gelu = self.op("Mul", self.op("Mul", inner, self.op("Add", error, self.constant(1.0))), self.constant(0.5))
        # The bias input of 1 as a column of the last layer: cheaper than padding.
        skip, out = (np.pad(weight, ((0, 0), (0, 1))) for weight in (weights.skip_weight, weights.out_weight))
        bias = np.append(weights.skip_bias + weights.out_bias, np.float32(1))
        straight = self.op("MatMul", normed, self.constant(skip))  # [B, D]
        self.op("Add", straight, self.affine(gelu, out, bias), out="user")  # [B, D]


_INT64 = 7  # onnx.TensorProto.INT64


def step_graph(weights: EncoderWeights) -> bytes:
    """One event a row; see the module's docstring."""
    g = _Graph()
    banks = weights.banks
    move, decaying = g.moves(weights, "item", "text", "kind", "value", "log2_gap", g.op("Sign", "strength"), axis=1)
    rest = g.constant(1 - weights.decays.reshape(1, banks, -1))  # [1, K, W]
    each = g.op("Mul", g.op("Unsqueeze", move, g.axes(1)), rest)  # [B, K, W]
    added = g.op("Reshape", each, g.axes(0, -1))  # [B, S]

    def plain() -> tuple[str]:
        return (g.op("Mul", "state", g.constant(weights.decays.reshape(1, -1))),)

    def some_do_not_decay() -> tuple[str]:
        share = g.op("Mul", decaying, g.constant(1 - weights.decays.reshape(1, -1)))  # [B, S]
        return (g.op("Mul", "state", g.op("Sub", g.constant(1.0), share)),)

    # In nearly every batch every event decays, and its arithmetic is two operations on [B, S] shorter.
    all_decay = g.op("Greater", g.op("ReduceMin", decaying, keepdims=0), g.constant(0.0))
    (kept,) = g.when(all_decay, plain, some_do_not_decay)  # [B, S]
    g.op("Add", kept, added, out="next_state")
    g.read_out(weights)
    return g.model("step", _inputs(weights, "B"), _outputs(weights))


def sequence_graph(weights: EncoderWeights) -> bytes:
    """T events a row at once; a masked place changes nothing, whatever it holds."""
    g = _Graph()
    banks = weights.banks
    zero, last = g.constant(0.0), g.axes(2)
    shown = g.op("Unsqueeze", "mask", last)  # [B, T, 1]
    move, decaying = g.moves(
        weights,
        g.op("Where", shown, "item", zero),
        g.op("Where", shown, "text", zero),
        g.op("Where", "mask", "kind", g.constant(0, np.int64)),
        g.op("Where", "mask", "value", zero),
        g.op("Where", "mask", "log2_gap", zero),
        g.op("Sign", g.op("Where", "mask", "strength", zero)),
        axis=2,
    )  # [B, T, W], [B, T, 1]
    logs = g.constant(np.log(weights.decays.astype(np.float64)).reshape(1, 1, -1))  # [1, 1, S]
    later = g.op("CumSum", decaying, g.constant(1, np.int64), exclusive=1, reverse=1)  # [B, T, 1]
    kept = g.op("Exp", g.op("Mul", later, logs))  # [B, T, S]
    share = g.op("Mul", kept, g.constant(1 - weights.decays.reshape(1, 1, -1)))  # [B, T, S]
    added = g.op("Mul", share, g.op("Tile", move, g.axes(1, 1, banks)))  # [B, T, S]
    total = g.op("ReduceSum", decaying, g.axes(1), keepdims=0)  # [B, 1]
    start = g.op("Mul", "state", g.op("Exp", g.op("Mul", total, g.op("Squeeze", logs, g.axes(0)))))  # [B, S]
    g.op("Add", start, g.op("ReduceSum", added, g.axes(1), keepdims=0), out="next_state")
    g.read_out(weights)
    return g.model("sequence", {**_inputs(weights, "B", "T"), "mask": ("B", "T")}, _outputs(weights))


def item_graph(weights: EncoderWeights) -> bytes:
    """`text` [N, E] to `item` [N, D], as of an item without events: projected text and the cold bias."""
    g = _Graph()
    vector = g.op("MatMul", "text", g.constant(weights.projection))  # [N, W]
    g.op("Pad", vector, g.axes(0, 0, 0, 1), g.constant(float(weights.cold_bias)), out="item")  # [N, D]
    return g.model("item", {"text": ("N", len(weights.projection))}, {"item": ("N", weights.dimension)})


def _inputs(weights: EncoderWeights, *lead: str) -> dict[str, tuple[object, ...]]:
    return {
        "state": ("B", weights.state_size),
        "item": (*lead, weights.dimension),
        "text": (*lead, len(weights.projection)),
        "kind": lead,
        "strength": lead,
        "value": lead,
        "log2_gap": lead,
    }


def _outputs(weights: EncoderWeights) -> dict[str, tuple[object, ...]]:
    return {"next_state": ("B", weights.state_size), "user": ("B", weights.dimension)}
