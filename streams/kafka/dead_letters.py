"""Dead letters: messages we could not process, kept whole with the reason beside them, and how to put them back.

Owns the headers of a dead letter; why a message is one is decided elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.domain.errors import RecommenderError
from streams.kafka.broadcast import read_to_end
from streams.kafka.connection import KafkaConnection
from streams.kafka.publisher import Message
from streams.topics import DEAD_LETTER_MESSAGE_BYTES

SCHEMA_VERSION = b"1"
_OWN = "streamrec.dead-letter."
# The source's own headers keep their names behind this.
_ORIGINAL = "streamrec.original."
# How often a message was put back: one that comes round again is seen to do so.
REPLAYS_HEADER = "streamrec.replays"
# Where a forwarded record came from; `streams.agents.forwarding` writes and reads it.
ORIGIN_HEADER = "streamrec-origin"
# The record's and the batch's own framing, and what a length may grow by.
_FRAME_BYTES = 512
# What is kept of a value (or key) that does not fit: enough to see what it is, little enough beside everything else.
HEAD_BYTES = 65_536
MAX_DETAIL_CHARACTERS = 1_000


class DeadLetterError(RecommenderError):
    """A dead letter that cannot be put back, or a record of the topic that is none."""


class SourceRecord(Protocol):
    """What is needed of the record that failed: aiokafka's ConsumerRecord."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as read back."""

    partition: int
    """Of the dead-letter topic, as is `offset`."""
    offset: int
    source_topic: str
    source_partition: int
    source_offset: int
    source_timestamp_ms: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    """The source's own."""
    replays: int
    digest: str = ""
    """SHA-256 of the whole value (hexadecimal) where only its head was kept, else empty."""
    value_bytes: int = 0
    """Length of the whole value."""
    whole: bool = True
    """Whether key, value and headers are here byte for byte; only then can it be put back."""


def dead_letter_message(
    record: SourceRecord,
    topic: str,
    reason: str,
    detail: str = "",
    *,
    max_bytes: int = DEAD_LETTER_MESSAGE_BYTES,
) -> Message:
    """The dead letter of a record.

    Args:
        topic: the dead-letter topic; `max_bytes` is what it allows.
        reason: a short stable word, also the metric's label.
        detail: for people; never a user's text.
    """
    own = [
        (_OWN + "schema-version", SCHEMA_VERSION),
        (_OWN + "topic", record.topic.encode()),
        (_OWN + "partition", b"%d" % record.partition),
        (_OWN + "offset", b"%d" % record.offset),
        (_OWN + "timestamp-ms", b"%d" % record.timestamp),
        (_OWN + "reason", reason.encode()),
        (_OWN + "detail", detail[:MAX_DETAIL_CHARACTERS].encode(errors="replace")),
    ]
    original = [(_ORIGINAL + name, value) for name, value in record.headers]
    headers = own + original
    if _size(record.key, record.value, headers) <= max_bytes:
        return Message(topic, record.key, record.value, headers)
    return _shortened(record, topic, own, original, max_bytes)


def _shortened(
    record: SourceRecord,
    topic: str,
    own: list[tuple[str, bytes]],
    original: list[tuple[str, bytes]],
    max_bytes: int,
) -> Message:
    """Only a compressed batch can hide a record this large. What does not fit is left out, and said to be."""
    value = record.value or b""
    own = [
        *own,
        (_OWN + "value-sha256", hashlib.sha256(value).hexdigest().encode()),
        (_OWN + "value-bytes", b"%d" % len(value)),
    ]
    head = min(HEAD_BYTES, max_bytes // 4)
    key = record.key
    if key is not None and len(key) > head:
        own.append((_OWN + "key-sha256", hashlib.sha256(key).hexdigest().encode()))
        key = key[:head]
    if _size(None, None, original) > head:
        own.append((_OWN + "headers-left-out", b"%d" % len(original)))
        original = []
    return Message(topic, key, value[:head], own + original)


def _size(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> int:
    """An upper bound of the record's size, in bytes; the four bytes a length may take are counted everywhere."""
    in_headers = sum(len(name.encode()) + len(content or b"") + 8 for name, content in headers)
    return _FRAME_BYTES + len(key or b"") + len(value or b"") + in_headers


def parse_dead_letter(record: SourceRecord) -> DeadLetter:
    """Raises: DeadLetterError for a record that is no dead letter of ours."""
    own: dict[str, bytes] = {}
    original: list[tuple[str, bytes]] = []
    for name, content in record.headers:
        if name.startswith(_OWN):
            own[name.removeprefix(_OWN)] = content
        elif name.startswith(_ORIGINAL):
            original.append((name.removeprefix(_ORIGINAL), content))
    try:
        return DeadLetter(
            partition=record.partition,
            offset=record.offset,
            source_topic=own["topic"].decode(),
            source_partition=int(own["partition"]),
            source_offset=int(own["offset"]),
            source_timestamp_ms=int(own["timestamp-ms"]),
            reason=own["reason"].decode(),
            detail=own["detail"].decode(),
            key=record.key,
            value=record.value,
            headers=tuple(original),
            replays=_replays(original),
            digest=own.get("value-sha256", b"").decode(),
            value_bytes=int(own.get("value-bytes", len(record.value or b""))),
            whole="value-sha256" not in own,
        )
    except (KeyError, ValueError) as error:
        raise DeadLetterError(
            f"{record.topic} partition {record.partition} offset {record.offset} is no dead letter of ours: {error!r}"
        ) from error


def replay_message(letter: DeadLetter) -> Message:
    """The message to put back into the topic it came from, with `REPLAYS_HEADER` one higher.

    The key chooses the partition, as for any producer of ours; without a key it goes where it was.
    Raises: DeadLetterError when only a part of it was kept.
    """
    if not letter.whole:
        raise DeadLetterError(
            f"dead letter {letter.partition}/{letter.offset} holds {len(letter.value or b'')} of {letter.value_bytes} "
            "bytes and cannot be put back"
        )
    # With its old origin it would be taken for a delivery of the record that became the dead letter, and passed over.
    headers = [header for header in letter.headers if header[0] not in (REPLAYS_HEADER, ORIGIN_HEADER)]
    headers.append((REPLAYS_HEADER, b"%d" % (letter.replays + 1)))
    partition = letter.source_partition if letter.key is None else None
    return Message(letter.source_topic, letter.key, letter.value, headers, partition, letter.source_timestamp_ms)


async def read_dead_letters(connection: KafkaConnection, topic: str) -> AsyncIterator[DeadLetter]:
    """Every dead letter that is in the topic now. Raises: BroadcastError, DeadLetterError."""
    async for record in read_to_end(connection, topic, client_id="streamrec-dead-letters"):
        yield parse_dead_letter(record)


def _replays(headers: Sequence[tuple[str, bytes]]) -> int:
    # Anybody may have written it, or none at all: a header's value can be null.
    counted = [content or b"" for name, content in headers if name == REPLAYS_HEADER]
    return int(counted[-1]) if counted and counted[-1].isdigit() and len(counted[-1]) < 10 else 0
