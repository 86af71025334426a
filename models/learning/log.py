"""The training log: events as arrays in time order, with the catalogue's texts beside them. Knows no file and no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class TrainingLog(NamedTuple):
    """Events in time order; axis n is the event, N the item, M the event text, E the text embedding."""

    user: npt.NDArray[np.int32]
    """int32[n]."""
    item: npt.NDArray[np.int32]
    """int32[n], -1 for an event that names no item (search)."""
    kind: npt.NDArray[np.int32]
    """int32[n], index into `kinds`; 0 = a kind that is not declared."""
    strength: npt.NDArray[np.float32]
    """float32[n], how strongly the event speaks for the item; negative speaks against it (hide)."""
    value: npt.NDArray[np.float32]
    """float32[n], share of the value scale, 0 to 1; -1 where the event carries none."""
    time_ms: npt.NDArray[np.int64]
    """int64[n], never falling."""
    text: npt.NDArray[np.int32]
    """int32[n], row of `event_text`, -1 for an event without text."""
    target: npt.NDArray[np.bool_]
    """bool[n], a user's first touch of an item: what lists are made to foresee."""
    item_text: npt.NDArray[np.float32]
    """float32[N, E], L2-normalised; a zero row for an item without text."""
    event_text: npt.NDArray[np.float32]
    """float32[M, E], L2-normalised."""
    kinds: tuple[str, ...]
    """Names by index; the first is the empty name."""

    @property
    def items(self) -> int:
        return len(self.item_text)

    def __len__(self) -> int:  # events, not fields
        return len(self.user)
