"""The model versions of a deployment as rows: what the registry holds beside what the topic `models` says of it."""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec

from models.domain.release_log import Releases
from streams.registry import Registry


class Row(msgspec.Struct, frozen=True):
    """One version as `list` shows it."""

    version: str
    parent: str | None
    created: str
    """ISO 8601, UTC."""
    created_ms: int
    metrics: dict[str, float]
    state: str
    in_registry: bool


def version_rows(registry: Registry, releases: Releases) -> list[Row]:
    rows: dict[str, Row] = {}
    for version, entry in releases.entries.items():
        rows[version] = _row(version, releases, entry.parent, entry.created_ms, entry.metrics, in_registry=False)
    for version in releases.in_use() - rows.keys():
        rows[version] = _row(version, releases, None, 0, {}, in_registry=False)
    for manifest in registry.manifests(lambda error: print(f"warning: {error}", file=sys.stderr)):
        version = manifest.version
        metrics = manifest.metrics | (rows[version].metrics if version in rows else {})
        rows[version] = _row(version, releases, manifest.parent, manifest.created_ms, metrics, in_registry=True)
    return sorted(rows.values(), key=lambda row: (row.created_ms, row.version))


def _row(
    version: str,
    releases: Releases,
    parent: str | None,
    created_ms: int,
    metrics: dict[str, float],
    *,
    in_registry: bool,
) -> Row:
    return Row(
        version=version,
        parent=parent,
        created=utc(created_ms),
        created_ms=created_ms,
        metrics=metrics,
        state=releases.state(version),
        in_registry=in_registry,
    )


def shown(row: Row, column: str) -> str:
    value: Any = getattr(row, column)
    if column == "metrics":
        return ", ".join(f"{name} {number:.4f}" for name, number in sorted(value.items())) or "none"
    if column == "created":
        return row.created[:16].replace("T", " ")
    if column == "state" and not row.in_registry:
        return f"{value}, not in the registry"
    return str(value or "none")


def utc(at_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms / 1_000)) + f".{at_ms % 1_000:03d}Z"
