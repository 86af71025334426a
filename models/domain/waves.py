"""Running the user encoder over a slice: events of different users side by side, one user's one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.domain.ports import F32, EventInputs, UserEncoder
from models.domain.state import UserState


class Step(NamedTuple):
    """One event as the encoder sees it."""

    position: int
    state: UserState
    vector: F32 | None
    """float32[D] of the item."""
    text: F32 | None
    """float32[E]."""
    kind: int
    strength: float
    value: float
    log2_gap: float
    keep: bool = True
    """False for a request: its query bends the user vector of one list and leaves no trace."""


def log2_gap(previous_ms: int, now_ms: int) -> float:
    """log2(1 + seconds) since the previous event, -1 before the first; an event out of order has no gap."""
    if previous_ms < 0:
        return -1.0
    return float(np.log2(1.0 + max(now_ms - previous_ms, 0) / 1_000.0))


def encode(encoder: UserEncoder, steps: Sequence[Step]) -> tuple[dict[int, F32], dict[int, F32]]:
    """Fold each step into its state.

    Returns: (user vectors before each step, and after it), float32[D] by position.
    """
    before: dict[int, F32] = {}
    after: dict[int, F32] = {}
    waves: list[list[Step]] = []
    depth: dict[int, int] = {}
    for step in steps:
        at = depth.get(id(step.state), 0)
        depth[id(step.state)] = at + 1
        if at == len(waves):
            waves.append([])
        waves[at].append(step)
    # One array a field over all steps, wave by wave: a wave of one user's burst is a single row, and cheap only so.
    ordered = [step for wave in waves for step in wave]
    item = np.zeros((len(ordered), encoder.dimension), np.float32)
    text = np.zeros((len(ordered), encoder.text_dimension), np.float32)
    for row, step in enumerate(ordered):
        if step.vector is not None:
            item[row] = step.vector
        if step.text is not None:
            text[row] = step.text
    inputs = EventInputs(
        item=item,
        text=text,
        kind=np.array([s.kind for s in ordered], np.int64),
        strength=np.array([s.strength for s in ordered], np.float32),
        value=np.array([s.value for s in ordered], np.float32),
        log2_gap=np.array([s.log2_gap for s in ordered], np.float32),
    )
    end = 0
    for wave in waves:
        start, end = end, end + len(wave)
        states = np.stack([s.state.memory for s in wave])
        memory, users = encoder.step(states, _rows(inputs, start, end))
        for row, step in enumerate(wave):
            before[step.position] = step.state.user
            # Copies: a row would keep the whole wave alive for as long as one of its users is cached.
            after[step.position] = user = users[row].copy()
            if step.keep:
                step.state.memory, step.state.user = memory[row].copy(), user
    return before, after


def _rows(inputs: EventInputs, start: int, end: int) -> EventInputs:
    return EventInputs(
        item=inputs.item[start:end],
        text=inputs.text[start:end],
        kind=inputs.kind[start:end],
        strength=inputs.strength[start:end],
        value=inputs.value[start:end],
        log2_gap=inputs.log2_gap[start:end],
    )
