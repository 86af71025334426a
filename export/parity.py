"""Does a bundle compute what was trained? Compares its graphs with the torch network on made-up histories.

Fails an export; `load_bundle` later compares step and sequence with each other only, since a worker has no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.domain.errors import ParityError
from models.domain.ports import F32, EventInputs
from models.encoders.item import OnnxItemEncoder
from models.encoders.user import OnnxUserEncoder
from models.learning.encoder_weights import EncoderWeights

# Relative to the largest number compared; float32 sums of 256 terms in another order differ by a few 1e-7.
TOLERANCE = 1e-5
USERS, EVENTS, ITEMS, TOP = 32, 24, 512, 10


@dataclass(frozen=True)
class Parity:
    """Largest differences, relative to the largest number of each output."""

    step: float
    sequence: float
    item: float
    top_overlap: float
    """Share of the ten nearest items that both name, mean over users; ties may swap the last ones."""

    @property
    def worst(self) -> float:
        return float(np.max([self.step, self.sequence, self.item]))  # a NaN stays one


def check_parity(
    weights: EncoderWeights,
    user: OnnxUserEncoder,
    items: OnnxItemEncoder,
    item_ids: Sequence[str],
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Parity:
    """Compare the towers of a bundle with the network that has these weights.

    Args:
        item_ids: one a row of the weights' item table.
    Raises: ParityError when an output differs by more than `tolerance`, or is not a number.
    """
    from models.learning.encoder import EncoderNetwork

    network = EncoderNetwork.of(weights)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(item_ids))[:ITEMS]
    text = _unit(rng, len(rows) + 1, len(weights.projection))
    text[rng.random(len(text)) < 0.1] = 0
    served = items.encode_many([*(item_ids[row] for row in rows), "\0 an id that no catalogue has"], text)
    trained = network.vectors_of(text, np.append(rows, -1))
    inputs, mask = _histories(rng, trained, len(weights.projection), len(weights.kind))
    states, users = network.follow(inputs, mask)  # [B, T, S], [B, T, D]

    lengths = mask.sum(1)
    some = lengths > 0
    last = np.maximum(lengths - 1, 0)
    ends, readings = states[np.arange(USERS), last], users[np.arange(USERS), last]
    size = states.shape[-1]  # of the recurrence; a stored state may have room beyond
    at_once = user.sequence(np.zeros((USERS, user.state_size), np.float32), inputs, mask)
    state = np.zeros((USERS, user.state_size), np.float32)
    step = 0.0
    for time in range(EVENTS):
        live = mask[:, time]
        state[live], reading = user.step(state[live], EventInputs(*(field[live, time] for field in inputs)))
        step = float(
            np.max([step, _difference(state[live, :size], states[live, time]), _difference(reading, users[live, time])])
        )
    found = Parity(
        step=step,
        sequence=float(
            np.max([_difference(at_once[0][some, :size], ends[some]), _difference(at_once[1][some], readings[some])])
        ),
        item=_difference(served, trained),
        top_overlap=_overlap(at_once[1][some] @ served.T, readings[some] @ trained.T),
    )
    if not found.worst <= tolerance:
        raise ParityError(f"the graphs differ from the trained network by {found.worst:.2g}, allowed {tolerance:.0e}")
    return found


def _histories(
    rng: np.random.Generator, vectors: F32, text_dimension: int, kinds: int
) -> tuple[EventInputs, npt.NDArray[np.bool_]]:
    """Histories of 0 to EVENTS events: some without item, some with text, strengths of both signs and zero."""
    lead = (USERS, EVENTS)
    item = vectors[rng.integers(0, len(vectors), lead)].copy()
    item[rng.random(lead) < 0.2] = 0
    text = _unit(rng, *lead, text_dimension)
    text[rng.random(lead) < 0.6] = 0
    inputs = EventInputs(
        item=item,
        text=text,
        kind=rng.integers(0, kinds, lead),
        strength=rng.choice([-1.0, 0.0, 0.5, 1.0, 3.0], lead, p=[0.1, 0.1, 0.2, 0.5, 0.1]).astype(np.float32),
        value=rng.choice([-1.0, 0.0, 0.1, 0.2, 0.5, 0.6, 0.9, 1.0], lead).astype(np.float32),
        log2_gap=np.where(rng.random(lead) < 0.1, -1, rng.uniform(0, 26, lead)).astype(np.float32),
    )
    lengths = np.linspace(0, EVENTS, USERS).round()
    return inputs, np.arange(EVENTS) < lengths[:, None]


def _unit(rng: np.random.Generator, *shape: int) -> F32:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    if not wanted.size:
        return 0.0
    return float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def _overlap(found: F32, wanted: F32) -> float:
    top = min(TOP, found.shape[1])
    pairs = zip(np.argsort(-found, axis=1)[:, :top], np.argsort(-wanted, axis=1)[:, :top], strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) / top for pair in pairs]))
