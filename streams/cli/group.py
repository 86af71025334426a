"""What Kafka knows of the workers' consumer group: members, committed offsets, ends of topics. It changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from streams.kafka.admin import TopicError
from streams.kafka.connection import KafkaConnection

REQUEST_TIMEOUT_MS = 10_000
Place = tuple[str, int]
"""Topic and partition."""


class GroupState(NamedTuple):
    members: int
    """Workers in the group now; one that was killed stays until its session ends (with Tansu, whoever left stays)."""
    committed: dict[Place, int]
    """Offset after the last acknowledged record; absent where nothing was committed yet."""
    begin: dict[Place, int]
    end: dict[Place, int]

    def lag(self, place: Place) -> int:
        return max(0, self.end[place] - max(self.committed.get(place, 0), self.begin[place]))


async def group_state(connection: KafkaConnection, group: str, topics: Sequence[str]) -> GroupState:
    """Raises: TopicError when the cluster does not answer."""
    async with _clients(connection) as (admin, consumer):
        partitions = [
            TopicPartition(topic, number)
            for topic in topics
            # The public call answers None for a topic that was not asked about before.
            for number in sorted(await consumer._client._wait_on_metadata(topic))
        ]
        coordinator = await _coordinator(admin, group)
        offsets = await admin.list_consumer_group_offsets(group, coordinator, partitions)
        begin = await consumer.beginning_offsets(partitions)
        end = await consumer.end_offsets(partitions)
        return GroupState(
            members=await _members(admin, group, coordinator),
            committed={(p.topic, p.partition): found.offset for p, found in offsets.items() if found.offset >= 0},
            begin={(p.topic, p.partition): offset for p, offset in begin.items()},
            end={(p.topic, p.partition): offset for p, offset in end.items()},
        )


async def _coordinator(admin: AIOKafkaAdminClient, group: str) -> int:
    """A cluster makes the topic of its groups when it is first asked about one, which takes it a second or two."""
    deadline = asyncio.get_running_loop().time() + REQUEST_TIMEOUT_MS / 1_000
    while True:
        try:
            return await admin.find_coordinator(group)
        except KafkaError as error:
            if not error.retriable or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.2)


async def _members(admin: AIOKafkaAdminClient, group: str, coordinator: int) -> int:
    answers = await admin.describe_consumer_groups([group], coordinator)
    return sum(len(described[5]) for answer in answers for described in answer.groups if described[0] == 0)


@asynccontextmanager
async def _clients(
    connection: KafkaConnection,
) -> AsyncIterator[tuple[AIOKafkaAdminClient, AIOKafkaConsumer[bytes, bytes]]]:
    options = connection.client_options("streamrec-group")
    admin = AIOKafkaAdminClient(**options, request_timeout_ms=REQUEST_TIMEOUT_MS)
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
        **options, group_id=None, enable_auto_commit=False, request_timeout_ms=REQUEST_TIMEOUT_MS
    )
    try:
        await admin.start()
        await consumer.start()
        yield admin, consumer
    except (KafkaError, OSError, TimeoutError) as error:
        raise TopicError(f"Kafka at {connection.bootstrap_servers} does not answer: {error!r}") from error
    finally:
        await consumer.stop()
        await admin.close()
