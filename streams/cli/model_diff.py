"""In what two model versions differ: their manifests field by field, and what each learned of single items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from models.domain.errors import EncoderError
from models.domain.ports import F32
from models.encoders.item import decode_item_ids, decode_table
from models.encoders.manifest import Manifest
from streams.registry import Registry, RegistryError

# Differ between any two versions, or are told in another place.
_ASIDE = ("schema_version", "version", "checksums", "metrics", "ranker", "created_ms")


class ItemChange(msgspec.Struct, frozen=True, kw_only=True):
    """How the item tables differ. Lengths are Euclidean, of what training learned of an item beyond its text."""

    items_a: int
    items_b: int
    added: int
    removed: int
    common: int
    mean_length_a: float
    """Of the common items' rows, to hold the changes against; 0 without any."""
    mean_change: float
    largest_change: float
    largest_item: str | None
    comparable: bool
    """Whether both have rows of one length."""

    def told(self) -> Iterator[str]:
        yield f"items: {self.items_a} -> {self.items_b}, {self.added} added, {self.removed} removed"
        if not self.comparable:
            yield "their rows cannot be compared: the dimensions differ"
        elif self.common:
            yield (
                f"rows of {self.common} common items: mean change {self.mean_change:.4f}"
                f" (mean length {self.mean_length_a:.4f}), largest {self.largest_change:.4f} of {self.largest_item}"
            )


def compare(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, each with both values as JSON has them; files by the head of their checksum."""
    first, second = msgspec.to_builtins(a), msgspec.to_builtins(b)
    pairs = {name: (first.get(name), second.get(name)) for name in {**first, **second} if name not in _ASIDE}
    for name in ("graph", "candidates", "source_weights", "initial_weights"):
        pairs[f"ranker {name}"] = (first["ranker"].get(name), second["ranker"].get(name))
    features_a, features_b = set(a.ranker.features), set(b.ranker.features)
    pairs["ranker features, only there"] = (sorted(features_a - features_b), sorted(features_b - features_a))
    for name in sorted(a.checksums.keys() | b.checksums.keys()):
        pairs[f"file {name}"] = (_head(a, name), _head(b, name))
    for name in sorted(a.metrics.keys() | b.metrics.keys()):
        pairs[f"metric {name}"] = (a.metrics.get(name), b.metrics.get(name))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def told(value: Any) -> str:
    """A value of `compare` for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        return " ".join(map(told, value)) or "none"
    return "none" if value is None else str(value)


def compare_items(registry: Registry, a: Manifest, b: Manifest) -> ItemChange:
    """Raises: RegistryError."""
    (ids_a, table_a), (ids_b, table_b) = _table(registry, a), _table(registry, b)
    rows_b = {item_id: row for row, item_id in enumerate(ids_b)}
    common = [(row, rows_b[item_id]) for row, item_id in enumerate(ids_a) if item_id in rows_b]
    comparable = not common or table_a.shape[1] == table_b.shape[1]
    changes, lengths = np.zeros(1), np.zeros(1)
    if common and comparable:
        at_a, at_b = (list(rows) for rows in zip(*common, strict=True))
        changes = np.linalg.norm(table_a[at_a].astype(np.float64) - table_b[at_b], axis=1)
        lengths = np.linalg.norm(table_a[at_a].astype(np.float64), axis=1)
    return ItemChange(
        items_a=len(ids_a),
        items_b=len(ids_b),
        added=len(ids_b) - len(common),
        removed=len(ids_a) - len(common),
        common=len(common),
        mean_length_a=float(lengths.mean()),
        mean_change=float(changes.mean()),
        largest_change=float(changes.max()),
        largest_item=ids_a[common[int(changes.argmax())][0]] if common and comparable else None,
        comparable=comparable,
    )


def _head(manifest: Manifest, name: str) -> str | None:
    checksum = manifest.checksums.get(name)
    return None if checksum is None else checksum[:12]


def _table(registry: Registry, manifest: Manifest) -> tuple[list[str], F32]:
    """Ids and rows of a version's item table; none where it has no table."""
    spec = manifest.item_table
    if spec is None:
        return [], np.zeros((0, manifest.dimensions.item), np.float32)
    try:
        ids = decode_item_ids(registry.read(manifest, spec.ids))
        table = decode_table(registry.read(manifest, spec.vectors))
    except EncoderError as error:
        raise RegistryError(f"{registry}/{manifest.version}: {error}", retryable=False) from error
    if table.ndim != 2 or len(table) != len(ids):
        raise RegistryError(f"{registry}/{manifest.version}: {len(ids)} ids, rows {table.shape}", retryable=False)
    return ids, table
