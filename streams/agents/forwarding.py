"""One user, one writer: where a record belongs, and what a forwarded one says of its origin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from models.domain.errors import EventDecodeError
from streams.kafka.dead_letters import ORIGIN_HEADER

# W3C trace context goes on from an event to its list.
TRACE_HEADERS = frozenset({"traceparent", "tracestate"})


class Origin(NamedTuple):
    """Where a record was first published: what a replay or a second forwarding of it is recognised by."""

    log: str
    offset: int
    record_time_ms: int


def encode_origin(origin: Origin) -> tuple[str, bytes]:
    return ORIGIN_HEADER, f"{origin.record_time_ms} {origin.offset} {origin.log}".encode()


def origin_of(headers: Iterable[tuple[str, bytes | None]]) -> Origin | None:
    """Raises: EventDecodeError for a header that no worker wrote."""
    for name, value in headers:
        if name == ORIGIN_HEADER:
            try:
                time_ms, offset, log = (value or b"").decode().split(" ", 2)
                origin = Origin(log, int(offset), int(time_ms))
                if not (0 <= origin.offset < 2**63 and -1 <= origin.record_time_ms < 2**63):
                    raise ValueError("beyond what Kafka counts")
                return origin
            except (UnicodeDecodeError, ValueError) as error:
                raise EventDecodeError("invalid_origin", f"the header `{ORIGIN_HEADER}` is unreadable") from error
    return None


def trace_of(headers: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    return tuple(header for header in headers if header[0] in TRACE_HEADERS) if headers else ()
