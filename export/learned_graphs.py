"""The three graphs of a trained user encoder, written from numpy weights with the `onnx` helper API (no tracing).

The arithmetic is that of `models.learning.encoder`. What events say is computed for all of them at once; the recurrence
alone goes from event to event.
"""

from __future__ import annotations

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

    def value_and_gap(self, weights: EncoderWeights, value: str, gap: str) -> str:
        """What value and gap add to an event [..., W], from one table: a lookup and an addition less.

        Its rows follow the buckets of `models.learning.encoder_weights`, but that of a first event stands before the
        other gaps, where the whole part of a negative gap falls by itself.
        """
        gaps = np.roll(weights.gap, 1, axis=0)
        table = weights.value[:, None] + gaps  # [value buckets, gap buckets, W]
        tenths = self.op("Round", self.op("Mul", value, self.constant(float(VALUE_TENTHS))))
        values = self.op("Clip", tenths, self.constant(-1.0), self.constant(float(VALUE_TENTHS)))  # from -1
        powers = self.op("Clip", self.op("Floor", gap), self.constant(-1.0), self.constant(float(GAP_POWERS - 1)))
        rows = self.op("Add", self.op("Mul", values, self.constant(float(len(gaps)))), powers)
        at = self.op("Cast", self.op("Add", rows, self.constant(float(len(gaps) + 1))), to=_INT64)
        return self.op("Gather", self.constant(table.reshape(-1, weights.width)), at)

    def taken(
        self, weights: EncoderWeights, item: str, text: str, kind: str, value: str, gap: str, sign: str, axis: int
    ) -> tuple[str, str, str, str]:
        """What each event has to say to the gates and to the new state, and whether it says nothing.

        Args:
            sign: [...], sign of the strength, 0 for a masked place.
            axis: number of the last axis of `item`.
        Returns: the reset gate and the shares of update gate and new state, each [..., S]; and [..., 1], which is 1
            where the state stays as it is and else 0.
        """
        last = self.axes(axis)
        own = self.op("Slice", item, self.axes(0), self.axes(weights.width), last)  # [..., W]
        column = self.op("Unsqueeze", sign, last)  # [..., 1]

        named = self.op("ReduceL1", item, axes=[-1], keepdims=1)  # [..., 1]
        turned = self.op("Mul", own, column)  # [..., W]

        def with_text() -> tuple[str, str]:
            projected = self.op("MatMul", text, self.constant(weights.projection))  # [..., W]
            told = self.op("Mul", projected, self.op("Gather", self.constant(weights.text_scale), kind))
            length = self.op("Add", named, self.op("ReduceL1", projected, axes=[-1], keepdims=1))
            return self.op("Add", turned, told), self.op("Mul", column, self.op("Sign", length))

        def without() -> tuple[str, str]:
            return self.op("Identity", turned), self.op("Mul", column, self.op("Sign", named))

        # Most events have no text of their own, and its projection would be a quarter of the arithmetic.
        # Of a batch without text the largest number is 0; of one with text it is not, short of a text without a single
        # positive coordinate.
        some = self.op("Not", self.op("Equal", self.op("ReduceMax", text, keepdims=0), self.constant(0.0)))
        x, signs = self.when(some, with_text, without)  # [..., W], [..., 1]
        for part in (self.op("Gather", self.constant(weights.kind), kind), self.value_and_gap(weights, value, gap)):
            x = self.op("Add", x, part)  # [..., W]
        still = self.op("Sub", self.constant(1.0), self.op("Abs", signs))
        columns = (np.split(each, 3, axis=-1) for each in (weights.take_weight, weights.take_bias))
        reset, update, new = (self.affine(x, weight, bias) for weight, bias in zip(*columns, strict=True))
        return self.op("Sigmoid", reset), update, new, still

    def remember(self, weights: EncoderWeights, state: str, reset: str, update: str, new: str, still: str) -> str:
        """One step of the recurrence; the sums that products are added to come with them (Gemm), not after.

        Args:
            state, reset, update, new, still: [B, S] each but the last, [B, 1].
        Returns: [B, S].
        """
        by_update, by_new = (self.constant(each) for each in np.split(weights.recurrent_weight, 2, axis=1))
        update = self.op("Max", self.op("Sigmoid", self.op("Gemm", state, by_update, update)), still)
        past = self.op("Gemm", state, by_new, self.constant(weights.recurrent_bias))
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
        inner = self.op("Relu", self.affine(normed, weights.hidden_weight, weights.hidden_bias))  # [B, H]
        # The bias input of 1 as a column of the last layer: cheaper than padding.
        skip, out = (np.pad(weight, ((0, 0), (0, 1))) for weight in (weights.skip_weight, weights.out_weight))
        bias = np.append(weights.skip_bias + weights.out_bias, np.float32(1))
        straight = self.op("MatMul", normed, self.constant(skip))  # [B, D]
        self.op("Add", straight, self.affine(inner, out, bias), out="user")  # [B, D]


_INT64 = 7  # onnx.TensorProto.INT64


def state_size(weights: EncoderWeights) -> int:
    """Numbers of a stored state: as many as the bootstrap bundle's, so that a deployment's states fit both.

    The recurrence fills the first ones and leaves the rest as it is.
    """
    return max(STATE, weights.state_size)


def step_graph(weights: EncoderWeights) -> bytes:
    """One event a row; see the module's docstring."""
    g = _Graph()
    taken = g.taken(weights, "item", "text", "kind", "value", "log2_gap", g.op("Sign", "strength"), axis=1)
    g.read_out(weights, g.remember(weights, g.stored(weights), *taken))
    return g.model("step", _inputs(weights, "B"), _outputs(weights))


def sequence_graph(weights: EncoderWeights) -> bytes:
    """T events a row, one after the other; a masked place changes nothing, whatever it holds."""
    g = _Graph()
    zero, last = g.constant(0.0), g.axes(2)
    shown = g.op("Unsqueeze", "mask", last)  # [B, T, 1]
    taken = g.taken(
        weights,
        g.op("Where", shown, "item", zero),
        g.op("Where", shown, "text", zero),
        g.op("Where", "mask", "kind", g.constant(0, np.int64)),
        g.op("Where", "mask", "value", zero),
        g.op("Where", "mask", "log2_gap", zero),
        g.op("Sign", g.op("Where", "mask", "strength", zero)),
        axis=2,
    )  # [B, T, S] three times, [B, T, 1]
    by_time = [g.op("Transpose", rows, perm=[1, 0, 2]) for rows in taken]
    g.read_out(weights, g.scan(g.stored(weights), by_time, lambda state, *event: g.remember(weights, state, *event)))
    return g.model("sequence", {**_inputs(weights, "B", "T"), "mask": ("B", "T")}, _outputs(weights))


def item_graph(weights: EncoderWeights) -> bytes:
    """`text` [N, E] to `item` [N, D], as of an item without events."""
    g = _Graph()
    told = g.constant(weights.of_text())  # [E, D]
    g.op("Add", g.op("MatMul", "text", told), g.constant(weights.cold), out="item")  # [N, D]
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
