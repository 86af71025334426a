"""Where the newest statistics snapshot stands: the committed offset, with metadata, of a consumer group of its own.

Kafka keeps it beside the topic without a further topic. Where it is lost (offset retention), readers start at the
beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from streams.kafka.connection import KafkaConnection

ATTEMPTS, PAUSE_SECONDS = 20, 0.5


class SnapshotPointer(msgspec.Struct, frozen=True):
    """Where a new worker starts."""

    read_from: int
    """Offset of the first delta that the snapshot may lack."""
    parts_from: int
    """Offset of the snapshot's first message."""
    parts: int
    incarnation: str
    """Topic id the offsets belong to."""


def pointer_group(topic: str) -> str:
    return f"{topic}.snapshots"


async def save_pointer(connection: KafkaConnection, topic: str, pointer: SnapshotPointer) -> None:
    """Raises: KafkaError."""
    consumer = AIOKafkaConsumer(
        **connection.client_options("streamrec-snapshots"), group_id=pointer_group(topic), enable_auto_commit=False
    )
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        metadata = msgspec.json.encode(pointer).decode()
        await consumer.commit({partition: OffsetAndMetadata(pointer.read_from, metadata)})
    finally:
        await consumer.stop()


async def load_pointer(connection: KafkaConnection, topic: str, incarnation: str) -> SnapshotPointer | None:
    """The newest pointer into this incarnation of the topic, None where there is none. Raises: KafkaError."""
    group, partition = pointer_group(topic), TopicPartition(topic, 0)
    for attempt in range(ATTEMPTS):
        admin = AIOKafkaAdminClient(**connection.client_options("streamrec-snapshots"))
        try:
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(group, partitions=[partition])
            break
        except KafkaError as error:
            # A coordinator that is just starting is no reason to read a year of deltas.
            if not error.retriable or attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            await admin.close()
    for found in offsets.values():
        if found.metadata:
            try:
                pointer = msgspec.json.decode(found.metadata, type=SnapshotPointer)
            except msgspec.DecodeError:
                return None
            return pointer if pointer.incarnation == incarnation else None
    return None


async def fetch_parts(
    connection: KafkaConnection, topic: str, pointer: SnapshotPointer, key: bytes
) -> list[bytes] | None:
    """The messages of a snapshot, in order; None where retention has removed some of them."""
    consumer = AIOKafkaConsumer(
        **connection.client_options("streamrec-snapshots"), group_id=None, enable_auto_commit=False
    )
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        bounds = await consumer.beginning_offsets([partition])
        if bounds[partition] > min(pointer.parts_from, pointer.read_from):
            return None
        consumer.seek(partition, pointer.parts_from)
        parts: list[bytes] = []
        end = (await consumer.end_offsets([partition]))[partition]
        while len(parts) < pointer.parts and await consumer.position(partition) < end:
            records: Sequence[object] = (await consumer.getmany(partition, timeout_ms=1_000)).get(partition, [])
            parts += [r.value for r in records if r.key == key and r.value is not None]  # type: ignore[attr-defined]
        return parts[: pointer.parts] if len(parts) >= pointer.parts else None
    finally:
        await consumer.stop()
