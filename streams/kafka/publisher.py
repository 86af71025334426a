"""Publishes messages and says when the cluster has them: acks=all, order kept per partition, bounded retries.

Owns one aiokafka producer. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    IncompatibleBrokerVersion,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from models.domain.errors import RecommenderError
from streams.kafka.connection import KafkaConnection
from streams.kafka.partitioner import partition_of

logger = logging.getLogger(__name__)

# One produce request of 256 lists of 1 kB: larger batches gained nothing, the default of 16 kB cost a round trip for
# every 16.
MAX_BATCH_BYTES = 262_144
# How long aiokafka itself tries one batch. Short, so that a broker that went away is noticed, counted and told to
# `on_retry`; our own attempts go on until the deadline.
ATTEMPT_SECONDS = 10.0
# A broker's restart takes seconds, a moved leader less; after a minute the caller's policy decides.
DEADLINE_SECONDS = 60.0
FIRST_BACKOFF_SECONDS, LARGEST_BACKOFF_SECONDS = 0.1, 5.0
# What no further attempt will change. Everything else may pass: aiokafka's own `retriable` leaves out its timeouts
# and the ends of a producer, which a new one cures.
REFUSALS = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    IncompatibleBrokerVersion,
    InvalidTopicError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)


class Message(NamedTuple):
    """One message to publish. Without a partition the key decides; without a key too, those of a call stay together."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None


class Published(NamedTuple):
    """Where a message stands now."""

    topic: str
    partition: int
    offset: int


class PublishError(RecommenderError):
    """Messages that the cluster did not take until the deadline, or refused. Some of the others may be published."""

    def __init__(self, message: str, *, topic: str, retryable: bool) -> None:
        super().__init__(message)
        self.topic = topic
        self.retryable = retryable


class MessageTooLargeError(PublishError):
    """Some messages are larger than their topic allows. All the others of the call are published.

    `indexes` are the places of the large ones in the sequence that was given.
    """

    def __init__(self, topic: str, indexes: Sequence[int]) -> None:
        super().__init__(f"{len(indexes)} message(s) larger than topic {topic} allows", topic=topic, retryable=False)
        self.indexes = tuple(indexes)


class Publisher:
    """A producer that answers for every message. Cheap per message in `send_many`, a round trip for each `send`.

    Args:
        idempotent: the broker drops what a retry of a request would double. Tansu cannot; a restart of ours doubles
        anyway,
            which the readers are made for.
        on_retry: called with the topic and the error before each further attempt, for metrics.
        deadline_seconds: how long one call tries before it raises.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        client_id: str = "streamrec-publisher",
        idempotent: bool = False,
        deadline_seconds: float = DEADLINE_SECONDS,
        attempt_seconds: float = ATTEMPT_SECONDS,
        on_retry: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self._connection = connection
        self._options: Mapping[str, Any] = {
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": idempotent,
            "max_batch_size": MAX_BATCH_BYTES,
            "request_timeout_ms": int(attempt_seconds * 1000),
        }
        self._idempotent = idempotent
        self._attempt_seconds = attempt_seconds
        self._deadline_seconds = deadline_seconds
        self._on_retry = on_retry
        self._producer: AIOKafkaProducer | None = None
        self._renewal = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()
        self._keyless = random.Random()
        self._closed = False

    async def start(self) -> None:
        """Connects, trying until the deadline. Raises: PublishError."""
        deadline = asyncio.get_running_loop().time() + self._deadline_seconds
        attempt = 0
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._current()
                return
            except (KafkaError, OSError, TimeoutError) as error:
                await self._back_off("", error, attempt, deadline)
                attempt += 1

    async def stop(self) -> None:
        """Sends what is pending and closes the connections."""
        self._closed = True
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer, self._attempt_seconds)
        if self._retired:
            await asyncio.gather(*self._retired)

    async def __aenter__(self) -> Publisher:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def partitions(self, topic: str) -> int:
        """Number of partitions of a topic. Raises: PublishError when it is not there."""
        try:
            return len(await (await self._current()).partitions_for(topic))
        except (KafkaError, OSError, TimeoutError) as error:
            raise PublishError(f"topic {topic}: {error!r}", topic=topic, retryable=True) from error

    async def send(self, message: Message) -> Published:
        """Publish one message and wait for it. Raises: PublishError."""
        return (await self.send_many((message,)))[0]

    async def send_many(self, messages: Sequence[Message]) -> list[Published]:
        """Publish messages and wait until the cluster has all of them; those of one partition in the order given.

        At least once: an attempt that timed out may have arrived all the same.
        Raises: MessageTooLargeError, after the others are published; PublishError when the deadline is over or the
        cluster refuses.
        """
        if not messages:
            return []
        deadline = asyncio.get_running_loop().time() + self._deadline_seconds
        results: list[Published | None] = [None] * len(messages)
        too_large: list[int] = []
        lanes = [
            self._send_lane(topic, partition, indexes, messages, results, too_large, deadline)
            for (topic, partition), indexes in (await self._lanes(messages, deadline)).items()
        ]
        if len(lanes) == 1:
            await lanes[0]
        else:
            # Every lane ends before an error is raised: none goes on sending behind the caller's back.
            for outcome in await asyncio.gather(*lanes, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        if too_large:
            raise MessageTooLargeError(messages[min(too_large)].topic, sorted(too_large))
        return [result for result in results if result is not None]

    async def _lanes(self, messages: Sequence[Message], deadline: float) -> dict[tuple[str, int], list[int]]:
        """Indexes of the messages by topic and partition, in the order given."""
        lanes: dict[tuple[str, int], list[int]] = {}
        counts: dict[str, int] = {}
        keyless: dict[str, int] = {}
        for index, message in enumerate(messages):
            topic, partition = message.topic, message.partition
            if partition is None:
                if topic not in counts:
                    counts[topic] = await self._retrying_partitions(topic, deadline)
                if message.key is not None:
                    partition = partition_of(message.key, counts[topic])
                else:
                    if topic not in keyless:
                        keyless[topic] = self._keyless.randrange(counts[topic])
                    partition = keyless[topic]
            lane = lanes.get((topic, partition))
            if lane is None:
                lanes[topic, partition] = [index]
            else:
                lane.append(index)
        return lanes

    async def _retrying_partitions(self, topic: str, deadline: float) -> int:
        attempt = 0
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return len(await (await self._current()).partitions_for(topic))
            except (KafkaError, OSError, TimeoutError) as error:
                await self._back_off(topic, error, attempt, deadline)
                attempt += 1

    async def _send_lane(
        self,
        topic: str,
        partition: int,
        indexes: Sequence[int],
        messages: Sequence[Message],
        results: list[Published | None],
        too_large: list[int],
        deadline: float,
    ) -> None:
        # One batch of a partition at a time: were the next one sent before this one is safe, a retry would change
        # their order.
        start, size, attempt, alone = 0, 0, 0, False
        while start < len(indexes):
            producer: AIOKafkaProducer | None = None
            try:
                async with asyncio.timeout_at(deadline):
                    producer = await self._current()
                    known = await producer.partitions_for(topic)
                    if partition not in known:
                        raise PublishError(
                            f"topic {topic} has {len(known)} partitions, none with number {partition}",
                            topic=topic,
                            retryable=False,
                        )
                    batch = producer.create_batch()
                    size = _fill(batch, indexes, start, messages, alone=alone)
                    metadata = await (await producer.send_batch(batch, topic, partition=partition))
            except (MessageSizeTooLargeError, RecordTooLargeError):
                if size == 1:
                    too_large.append(indexes[start])
                    start += 1
                else:
                    # The broker's limit is below our batch size: find out which message it is.
                    alone = True
                continue
            except (KafkaError, OSError, TimeoutError) as error:
                if producer is not None and (self._idempotent or not _producer_lives(error)):
                    # An idempotent producer that lost a batch has a hole in its sequence numbers and is of no more use.
                    await self._retire(producer)
                await self._back_off(topic, error, attempt, deadline)
                attempt += 1
                continue
            offset = metadata.offset
            for place in range(start, start + size):
                results[indexes[place]] = Published(topic, partition, offset)
                offset += 1
            start, attempt = start + size, 0

    async def _current(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._renewal:
            if self._closed:
                raise PublishError("the publisher is closed", topic="", retryable=False)
            if self._producer is None:
                producer = AIOKafkaProducer(**self._connection.client_options(), **self._options)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def _retire(self, producer: AIOKafkaProducer) -> None:
        """Let the next `_current` make another; this one is closed behind our back, since closing waits for the
        broker.
        """
        if self._producer is producer:
            self._producer = None
            task = asyncio.create_task(_close(producer, self._attempt_seconds))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def _back_off(self, topic: str, error: BaseException, attempt: int, deadline: float) -> None:
        """Waits before the next attempt. Raises: PublishError when there must be none."""
        if isinstance(error, REFUSALS):
            raise PublishError(f"topic {topic}: {error!r}", topic=topic, retryable=False) from error
        # Full jitter: workers that lost the same broker must not come back in step.
        pause = random.uniform(0.5, 1.0) * min(LARGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**attempt)
        if asyncio.get_running_loop().time() + pause > deadline:
            raise PublishError(
                f"topic {topic}: not taken after {attempt + 1} attempts: {error!r}", topic=topic, retryable=True
            ) from error
        logger.warning("publishing to %s failed, attempt %d: %r", topic or "Kafka", attempt + 1, error)
        if self._on_retry is not None:
            self._on_retry(topic, error)
        await asyncio.sleep(pause)


def _fill(batch: BatchBuilder, indexes: Sequence[int], start: int, messages: Sequence[Message], *, alone: bool) -> int:
    """Appends messages from `start` on until the batch is full. Returns: how many it took, at least one."""
    append = batch.append
    size = 0
    for place in range(start, start + 1 if alone else len(indexes)):
        message = messages[indexes[place]]
        headers = list(message.headers)  # aiokafka's compiled builder takes nothing else
        if append(timestamp=message.timestamp_ms, key=message.key, value=message.value, headers=headers) is None:
            break
        size += 1
    batch.close()
    return size


def _producer_lives(error: BaseException) -> bool:
    return isinstance(error, KafkaTimeoutError) or bool(getattr(error, "retriable", True))


async def _close(producer: AIOKafkaProducer, timeout_seconds: float) -> None:
    try:
        async with asyncio.timeout(timeout_seconds):
            await producer.stop()
        return
    except (KafkaError, OSError, TimeoutError) as error:
        logger.warning("a producer did not close cleanly: %r", error)
    # `stop` waits until everything is sent, which an idempotent producer tries for ever. What it left is ended by
    # force.
    sender: asyncio.Task[None] | None = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
    await producer.client.close()
    if sender is not None:
        await asyncio.wait([sender], timeout=timeout_seconds)
