"""What `train` and `backtest` read: events and items of a file, as a worker would have them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.domain.errors import EventDecodeError
from models.domain.events import Event, EventContract, Item, encoded_text
from streams.cli.common import resolve_bundle
from streams.cli.lines import BadLines, file_size, progress_bar, read_lines
from streams.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.domain.batch import PipelineOptions
    from models.domain.catalogue import Catalogue
    from models.domain.pipeline import Pipeline
    from models.domain.ports import F32
    from models.encoders.bundle import Bundle

# Texts of one call of the encoder: it sorts them by length, and beyond some dozens nothing is gained.
ENCODE_BATCH = 256


def read_events(path: Path, contract: EventContract, bad: BadLines) -> list[Event]:
    found: list[Event] = []
    with progress_bar(f"reading {path.name}", file_size(path), "bytes") as progress:
        for line in read_lines(path, progress):
            try:
                found.append(contract.decode_event(line.data))
            except EventDecodeError as error:
                bad.report(line.number, error)
    found.sort(key=lambda event: event.event_time_ms)  # stable: lines of one stamp stay as they stand
    return found


def read_items(path: Path | None, contract: EventContract) -> tuple[list[Item], int]:
    """The catalogue as the file leaves it (a later line replaces an earlier one), and how many lines are no good."""
    if path is None:
        return [], 0
    from streams.cli.publish import LineReader
    from streams.topics import TopicNames

    found: dict[str, Item] = {}
    bad = BadLines(path)
    reader = LineReader(contract, TopicNames(), "items", validate=True)
    for line in read_lines(path):
        try:
            message = reader.read(line).message
            item = contract.decode_item(line.data)
        except EventDecodeError as error:
            bad.report(line.number, error)
            continue
        found.pop(str(item.item_id), None)
        if message.value is not None:
            found[str(item.item_id)] = item
    return list(found.values()), bad.count


def encode_event_texts(events: Sequence[Event], bundle: Bundle) -> dict[str, F32]:
    """Embedding of every text that the events carry."""
    texts = list(dict.fromkeys(text for event in events if (text := encoded_text(event))))
    found: dict[str, F32] = {}
    if not texts:
        return found
    with progress_bar("encoding texts", len(texts), "texts") as progress:
        for start in range(0, len(texts), ENCODE_BATCH):
            batch = texts[start : start + ENCODE_BATCH]
            found.update(zip(batch, bundle.text_encoder.encode_many(batch), strict=True))
            progress(start + len(batch))
    return found


def fill_catalogue(catalogue: Catalogue, items: list[Item], bundle: Bundle) -> F32:
    """Declare items and give them their vectors, as the owner of an item does.

    Returns: float32[items, E], the embeddings of their texts.
    """
    from models.domain.catalogue import content_text
    from streams.agents.items import item_vectors

    embeddings = np.zeros((len(items), bundle.text_encoder.dimension), np.float32)
    with progress_bar("encoding items", len(items), "items") as progress:
        for start in range(0, len(items), ENCODE_BATCH):
            batch = items[start : start + ENCODE_BATCH]
            at = [catalogue.declare(item) for item in batch]
            embeddings[at] = texts = bundle.text_encoder.encode_many([content_text(item) for item in batch])
            catalogue.set_vectors(at, np.stack(item_vectors(batch, texts, bundle.item_encoder)))
            progress(start + len(batch))
    return embeddings


class Prepared(NamedTuple):
    """All that a log is replayed with, nothing of it played yet."""

    bundle: Bundle
    bundle_path: Path
    options: PipelineOptions
    items: Sequence[Item]
    pipeline: Pipeline
    """Its catalogue holds the items."""
    item_text: F32
    """float32[items, E]."""
    texts: dict[str, F32]
    """Embedding of each text that the events carry."""


def prepare(settings: Settings, contract: EventContract, events: Sequence[Event], items: list[Item]) -> Prepared:
    """With the settings' bundle. Raises: BundleError."""
    from streams.container import make_pipeline, pipeline_options, read_bundle

    path = resolve_bundle(settings)
    bundle = read_bundle(settings, path)
    options = pipeline_options(settings, contract)
    pipeline = make_pipeline(bundle, options)
    item_text = fill_catalogue(pipeline.catalogue, items, bundle)
    return Prepared(bundle, path, options, items, pipeline, item_text, encode_event_texts(events, bundle))
