"""A file of events as `streamrec train` has it: the product's own Training, and the Player that feeds it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.domain.events import Event, EventContract
from models.domain.protocol import Player
from models.learning.training import Training
from streams.cli.common import resolve_bundle, use_one_blas_thread
from streams.cli.lines import BadLines
from streams.cli.replaying import encode_event_texts, fill_catalogue, read_events, read_items
from streams.cli.training import make_training
from streams.container import make_pipeline, pipeline_options, read_bundle
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
    bundle = read_bundle(settings, resolve_bundle(settings))
    options = pipeline_options(settings, contract)
    pipeline = make_pipeline(bundle, options)
    item_text = fill_catalogue(pipeline.catalogue, catalogue, bundle)
    texts = encode_event_texts(log, bundle)
    kinds = bundle.user_encoder.kinds
    training = make_training(log, pipeline.catalogue.ids, item_text, texts, options, kinds, seed=seed, report=tell)
    return Past(log, training, Player(pipeline, log, texts))
