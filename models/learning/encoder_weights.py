"""The user encoder's weights as numpy arrays, and its arithmetic in numpy: what export writes and parity compares with.

Needs no torch, so that a bundle can be written from stored weights anywhere. The formulas are those of
`models.learning.encoder`, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

# Buckets of the value's share: its tenths (a five-star scale and a ten-point one keep all their points), and none.
VALUE_TENTHS = 10
VALUE_BUCKETS = VALUE_TENTHS + 2
# Whole powers of two of the gap in seconds, 2^23 being three months; the last bucket is a user's first event.
GAP_POWERS = 24
GAP_BUCKETS = GAP_POWERS + 1


def value_bucket(value: F32) -> npt.NDArray[np.int64]:
    """0 where there is no value (a negative one), else 1 + the nearest tenth of the scale."""
    tenths = np.rint(value * np.float32(VALUE_TENTHS))
    return 1 + np.clip(tenths, -1, VALUE_TENTHS).astype(np.int64)


def gap_bucket(log2_gap: F32) -> npt.NDArray[np.int64]:
    """GAP_POWERS for a first event, else the whole part of log2(1 + seconds)."""
    powers = np.clip(np.floor(log2_gap), 0, GAP_POWERS - 1).astype(np.int64)
    return np.where(log2_gap < 0, GAP_POWERS, powers)


@dataclass(frozen=True)
class EncoderWeights:
    """Axes: N items, E text embedding, W width, C kinds, S state, H hidden units.

    Of 3 S columns the first are the reset gate's, then the update gate's, then the new state's; of 2 S the last two.
    """

    item_id: F32
    """float32[N, W], beyond what the text says."""
    item_bias: F32
    """float32[N], beyond what the text says."""
    cold: F32
    """float32[D], the own part of an item that no training event named: as rare items are, the bias last."""
    foreseen: F32
    """float32[E, D], text embedding to what it says of an item beyond the projection, and last to the bias: which items
    find favour, as far as their text tells."""
    projection: F32
    """float32[E, W], text embedding to item space; of items and of event texts."""
    kind: F32
    """float32[C, W]."""
    value: F32
    """float32[VALUE_BUCKETS, W]."""
    gap: F32
    """float32[GAP_BUCKETS, W]."""
    text_scale: F32
    """float32[C, W], how much of an event's own text a kind takes in."""
    take_weight: F32
    """float32[W, 3 S], from an event."""
    take_bias: F32
    """float32[3 S]."""
    recurrent_weight: F32
    """float32[S, 2 S], from the state before."""
    recurrent_bias: F32
    """float32[S], of the new state's part, inside the reset gate."""
    norm_weight: F32
    """float32[S]."""
    norm_bias: F32
    """float32[S]."""
    skip_weight: F32
    """float32[S, W]."""
    skip_bias: F32
    """float32[W]."""
    hidden_weight: F32
    """float32[S, H]."""
    hidden_bias: F32
    """float32[H]."""
    out_weight: F32
    """float32[H, W]."""
    out_bias: F32
    """float32[W]."""

    @property
    def width(self) -> int:
        return self.projection.shape[1]

    @property
    def state_size(self) -> int:
        return len(self.recurrent_weight)

    @property
    def dimension(self) -> int:
        return self.width + 1

    def item_vectors(self, item_text: F32, ids: npt.NDArray[np.int64] | None = None) -> F32:
        """
        Args:
            item_text: float32[n, E], of the items `ids`.
            ids: int64[n], rows of the table, -1 for an item that is not in it; None = all rows in order.
        Returns: float32[n, D], the bias last.
        """
        rows = np.arange(len(self.item_id)) if ids is None else ids
        own = np.concatenate([self.own(), self.cold[None]])  # [N + 1, D]
        known = (rows >= 0) & (rows < len(self.item_id))
        vectors: F32 = item_text @ self.of_text() + own[np.where(known, rows, -1)]
        return vectors

    def own(self) -> F32:
        """float32[N, D], of each item of the table beyond what its text says, the bias last."""
        found: F32 = np.column_stack([self.item_id, self.item_bias])
        return found

    def of_text(self) -> F32:
        """float32[E, D], text embedding to item vector, the bias last."""
        told = self.foreseen.copy()
        told[:, :-1] += self.projection
        return told

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """By field name, for a safetensors file or a checksum."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
