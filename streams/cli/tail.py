"""Lists as they are published: the newest records of a topic without a consumer group. It knows no list's content."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.kafka.broadcast import BroadcastError
from streams.kafka.connection import KafkaConnection
from streams.kafka.partitioner import partition_of
from streams.topics import LARGEST_MESSAGE_BYTES

POLL_MS = 200


async def tail(
    connection: KafkaConnection,
    topic: str,
    *,
    key: bytes | None = None,
    from_beginning: bool = False,
    ready: asyncio.Event | None = None,
) -> AsyncIterator[Any]:
    """Records of a topic as they arrive, for ever.

    Args:
        key: only this key's records, read from its partition alone.
        from_beginning: also what is in the topic already.
        ready: set once everything published from then on will be seen.
    Raises: BroadcastError when the topic is not there or the cluster does not answer.
    """
    consumer: AIOKafkaConsumer[Any, Any] = AIOKafkaConsumer(
        **connection.client_options("streamrec-follow"),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=LARGEST_MESSAGE_BYTES,
        fetch_max_wait_ms=POLL_MS,
    )
    try:
        await consumer.start()
        partitions = await _partitions(consumer, topic, key)
        consumer.assign(partitions)
        begin = await consumer.beginning_offsets(partitions)
        ends = begin if from_beginning else await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, ends[partition])
        # Tansu's answer to "where is the end" may stand before the end; what its fetches say is true.
        start = {partition: end for partition, end in ends.items() if from_beginning or end == 0}
        while True:
            if ready is not None and len(start) == len(partitions):
                ready.set()
            batches = await consumer.getmany(timeout_ms=POLL_MS)
            for partition in ends.keys() - start.keys():
                stable = consumer.last_stable_offset(partition)
                if stable is not None:
                    start[partition] = max(ends[partition], stable)
            for partition, records in batches.items():
                for record in records:
                    if record.offset >= start.get(partition, record.offset + 1) and (key is None or record.key == key):
                        yield record
    except (KafkaError, OSError, TimeoutError) as error:
        raise BroadcastError(f"{topic} could not be read: {error!r}") from error
    finally:
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer[Any, Any], topic: str, key: bytes | None) -> list[TopicPartition]:
    # The public call answers None for a topic that was not asked about before.
    numbers = sorted(await consumer._client._wait_on_metadata(topic))
    if not numbers:
        raise BroadcastError(f"topic {topic} does not exist: run `streamrec topics create`")
    wanted = numbers if key is None else [partition_of(key, len(numbers))]
    return [TopicPartition(topic, number) for number in wanted]
