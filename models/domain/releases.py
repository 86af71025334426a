"""What the `models` topic says: which model version is champion, and what became of every other one. JSON. Pure.

The topic is compacted: under the key `champion` stands the newest release, under a version its newest entry.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from models.domain.errors import EventDecodeError

RELEASE_VERSION = 1
CHAMPION = "champion"

State = Literal["candidate", "champion", "retired", "rolled_back"]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One model version was made champion. Newest under the key `champion`."""

    sequence: int
    """Grows by one a release: a worker never goes back to a smaller one."""
    version: str
    """Of the bundle, in the registry."""
    previous: str | None
    """Champion before, None at the first release."""
    action: Literal["promote", "rollback"]
    by: Literal["trainer", "operator"]
    reason: str
    """For people: the rule's figures, or what an operator wrote."""
    at_ms: int
    schema_version: int = RELEASE_VERSION


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one version. Newest under its version as key."""

    version: str
    parent: str | None
    created_ms: int
    state: State
    metrics: dict[str, float] = {}
    at_ms: int = 0
    """When it came into this state."""
    schema_version: int = RELEASE_VERSION


_encoder = msgspec.json.Encoder()
_release = msgspec.json.Decoder(Release)
_entry = msgspec.json.Decoder(ModelEntry)


def encode_release(message: Release | ModelEntry) -> bytes:
    return _encoder.encode(message)


def decode_release(key: bytes, data: bytes) -> Release | ModelEntry:
    """Raises: EventDecodeError."""
    try:
        found: Release | ModelEntry = (_release if key == CHAMPION.encode() else _entry).decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise EventDecodeError("invalid_release", str(error)[:300]) from error
    if found.schema_version != RELEASE_VERSION:
        raise EventDecodeError("undeclared_version", f"release of version {found.schema_version}")
    return found
