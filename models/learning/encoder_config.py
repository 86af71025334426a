"""What decides a training of the user encoder, and what a fit reports. Knows no network's arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from models.learning.encoder import NetworkConfig


@dataclass(frozen=True)
class EncoderConfig:
    """How to train; figures beside the choices stand in models/README.md."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    # Prediction points of one chunk, all of one user.
    chunk: int = 100
    # Events read before a chunk's first point. Chunks that start from nothing are what cost most (models/README.md):
    # a served state is never empty in the middle of a history.
    context: int = 30
    batch: int = 16
    # A label is the next choice alone. With the next three or five, each weighing .8 of the one before, the recurrence
    # loses .0015 or .003 nDCG.
    horizon: int = 1
    discount: float = 0.8
    # Twice 2e-3 reaches in 12 epochs what that reaches in 18.
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    clip: float = 5.0
    # Share of items that have to do with their text alone in a batch, so that text works for an item without events.
    id_dropout: float = 0.1
    # Share of events whose kind is hidden, so that a kind that no bundle declares is read as an average one.
    kind_dropout: float = 0.02
    # Over a log, from nothing. More do not pay off on any stream; fewer where `EncoderTrainer.passes` says so.
    passes: int = 12
    # Averaged over about 200 steps; 0 for the last weights.
    average: float = 0.99
    # Beyond this many touched items the full softmax costs more than it gains.
    full_softmax_items: int = 20_000
    negatives: int = 2_048
    # Between uniform (0) and the share of events (1).
    negative_power: float = 0.75
    online_learning_rate: float = 3e-3
    # Of blocks of 250 events; three passes over blocks of 1,000 cost a third more and gained nothing.
    online_passes: int = 2
    # Replayed chunks for a new one, where all passes of a whole fit pay off; else in proportion to those that do.
    online_replay: float = 10.0
    # Shorter than in a fit: more and smaller steps for the same events were better.
    online_chunk: int = 50
    online_batch: int = 16
    online_context: int = 10
    online_average: float = 0.995
    # Events that an online update may look back on.
    replay_events: int = 500_000
    # Check against validation every so many epochs, and stop after so many checks without a new best.
    check_every: int = 3
    patience: int = 3
    # Events of history that a user vector is read from when none is stored; the product keeps as many.
    history: int = 50


@dataclass
class FitReport:
    epochs: int = 0
    best_epoch: int = 0
    validation: float = math.nan
    """nDCG@10 of the best check."""
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
