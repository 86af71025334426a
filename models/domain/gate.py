"""Whether a record is applied to a user's state: the one place that decides replay, duplicate, late and forgotten."""

from __future__ import annotations

from models.domain.batch import DUPLICATE, FOLDED, FORGOTTEN, FUTURE, LATE, REPLAYED, Incoming, PipelineOptions
from models.domain.events import Forget, Request
from models.domain.state import UserState, event_hash


def admit(state: UserState, record: Incoming, options: PipelineOptions) -> tuple[str, str]:
    """Returns: (outcome, detail); only FOLDED is applied, LATE and FUTURE carry a detail for the dead letter."""
    event = record.event
    if record.offset <= state.applied.get(record.log, -1):
        return REPLAYED, ""
    if isinstance(event, Request):
        return FOLDED, ""
    time_ms = event.event_time_ms
    if 0 <= record.record_time_ms < time_ms - options.max_future_ms:
        return FUTURE, (
            f"`event_time_ms` {time_ms} is more than {options.max_future_ms} ms after the record's own time "
            f"{record.record_time_ms}"
        )
    if time_ms <= state.forgotten_ms:
        return FORGOTTEN, ""
    if event_hash(str(event.event_id)) in state.ring:
        return DUPLICATE, ""
    # A user who asks to be forgotten is never told that the request came late.
    if not isinstance(event, Forget) and time_ms < state.last_event_ms - options.allowed_lateness_ms:
        return LATE, (
            f"`event_time_ms` {time_ms} is more than {options.allowed_lateness_ms} ms before the user's latest "
            f"{state.last_event_ms}"
        )
    return FOLDED, ""
