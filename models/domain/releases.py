"""What the `models` topic says: which model version is champion, and what became of every other one. JSON. Pure.

The topic is compacted: under the key `champion` stands the newest release, under a version its newest entry.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from models.domain.errors import EventDecodeError

RELEASE_VERSION = 1
CHAMPION = "champion"

State = Literal["candidate", "champion", "retired", "rolled_back"]
RolloutMode = Literal["at_once", "shadow", "canary"]


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


class Rollout(NamedTuple):
    """How a promoted version reaches everybody. A rollback does at once, whatever this says."""

    mode: RolloutMode = "at_once"
    """`shadow`: lists are asked of it too and none is published. `canary`: it serves some users."""
    share: float = 0.1
    """Of the users, by hash."""
    trial_ms: int = 3_600_000
    """From the release on; then it serves everybody."""

    def until_ms(self, release: Release | None) -> int:
        """When everybody is served by the release; 0 = from the start."""
        if self.mode == "at_once" or release is None or release.action == "rollback":
            return 0
        return release.at_ms + self.trial_ms


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
