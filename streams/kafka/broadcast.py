"""Reads a whole topic without a consumer group: every worker gets every record and knows when it has them all.

Owns the consumer and its positions; what the records mean is the callback's affair.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from models.domain.errors import RecommenderError
from streams.kafka.connection import KafkaConnection
from streams.kafka.record_headers import accept_any_header_name
from streams.topics import LARGEST_MESSAGE_BYTES

logger = logging.getLogger(__name__)

Record: TypeAlias = "ConsumerRecord[bytes | None, bytes | None]"
OnRecords = Callable[[list[Record]], Awaitable[None]]

# How long a read waits for a record before positions are looked at again: what a marker at the end of a transaction
# costs a waiter, since no record announces it.
POLL_MS = 200
# One call of the callback: some milliseconds of work, so that the event loop keeps turning while a long topic is read.
RECORDS_PER_CALL = 2_000
FIRST_BACKOFF_SECONDS, LARGEST_BACKOFF_SECONDS = 0.2, 5.0
REQUEST_TIMEOUT_MS = 10_000
# A topic's end is asked for (ListOffsets) and then held against what a fetch says, for two reasons: Tansu 0.6 answers
# with the base offset of the last batch plus one, however many records that batch holds, while its fetches tell the
# truth. And so where a topic is not empty, "caught up" needs one fetch at least.


class BroadcastError(RecommenderError):
    """A broadcast reader ended: its callback failed, or it was stopped while somebody waited."""


def _consumer(connection: KafkaConnection, client_id: str) -> AIOKafkaConsumer[bytes | None, bytes | None]:
    accept_any_header_name()
    return AIOKafkaConsumer(
        **connection.client_options(client_id),
        group_id=None,
        enable_auto_commit=False,
        # A position that retention has overtaken goes on with what is left.
        auto_offset_reset="earliest",
        # What an aborted transaction of a foreign producer wrote was never said.
        isolation_level="read_committed",
        max_partition_fetch_bytes=LARGEST_MESSAGE_BYTES,
        fetch_max_wait_ms=POLL_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )


async def _assign_all(
    consumer: AIOKafkaConsumer[Any, Any], topic: str, positions: Mapping[int, int]
) -> list[TopicPartition]:
    """Assign every partition, at the given positions or at the beginning. Raises: KafkaError."""
    # The public call answers None for a topic that was not asked about before.
    numbers = await consumer._client._wait_on_metadata(topic)
    partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    beginnings = await consumer.beginning_offsets(partitions)
    for partition in partitions:
        consumer.seek(partition, max(positions.get(partition.partition, 0), beginnings[partition]))
    return partitions


class BroadcastReader:
    """All records of a topic, handed over in offset order per partition.

    The reader outlives a broker that goes away. It does not outlive its callback: an error there ends it and is
    raised to everybody who waits, since a record that was passed over would be missing for good.

    Args:
        on_records: awaited with each batch; positions move when it returns.
        start_offsets: partition -> first offset to read; the beginning for the others.
    """

    def __init__(
        self,
        topic: str,
        connection: KafkaConnection,
        on_records: OnRecords,
        start_offsets: Mapping[int, int] | None = None,
        *,
        client_id: str = "streamrec-broadcast",
    ) -> None:
        self.topic = topic
        self._connection = connection
        self._on_records = on_records
        self._client_id = client_id
        self._positions: dict[int, int] = dict(start_offsets or {})
        self._moved = asyncio.Condition()
        self._consumer: AIOKafkaConsumer[bytes | None, bytes | None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._first_ends: dict[int, int] | None = None
        self._stable: dict[int, int] = {}
        self._stopping = False

    def start(self) -> None:
        """Begins to read, in a task of its own; a broker that does not answer yet is tried until it does."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"broadcast {self.topic}")

    async def stop(self) -> None:
        """Ends the reading. Never raises what the reading raised: that is `wait_closed`'s part."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._notify()

    async def wait_closed(self) -> None:
        """Returns when the reader was stopped. Raises: what its callback raised."""
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error

    @property
    def failure(self) -> BaseException | None:
        """What ended the reader, or None while it reads and after a plain stop."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    def position(self, partition: int = 0) -> int:
        """The offset after the last one handled, markers and compacted records included."""
        return self._positions.get(partition, 0)

    async def caught_up(self) -> None:
        """Returns when everything is handled that was in the topic when the reading began. Raises: BroadcastError."""
        await self._until(lambda: self._first_ends is not None)
        await self._passed(self._first_ends or {})

    async def barrier(self) -> None:
        """Returns when everything is handled that is in the topic now. Raises: BroadcastError."""
        await self._until(lambda: self._consumer is not None)
        attempt = 0
        while True:
            self._raise_if_ended()
            consumer = self._consumer
            try:
                if consumer is not None:
                    ends = await self._end_offsets(consumer)
                    break
            except (KafkaError, OSError, TimeoutError) as error:
                logger.warning("end of %s is not known yet: %r", self.topic, error)
            attempt = await _back_off(attempt)
        await self._passed(ends)

    async def _run(self) -> None:
        attempt = 0
        try:
            while not self._stopping:
                try:
                    async for _ in self._read():
                        attempt = 0
                except (KafkaError, OSError, TimeoutError) as error:
                    logger.warning("reading %s failed, attempt %d: %r", self.topic, attempt + 1, error)
                    attempt = await _back_off(attempt)
        finally:
            # From here on nobody may wait: `_until` looks at the task, which is done one step after this.
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._notify()))

    async def _read(self) -> AsyncIterator[None]:
        """Reads with one consumer until it fails; yields after each batch handled."""
        consumer = _consumer(self._connection, self._client_id)
        try:
            await consumer.start()
            partitions = await _assign_all(consumer, self.topic, self._positions)
            if self._first_ends is None:
                self._first_ends = await self._end_offsets(consumer)
            self._consumer = consumer
            self._stable = {}
            while not self._stopping:
                # The positions come before the records: those of an empty read are as new as its answer.
                await self._advance(consumer, partitions)
                yield
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=RECORDS_PER_CALL)
                records = [record for batch in batches.values() for record in batch]
                if records:
                    try:
                        await self._on_records(records)
                    except Exception as error:
                        last = records[-1]
                        raise BroadcastError(
                            f"handling {len(records)} record(s) of {self.topic} up to partition {last.partition} "
                            f"offset {last.offset} failed: {error!r}"
                        ) from error
        finally:
            self._consumer = None
            await consumer.stop()

    async def _advance(self, consumer: AIOKafkaConsumer[Any, Any], partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            try:
                # Without a valid position (it is being reset) the answer waits for the broker: look again next time.
                # (Not `wait_for`: until Python 3.12 it swallows a cancellation that meets a result.)
                async with asyncio.timeout(POLL_MS / 1000):
                    position = await consumer.position(partition)
            except TimeoutError:
                continue
            self._positions[partition.partition] = position
            stable = consumer.last_stable_offset(partition)
            if stable is not None:
                self._stable[partition.partition] = stable
        await self._notify()

    async def _end_offsets(self, consumer: AIOKafkaConsumer[Any, Any]) -> dict[int, int]:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        return {partition.partition: offset for partition, offset in ends.items()}

    async def _passed(self, ends: Mapping[int, int]) -> None:
        await self._until(lambda: all(end == 0 or number in self._stable for number, end in ends.items()))
        await self._until(lambda: self._reached(ends))
        fetched = {number: max(end, self._stable.get(number, 0)) for number, end in ends.items()}
        await self._until(lambda: self._reached(fetched))

    def _reached(self, ends: Mapping[int, int]) -> bool:
        return all(self.position(number) >= end for number, end in ends.items())

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._moved:
            while not condition():
                self._raise_if_ended()
                await self._moved.wait()

    def _raise_if_ended(self) -> None:
        if self._task is None:
            raise BroadcastError(f"the reader of {self.topic} was not started")
        if self._task.done():
            failure = self.failure
            if failure is not None:
                raise BroadcastError(f"the reader of {self.topic} ended: {failure}") from failure
            raise BroadcastError(f"the reader of {self.topic} was stopped")

    async def _notify(self) -> None:
        async with self._moved:
            self._moved.notify_all()


async def read_to_end(
    connection: KafkaConnection, topic: str, *, client_id: str = "streamrec-reader"
) -> AsyncIterator[Record]:
    """Every record that is in the topic now, in offset order per partition; then it ends (records that arrive meanwhile
    may be among them).

    Raises: BroadcastError when the cluster does not answer (a command is run again, a worker uses `BroadcastReader`).
    """
    consumer = _consumer(connection, client_id)
    try:
        try:
            await consumer.start()
            partitions = await _assign_all(consumer, topic, {})
            left = dict(await consumer.end_offsets(partitions))
            final: set[TopicPartition] = set()
            while True:
                for partition, end in list(left.items()):
                    stable = consumer.last_stable_offset(partition)
                    position = await consumer.position(partition)
                    if position < end or (end > 0 and stable is None):
                        continue
                    if partition in final or position >= (stable or 0):
                        consumer.pause(partition)
                        del left[partition]
                    else:
                        final.add(partition)
                        left[partition] = stable or 0
                if not left:
                    return
                for batch in (await consumer.getmany(timeout_ms=POLL_MS)).values():
                    for record in batch:
                        yield record
        except (KafkaError, OSError, TimeoutError) as error:
            raise BroadcastError(f"{topic} could not be read: {error!r}") from error
    finally:
        await consumer.stop()


async def _back_off(attempt: int) -> int:
    await asyncio.sleep(min(LARGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**attempt))
    return attempt + 1
