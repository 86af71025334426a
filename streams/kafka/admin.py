"""What is asked of a cluster about topics: make them, compare them, and tell one incarnation of a topic from the next.

Owns the requests; which topics there are stands in `streams/topics.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.metadata import MetadataRequest

from models.domain.errors import RecommenderError
from streams.kafka.connection import KafkaConnection
from streams.kafka.protocol import NO_UUID, TopicIdsRequest
from streams.topics import TopicSpec

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_MS = 10_000
# A new topic is known to every broker within milliseconds; on a loaded cluster it has taken seconds.
VISIBLE_DEADLINE_SECONDS = 15.0
# Stands for "this broker has no way to tell": as good as a cluster where nobody makes a topic anew.
UNKNOWN_INCARNATION = "unknown"


class TopicError(RecommenderError):
    """The cluster could not be asked about topics, or refused. `topic` is empty where none is meant alone."""

    def __init__(self, message: str, *, topic: str = "") -> None:
        super().__init__(message)
        self.topic = topic


@dataclass(frozen=True, slots=True)
class TopicDifference:
    """A topic that is there, but not as its spec says."""

    topic: str
    what: str
    """`partitions` or the name of a configuration entry."""
    found: str
    wanted: str
    fault: bool
    """Whether the product cannot work like that, or only behaves in another way than documented."""


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `create_topics` did or `describe_topics` saw."""

    created: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    differences: tuple[TopicDifference, ...] = ()
    partitions: Mapping[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return not self.missing and not any(difference.fault for difference in self.differences)


async def create_topics(connection: KafkaConnection, specs: Sequence[TopicSpec]) -> TopicReport:
    """Make the topics that are missing, leave the others as they are, and say which is which.

    Returns when every broker-side view that we can ask shows them. Raises: TopicError.
    """
    async with _admin(connection) as admin:
        present = await _partition_counts(admin, [spec.name for spec in specs])
        wanted = [spec for spec in specs if spec.name not in present]
        created: list[str] = []
        if wanted:
            answer = await admin.create_topics(
                [
                    NewTopic(spec.name, spec.partitions, spec.replication_factor, topic_configs=dict(spec.configs))
                    for spec in wanted
                ],
                timeout_ms=REQUEST_TIMEOUT_MS,
            )
            for topic, code, *message in answer.topic_errors:
                error = for_code(code)
                if error is TopicAlreadyExistsError:  # somebody else was quicker
                    continue
                if code != 0:
                    reason = message[0] if message and message[0] else error.__name__
                    raise TopicError(f"topic {topic} could not be created: {reason}", topic=topic)
                created.append(topic)
            await _until_visible(admin, specs)
        report = await _compare(admin, specs)
    return TopicReport(
        created=tuple(created),
        existing=tuple(spec.name for spec in specs if spec.name not in created),
        differences=report.differences,
        partitions=report.partitions,
    )


async def describe_topics(connection: KafkaConnection, specs: Sequence[TopicSpec]) -> TopicReport:
    """What is missing or different. Creates nothing. Raises: TopicError when the cluster does not answer."""
    async with _admin(connection) as admin:
        return await _compare(admin, specs)


async def require_topics(connection: KafkaConnection, specs: Sequence[TopicSpec]) -> TopicReport:
    """Compare the topics as `describe_topics` does. Raises: TopicError, also where one of them is missing."""
    report = await describe_topics(connection, specs)
    if report.missing:
        raise TopicError(
            f"topics {', '.join(report.missing)} do not exist: run `streamrec topics create`", topic=report.missing[0]
        )
    return report


async def partition_counts(connection: KafkaConnection, topics: Sequence[str]) -> dict[str, int]:
    """Number of partitions of each of the topics that exist. Raises: TopicError when the cluster does not answer."""
    async with _admin(connection) as admin:
        return await _partition_counts(admin, topics)


async def topic_ids(connection: KafkaConnection, topics: Sequence[str]) -> dict[str, str]:
    """The incarnation of each topic: another value when it was deleted and made anew, whatever its offsets say.

    The broker's own topic id as 32 hexadecimal digits (Apache Kafka 2.8 and later, Tansu); `UNKNOWN_INCARNATION`,
    with a warning, from a broker that has none.
    Raises: TopicError when a topic is missing or the cluster does not answer.
    """
    async with _admin(connection) as admin:
        present = await _partition_counts(admin, topics)
        for topic in topics:
            if topic not in present:
                raise TopicError(f"topic {topic} does not exist: run `streamrec topics create`", topic=topic)
        try:
            return await _broker_ids(admin, topics)
        except NotImplementedError:
            logger.warning(
                "this broker serves no topic ids: should one of the topics %s be deleted and made anew under its "
                "name, its first events will look like a replay",
                ", ".join(topics),
            )
            return dict.fromkeys(topics, UNKNOWN_INCARNATION)


@asynccontextmanager
async def _admin(connection: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection.client_options("streamrec-admin"), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        try:
            await admin.start()
            yield admin
        except (KafkaError, OSError, TimeoutError) as error:
            raise TopicError(f"Kafka at {connection.bootstrap_servers} does not answer: {error!r}") from error
    finally:
        await admin.close()


async def _ask(admin: AIOKafkaAdminClient, request: Any) -> Any:
    # The admin client has no public way to send a request of one's own, or a metadata request that creates nothing.
    return await admin._client.send(admin._client.get_random_node(), request)


async def _partition_counts(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> dict[str, int]:
    answer = await _ask(admin, MetadataRequest(list(topics), allow_auto_topic_creation=False))
    counts: dict[str, int] = {}
    for code, topic, _internal, partitions in answer.topics:
        error = for_code(code)
        if code == 0:
            counts[topic] = len(partitions)
        elif error is not UnknownTopicOrPartitionError and not error.retriable:
            raise TopicError(f"topic {topic}: {error.__name__}: {error.description}", topic=topic)
    return counts


async def _until_visible(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> None:
    names = {spec.name for spec in specs}
    deadline = asyncio.get_running_loop().time() + VISIBLE_DEADLINE_SECONDS
    while missing := names - (await _partition_counts(admin, sorted(names))).keys():
        if asyncio.get_running_loop().time() > deadline:
            raise TopicError(
                f"topics {sorted(missing)} were created but cannot be seen after {VISIBLE_DEADLINE_SECONDS} s"
            )
        await asyncio.sleep(0.05)


async def _compare(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> TopicReport:
    counts = await _partition_counts(admin, [spec.name for spec in specs])
    present = [spec for spec in specs if spec.name in counts]
    configs = await _configs(admin, [spec.name for spec in present])
    differences: list[TopicDifference] = []
    for spec in present:
        if counts[spec.name] != spec.partitions:
            differences.append(
                TopicDifference(
                    spec.name, "partitions", str(counts[spec.name]), str(spec.partitions), fault=spec.partitions_fixed
                )
            )
        for entry, wanted in spec.configs.items():
            found = configs.get(spec.name, {}).get(entry)
            if found is not None and found != wanted:
                differences.append(
                    TopicDifference(spec.name, entry, found, wanted, fault=_is_fault(entry, found, wanted))
                )
    return TopicReport(
        existing=tuple(spec.name for spec in present),
        missing=tuple(spec.name for spec in specs if spec.name not in counts),
        differences=tuple(differences),
        partitions=counts,
    )


def _is_fault(entry: str, found: str, wanted: str) -> bool:
    """Compacting a stream of events loses them, and a smaller message limit rejects what we must write."""
    if entry == "cleanup.policy":
        return "compact" in found and "compact" not in wanted
    return entry == "max.message.bytes" and int(found) < int(wanted)


async def _configs(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics])
    found: dict[str, dict[str, str]] = {}
    for answer in answers:
        for code, _message, _type, topic, entries, *_rest in answer.resources:
            if code == 0:  # without the right to read it, a configuration is simply not compared
                found[topic] = {entry[0]: entry[1] for entry in entries}
    return found


async def _broker_ids(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> dict[str, str]:
    answer = await _ask(admin, TopicIdsRequest(list(topics)))
    ids = {topic[1]: topic[2] for topic in answer.topics if topic[0] == 0}
    if any(ids.get(topic, NO_UUID) == NO_UUID for topic in topics):
        raise NotImplementedError("the broker answers without ids")
    return {topic: ids[topic].hex for topic in topics}
