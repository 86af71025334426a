"""A file of events as `streamrec train` has it: the product's own Training, and the Player that feeds it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.domain.events import Event, EventContract
from models.domain.protocol import Player
from models.learning.training import Training
from streams.cli.common import use_one_blas_thread
from streams.cli.lines import BadLines
from streams.cli.replaying import prepare, read_events, read_items
from streams.cli.training import make_training
from streams.settings import Settings


class Past(NamedTuple):
    events: Sequence[Event]
    training: Training
    player: Player


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def open_past(events: Path, items: Path, seed: int) -> Past:
    """Nothing is played yet. Settings come from the environment, as for the command; one thread."""
    use_one_blas_thread()
    settings = Settings()
    contract = EventContract(settings.interaction_strengths)
    log = read_events(events, contract, BadLines(events))
    catalogue, _ = read_items(items, contract)
    prepared = prepare(settings, contract, log, catalogue)
    training = make_training(log, prepared, seed=seed, report=tell)
    return Past(log, training, Player(prepared.pipeline, log, prepared.texts))
