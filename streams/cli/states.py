"""User states for commands: opens the store that the settings name, and shows a stored state to people."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from streams.cli.common import served_manifest
from streams.settings import Settings

if TYPE_CHECKING:
    from models.domain.ports import UserRecord, UserStore
    from models.domain.state import Recent, StoredBody


@asynccontextmanager
async def user_states(settings: Settings) -> AsyncIterator[UserStore]:
    """The live generation. Raises: StoreError, with what to do where a running worker holds an embedded store."""
    from streams.container import make_stores

    sizes = served_manifest(settings).dimensions
    stores = make_stores(settings)
    try:
        yield await stores.users(state_size=sizes.state, dimension=sizes.item)
    finally:
        await stores.close()


def is_tombstone(body: StoredBody) -> bool:
    """What is left of a user who was forgotten and did not come back."""
    return not body.user_id


def exported(record: UserRecord) -> dict[str, Any] | None:
    """A state as plain values; None for a tombstone. Raises: StateError."""
    from models.domain.state import recent_of, unpack_body

    body = unpack_body(record.body)
    if is_tombstone(body):
        return None
    return {
        "user_id": body.user_id,
        "events_applied": body.events,
        "model_version": body.model_version,
        "applied_offsets": body.applied,
        "recent": [_plain(each) for each in recent_of(body)],
        "last_event_ms": body.last_event_ms if body.last_event_ms >= 0 else None,
        "sequence": body.sequence,
        "last_list": msgspec.Raw(body.last_list) if body.last_list else None,
    }


def _plain(recent: Recent) -> dict[str, Any]:
    """What was read of a text is stored of the user, so it is shown here; where nothing was, nothing stands."""
    line = recent._asdict()
    if recent.read_share is None:
        del line["read_share"]
    return line
