"""The three graphs of a trained user encoder, written from numpy weights with the `onnx` helper API (no tracing).

The arithmetic is that of `models.learning.encoder`. What events say is computed for all of them at once; the recurrence
alone goes from event to event.
"""

from __future__ import annotations

import math

import numpy as np

from export.graphs import STATE
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

    def taken(
        self, weights: EncoderWeights, item: str, text: str, kind: str, value: str, gap: str, sign: str, axis: int
    ) -> tuple[str, str]:
        """What each event has to say to the recurrence, and whether it says nothing.

        Args:
            sign: [...], sign of the strength, 0 for a masked place.
            axis: number of the last axis of `item`.
        Returns: [..., 3 S], and [..., 1], which is 1 where the state stays as it is and else 0.
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
        still = self.op("Sub", self.constant(1.0), self.op("Abs", signs))
        return self.affine(x, weights.take_weight, weights.take_bias), still

    def remember(self, weights: EncoderWeights, state: str, taken: str, still: str) -> str:
        """One step of the recurrence.

        Args:
            state, taken, still: [B, S], [B, 3 S], [B, 1].
        Returns: [B, S].
        """
        thirds = [weights.state_size] * 3
        reset, update, new = self.split(taken, *thirds)
        product = self.op("MatMul", state, self.constant(weights.recurrent_weight))  # [B, 3 S]
        by_reset, by_update, by_new = self.split(product, *thirds)
        reset = self.op("Sigmoid", self.op("Add", reset, by_reset))
        update = self.op("Max", self.op("Sigmoid", self.op("Add", update, by_update)), still)
        past = self.op("Add", by_new, self.constant(weights.recurrent_bias))
        new = self.op("Tanh", self.op("Add", new, self.op("Mul", reset, past)))
        kept = self.op("Mul", update, state)  # exactly the state where update is 1
        return self.op("Add", kept, self.op("Mul", self.op("Sub", self.constant(1.0), update), new))

    def stored(self, weights: EncoderWeights) -> str:
        """The recurrence's part [B, S] of the input `state`."""
        return self.op("Slice", "state", self.axes(0), self.axes(weights.state_size), self.axes(1))

    def read_out(self, weights: EncoderWeights, state: str) -> None:
        """The recurrence's state [B, S] to the outputs `next_state` and `user` [B, D]."""
        rest = self.op("Slice", "state", self.axes(weights.state_size), self.axes(state_size(weights)), self.axes(1))
        self.op("Concat", state, rest, axis=1, out="next_state")
        normed = self.op(
            "LayerNormalization",
            state,
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


def state_size(weights: EncoderWeights) -> int:
    """Numbers of a stored state: as many as the bootstrap bundle's, so that a deployment's states fit both.

    The recurrence fills the first ones and leaves the rest as it is.
    """
    return max(STATE, weights.state_size)


def step_graph(weights: EncoderWeights) -> bytes:
    """One event a row; see the module's docstring."""
    g = _Graph()
    taken, still = g.taken(weights, "item", "text", "kind", "value", "log2_gap", g.op("Sign", "strength"), axis=1)
    g.read_out(weights, g.remember(weights, g.stored(weights), taken, still))
    return g.model("step", _inputs(weights, "B"), _outputs(weights))


def sequence_graph(weights: EncoderWeights) -> bytes:
    """T events a row, one after the other; a masked place changes nothing, whatever it holds."""
    g = _Graph()
    zero, last = g.constant(0.0), g.axes(2)
    shown = g.op("Unsqueeze", "mask", last)  # [B, T, 1]
    taken, still = g.taken(
        weights,
        g.op("Where", shown, "item", zero),
        g.op("Where", shown, "text", zero),
        g.op("Where", "mask", "kind", g.constant(0, np.int64)),
        g.op("Where", "mask", "value", zero),
        g.op("Where", "mask", "log2_gap", zero),
        g.op("Sign", g.op("Where", "mask", "strength", zero)),
        axis=2,
    )  # [B, T, 3 S], [B, T, 1]
    by_time = [g.op("Transpose", rows, perm=[1, 0, 2]) for rows in (taken, still)]
    g.read_out(weights, g.scan(g.stored(weights), by_time, lambda state, *event: g.remember(weights, state, *event)))
    return g.model("sequence", {**_inputs(weights, "B", "T"), "mask": ("B", "T")}, _outputs(weights))


def item_graph(weights: EncoderWeights) -> bytes:
    """`text` [N, E] to `item` [N, D], as of an item without events: projected text, cold bias and the text's own."""
    g = _Graph()
    told = g.constant(np.column_stack([weights.projection, weights.text_bias]))  # [E, D]
    level = g.constant(np.append(np.zeros(weights.width, np.float32), weights.cold_bias))  # [D]
    g.op("Add", g.op("MatMul", "text", told), level, out="item")  # [N, D]
    return g.model("item", {"text": ("N", len(weights.projection))}, {"item": ("N", weights.dimension)})


def _inputs(weights: EncoderWeights, *lead: str) -> dict[str, tuple[object, ...]]:
    return {
        "state": ("B", state_size(weights)),
        "item": (*lead, weights.dimension),
        "text": (*lead, len(weights.projection)),
        "kind": lead,
        "strength": lead,
        "value": lead,
        "log2_gap": lead,
    }


def _outputs(weights: EncoderWeights) -> dict[str, tuple[object, ...]]:
    return {"next_state": ("B", state_size(weights)), "user": ("B", weights.dimension)}
