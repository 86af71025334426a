"""The four graphs of the bootstrap bundle, written with the `onnx` helper API: no torch, no trained number.

Arithmetic of the user encoder, for one event (`item`, `text`, `strength`) and each bank b with decay lam_b:

    x  = item[:64] + unit(text P)                      0 where there is neither vector nor text
    n  = strength where x is not 0, else 0
    s' = lam_b^max(n, 0) * s  +  sign(n) * (1 - lam_b^|n|) * x
    user = unit(mean over banks of unit(s')), 1

At strength 1 this is the plain moving average `lam*s + (1-lam)*x`; strength n does what n such events in a row do, so
that no state outgrows its inputs whatever strengths an application declares. A negative strength (hide) subtracts and
lets nothing decay: one hidden item must not wipe out a taste. An empty x changes nothing, not even by decay.
All is linear in s, so the sequence graph is closed: weights from a reversed cumulative sum of n, and one product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.onnx_graph import GraphBuilder

F32 = npt.NDArray[np.float32]

BANKS = 4
WIDTH = 64
DIMENSION = WIDTH + 1  # and the item's bias
STATE = BANKS * WIDTH
# The decays at which the trained encoder of the model study started: memories of about 1.4, 3, 10 and 50 events.
DECAYS = (0.3, 0.7, 0.9, 0.98)
TINY = 1e-12


class _Graph(GraphBuilder):
    """And what several graphs of this file compute."""

    def unit(self, rows: str) -> str:
        """L2-normalised over the last axis; zero stays zero."""
        length = self.op("ReduceL2", rows, axes=[-1], keepdims=1)
        return self.op("Div", rows, self.op("Max", length, self.constant(TINY)))

    def is_nonzero(self, rows: str, keepdims: int) -> str:
        """1.0 where a row of the last axis has any value, else 0.0."""
        return self.op("Sign", self.op("ReduceL2", rows, axes=[-1], keepdims=keepdims))

    def project(self, text: str, projection: F32) -> str:
        """Text embedding to item space; a zero text stays zero."""
        return self.unit(self.op("MatMul", text, self.constant(projection)))

    def movement(self, item: str, text: str, projection: F32, axis: int) -> str:
        """x of the module's docstring; `axis` is the last one's number."""
        own = self.op("Slice", item, self.axes(0), self.axes(WIDTH), self.axes(axis))
        return self.op("Add", own, self.project(text, projection))

    def read_out(self, banks: str) -> None:
        """[B, 4, 64] to the outputs `next_state` [B, 256] and `user` [B, 65]."""
        self.op("Reshape", banks, self.axes(0, STATE), out="next_state")
        mean = self.op("ReduceMean", self.unit(banks), axes=[1], keepdims=0)  # [B, 64]
        self.op("Pad", self.unit(mean), self.axes(0, 0, 0, 1), self.constant(1.0), out="user")  # [B, 65]


def step_graph(projection: F32, decays: Sequence[float] = DECAYS) -> bytes:
    """One event a row; see the module's docstring. Inputs `state`, `item`, `text`, `strength`."""
    g = _Graph()
    logs = g.constant(np.log(np.reshape(decays, (1, BANKS, 1))))  # [1, 4, 1]
    x = g.op("Unsqueeze", g.movement("item", "text", projection, axis=1), g.axes(1))  # [B, 1, 64]
    n = g.op("Mul", g.op("Unsqueeze", "strength", g.axes(1, 2)), g.is_nonzero(x, 1))  # [B, 1, 1]
    keep = g.op("Exp", g.op("Mul", g.op("Relu", n), logs))  # [B, 4, 1]
    share = g.op("Sub", g.constant(1.0), g.op("Exp", g.op("Mul", g.op("Abs", n), logs)))  # [B, 4, 1]
    kept = g.op("Mul", keep, g.op("Reshape", "state", g.axes(0, BANKS, WIDTH)))  # [B, 4, 64]
    added = g.op("Mul", share, g.op("Mul", g.op("Sign", n), x))  # [B, 4, 64]
    g.read_out(g.op("Add", kept, added))
    return g.model(
        "step",
        {
            "state": ("B", STATE),
            "item": ("B", DIMENSION),
            "text": ("B", len(projection)),
            "strength": ("B",),
        },
        {"next_state": ("B", STATE), "user": ("B", DIMENSION)},
    )


def sequence_graph(projection: F32, decays: Sequence[float] = DECAYS) -> bytes:
    """T events a row at once; a masked place changes nothing, whatever it holds."""
    g = _Graph()
    logs = g.constant(np.log(np.asarray([decays])))  # [1, 4]
    zero, last = g.constant(0.0), g.axes(2)
    x = g.movement("item", "text", projection, axis=2)  # [B, T, 64]
    x = g.op("Where", g.op("Unsqueeze", "mask", last), x, zero)  # [B, T, 64]
    n = g.op("Mul", g.op("Where", "mask", "strength", zero), g.is_nonzero(x, 0))  # [B, T]
    decaying = g.op("Relu", n)  # [B, T]
    later = g.op("CumSum", decaying, g.constant(1, np.int64), exclusive=1, reverse=1)  # [B, T]
    total = g.op("ReduceSum", decaying, g.axes(1), keepdims=1)  # [B, 1]

    def powers(exponents: str) -> str:
        return g.op("Exp", g.op("Mul", g.op("Unsqueeze", exponents, last), logs))  # [B, T, 4]

    share = g.op("Sub", g.constant(1.0), powers(g.op("Abs", n)))  # [B, T, 4]
    signed = g.op("Mul", g.op("Unsqueeze", g.op("Sign", n), last), share)  # [B, T, 4]
    weights = g.op("Transpose", g.op("Mul", signed, powers(later)), perm=[0, 2, 1])  # [B, 4, T]
    keep = g.op("Unsqueeze", g.op("Exp", g.op("Mul", total, logs)), last)  # [B, 4, 1]
    banks = g.op("Mul", keep, g.op("Reshape", "state", g.axes(0, BANKS, WIDTH)))  # [B, 4, 64]
    g.read_out(g.op("Add", banks, g.op("MatMul", weights, x)))
    return g.model(
        "sequence",
        {
            "state": ("B", STATE),
            "item": ("B", "T", DIMENSION),
            "text": ("B", "T", len(projection)),
            "strength": ("B", "T"),
            "mask": ("B", "T"),
        },
        {"next_state": ("B", STATE), "user": ("B", DIMENSION)},
    )


def item_graph(projection: F32) -> bytes:
    """`text` [N, E] to `item` [N, 65]: projected, normalised, bias 0."""
    g = _Graph()
    vector = g.project("text", projection)  # [N, 64]
    g.op("Pad", vector, g.axes(0, 0, 0, 1), g.constant(0.0), out="item")  # [N, 65]
    return g.model("item", {"text": ("N", len(projection))}, {"item": ("N", DIMENSION)})


def log_linear_ranker_graph() -> bytes:
    """`score` = sum over features of feature times weight, one set of weights a list."""
    g = _Graph()
    column = g.op("Unsqueeze", "weights", g.axes(2))  # [B, F, 1]
    g.op("Squeeze", g.op("MatMul", "features", column), g.axes(2), out="score")  # [B, K]
    return g.model("ranker", {"features": ("B", "K", "F"), "weights": ("B", "F")}, {"score": ("B", "K")})
