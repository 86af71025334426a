"""A consumer behind Faust's transport interface: hands agents whole partition chunks, commits one number a partition.

Owns fetching, backpressure, commits and what a rebalance means for them; keeps nothing of Faust's gap bookkeeping.
Knows no topic by name and nothing of what is in a record. `FAUST.md` says which facts of Faust and aiokafka it stands
on.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.exceptions import ConsumerNotStarted
from faust.transport.consumer import Consumer, ensure_TPset
from faust.types import TP, ConsumerMessage

from streams.kafka.chunks import Chunk, PartitionLedger, PartitionProgress
from streams.kafka.record_headers import accept_any_header_name

# Chunks of one partition that are out at a time: one that the agent works on and one that waits, so that the agent
# never waits for a fetch. More would only hold memory.
CHUNKS_PER_PARTITION = 2
# aiokafka has one fetch in flight a broker; a partition that comes free while it waits for data of others is asked for
# only in the next one. The embedded broker besides answers a waiting fetch late: measured there at 1,000 events/s, p50
# and p99 from publish to handler are 31 and 79 ms with 100, 15 and 29 ms with 25 (3 and 24 on Apache Kafka); a bare
# consumer with aiokafka's 500 has 127 and 261. An idle worker's empty fetches cost 6% of a core with 10 ms (2.5% with
# 25), a busy worker's none: there is data.
FETCH_MAX_WAIT_MS = 10
# How soon a partition added, or a topic made anew, is noticed. One small request in that time.
METADATA_MAX_AGE_MS = 5_000
# A member that is alive but slow to come to a rebalance holds up the others for at most this; a dead one by its
# session.
REBALANCE_TIMEOUT_SECONDS = 30.0
# A join may be held by the broker for the whole rebalance timeout, so a request must be allowed to take longer.
REQUEST_TIMEOUT_SECONDS = 40.0
# The last commit and leaving the group at a stop: a round trip each, unless the broker is away. With the default grace
# for the chunk in work they add up to 4.5 s: a stop is promised in 5.
LAST_COMMIT_TIMEOUT_SECONDS = 1.5
LEAVE_TIMEOUT_SECONDS = 1.0

PartitionsCallback = Callable[[set[TP]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkConsumerConfig:
    """What the consumer is told at the start; see `faust_app.build_app` for the meaning of each."""

    connection: Mapping[str, Any]
    group: str
    chunk_size: int
    session_timeout_seconds: float
    heartbeat_interval_seconds: float
    commit_interval_seconds: float
    auto_offset_reset: str
    isolation_level: str
    max_partition_fetch_bytes: int
    stop_grace_seconds: float
    on_assigned: PartitionsCallback | None
    on_revoked: PartitionsCallback | None
    commit_note: Callable[[str], str]


class _RebalanceListener(ConsumerRebalanceListener):
    """Passes aiokafka's callbacks on. Heartbeats go on during the first one, and rest during the second."""

    def __init__(self, consumer: ChunkConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._consumer.app.on_rebalance_start()
        await self._consumer.on_partitions_revoked(ensure_TPset(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._consumer.on_partitions_assigned(ensure_TPset(assigned))


class ChunkConsumer(Consumer):
    """Faust consumer over one aiokafka consumer in the app's own event loop (Faust's own driver runs it in a thread).

    A chunk goes through `begin` (the agent takes it up), then `acknowledge` or `abandon`. Only the former moves the
    offset.
    """

    consumer_stopped_errors = (ConsumerStoppedError,)

    def __init__(self, transport: Any, *args: Any, **kwargs: Any) -> None:
        self.config = transport.config
        self._kafka: AIOKafkaConsumer | None = None
        self._ledgers: dict[TP, PartitionLedger] = {}
        self._last_generation = 0
        self._running: set[Chunk] = set()
        self._none_running = asyncio.Event()
        self._none_running.set()
        self._commit_lock = asyncio.Lock()
        self._woken = False
        self._waker: asyncio.Future[None] | None = None
        super().__init__(transport, *args, commit_interval=transport.config.commit_interval_seconds, **kwargs)

    # -- start and stop

    async def on_start(self) -> None:
        config = self.config
        accept_any_header_name()
        self._kafka = AIOKafkaConsumer(
            **config.connection,
            group_id=config.group,
            # Range gives partition p of all topics with the same number of partitions to the same member. Faust without
            # tables would take round robin over all partitions, which does so only by luck.
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset=config.auto_offset_reset,
            isolation_level=config.isolation_level,
            session_timeout_ms=int(config.session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(config.heartbeat_interval_seconds * 1000),
            rebalance_timeout_ms=int(REBALANCE_TIMEOUT_SECONDS * 1000),
            request_timeout_ms=int(REQUEST_TIMEOUT_SECONDS * 1000),
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            max_partition_fetch_bytes=config.max_partition_fetch_bytes,
        )
        await self._kafka.start()

    async def on_stop(self) -> None:
        self._ledgers.clear()  # `wait_empty` came before this and committed
        if self._kafka is not None and not await self._within(
            LEAVE_TIMEOUT_SECONDS, self._kafka.stop(), "leaving the group"
        ):
            await self._abort_client(self._kafka)

    async def _abort_client(self, client: AIOKafkaConsumer) -> None:
        """The rest of aiokafka's own `stop`, which waits for the answer to a join as long as the broker holds it."""
        if client._fetcher is not None:
            await client._fetcher.close()
        if client._coordinator is not None:
            await client._coordinator._stop_heartbeat_task()
            await client._coordinator._stop_commit_offsets_refresh_task()
        await client._client.close()

    async def _within(self, seconds: float, work: Awaitable[Any], what: str) -> bool:
        try:
            await asyncio.wait_for(work, seconds)
        except TimeoutError:
            self.log.warning("Gave up %s after %.1f s: the broker does not answer", what, seconds)
            return False
        except KafkaError as error:
            self.log.warning("Failed at %s: %r", what, error)
            return False
        return True

    def close(self) -> None:
        """Faust calls this for a rebalance during a stop; `on_stop` closes the client in its turn."""

    async def subscribe(self, topics: Iterable[str]) -> None:
        self._client().subscribe(topics=set(topics), listener=_RebalanceListener(self))

    def _client(self) -> AIOKafkaConsumer:
        if self._kafka is None:
            raise ConsumerNotStarted("the consumer has not been started")
        return self._kafka

    # -- handing out chunks

    async def _drain_messages(self, fetcher: Any) -> None:
        """Faust's fetcher service runs this for as long as it lives."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                self._woken = False
                with self._client()._subscription.fetch_context():
                    pass  # starts the poll interval anew: a worker without partitions, or with full ones, is not dead
                if not await self._hand_out_ready():
                    await self._wait_for_work()
        except asyncio.CancelledError:
            # Ends here on purpose: Faust's fetcher takes a cancellation that it sees during a rebalance for a crash.
            return
        except ConsumerStoppedError:
            if not self.app.should_stop:
                raise

    async def _hand_out_ready(self) -> bool:
        """Give each partition that has room its next chunk. Returns: whether any was; if not, it never suspended."""
        handed_out = False
        for tp in list(self._ledgers):
            message = await self._next_chunk(tp)
            if message is not None:
                handed_out = True
                await self.callback(message)
        return handed_out

    async def _next_chunk(self, tp: TP) -> ConsumerMessage | None:
        client = self._client()
        ledger = self._ledgers.get(tp)
        if (
            ledger is None
            or not self.flow_active
            or tp not in self._active_partitions
            or ledger.pending_chunks >= CHUNKS_PER_PARTITION
            # From here to `hand_out` nothing suspends, so the assignment cannot change under the records taken.
            or client._subscription.reassignment_in_progress
        ):
            return None
        start = self._position(tp)
        taken = await client.getmany(TopicPartition(*tp), timeout_ms=0, max_records=self.config.chunk_size)
        records = taken.get(tp)
        if not records:
            return None
        end = self._position(tp)
        assert start is not None, "records came without a position"
        assert end is not None, "records came without a position"
        chunk = Chunk(tp.topic, tp.partition, records, ledger.generation)
        ledger.hand_out(chunk, start, end, monotonic())
        return self._to_message(tp, chunk)

    async def _wait_for_work(self) -> None:
        """Until data arrives, room is made, or flow or a partition is resumed; at most a second."""
        if self._woken:
            return
        self._waker = asyncio.get_running_loop().create_future()
        data = self._client()._fetcher._create_fetch_waiter()
        try:
            await asyncio.wait({data, self._waker}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if data.done() and not data.cancelled():
                data.exception()  # seen here, raised by the next `getmany`
        finally:
            data.cancel()
            self._waker.cancel()
            self._waker = None

    def _wake_up(self) -> None:
        self._woken = True
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _to_message(self, tp: TP, record: Chunk) -> ConsumerMessage:
        last = record.records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            headers=None,
            key=None,
            value=record,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    # -- what the agent says about a chunk

    def is_current(self, chunk: Chunk) -> bool:
        """Whether the chunk's partition is still ours, under the same assignment and not sought elsewhere since."""
        ledger = self._ledgers.get(TP(chunk.topic, chunk.partition))
        return ledger is not None and ledger.generation == chunk.generation

    def begin(self, chunk: Chunk) -> bool:
        """The agent takes the chunk up. Returns: False when it must be dropped: its partition was revoked or sought."""
        if not self.is_current(chunk):
            return False
        self._running.add(chunk)
        self._none_running.clear()
        return True

    def acknowledge(self, chunk: Chunk) -> bool:
        """All that the chunk causes is durable. Returns: False when that came too late (revoked, older generation)."""
        self._ended(chunk)
        ledger = self._ledgers.get(TP(chunk.topic, chunk.partition))
        if ledger is None or ledger.generation != chunk.generation:
            return False
        acknowledged = ledger.acknowledge(chunk, monotonic())
        self._wake_up()
        return acknowledged

    def abandon(self, chunk: Chunk) -> None:
        """The agent gave the chunk up: it stays unacknowledged, so no commit passes it and it is delivered again."""
        self._ended(chunk)

    def _ended(self, chunk: Chunk) -> None:
        self._running.discard(chunk)
        if not self._running:
            self._none_running.set()

    def ack(self, message: ConsumerMessage) -> bool:
        """Faust's own acknowledgement, of a message that a stream skipped: it moves no offset."""
        message.acked = True
        return False

    # -- commits

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit every partition whose number moved. Returns: whether all that moved is committed.

        One request a topic: a topic that was deleted makes its commit retry for ever, and must not hold up the others.
        """
        if self._kafka is None:
            return False
        async with self._commit_lock:
            by_topic: dict[str, dict[TP, int]] = defaultdict(dict)
            now = monotonic()
            for tp, ledger in self._ledgers.items():
                position = self._position(tp)
                ledger.observe(position, self._end_offset(tp), now)
                number = ledger.to_commit(position)
                if number is not None:
                    by_topic[tp.topic][tp] = number
            return all(await asyncio.gather(*(self._commit(offsets) for offsets in by_topic.values())))

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        client = self._client()
        if client._coordinator is None or client._coordinator.generation < 0:
            return False  # out of the group: a commit without a generation could overwrite another member's
        ledgers = {tp: self._ledgers[tp] for tp in offsets}
        request = {
            TopicPartition(*tp): OffsetAndMetadata(offset, self.config.commit_note(tp.topic))
            for tp, offset in offsets.items()
        }
        try:
            await asyncio.wait_for(client.commit(request), self.config.session_timeout_seconds)
        except TimeoutError:
            self.log.warning("Commit not answered in %.1f s, tried again later", self.config.session_timeout_seconds)
            return False
        except (CommitFailedError, IllegalStateError) as error:
            self.log.info("Commit came after a rebalance, its records are delivered again: %s", error)
            return False
        except KafkaError as error:
            await self.crash(error)
            return False
        for tp, offset in offsets.items():
            ledgers[tp].committed = offset
        return True

    async def settle(self, timeout: float) -> None:
        """Let the chunks that agents work on end, for at most `timeout` seconds, and commit what is acknowledged."""
        if self._running:
            try:
                await asyncio.wait_for(self._none_running.wait(), timeout)
            except TimeoutError:
                running = [f"{chunk.topic}/{chunk.partition}" for chunk in self._running]
                self.log.warning("Chunks of %s did not end in %.1f s and are delivered again", running, timeout)
        await self._within(LAST_COMMIT_TIMEOUT_SECONDS, self.commit(), "the commit")

    async def wait_empty(self) -> None:
        """Faust calls this when partitions are revoked and when the app stops, after it has suspended the streams."""
        if self.app.should_stop:
            await self.settle(self.config.stop_grace_seconds)
        else:
            # Half a session: the commit and the join must come in time even where the other half is lost to a pause.
            await self.settle(self.config.session_timeout_seconds / 2)

    # -- rebalances, flow and seeks

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)  # suspends the streams, then `wait_empty`
        for tp in revoked:
            self._ledgers.pop(tp, None)
        await self._call_hook(self.config.on_revoked, revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        # Faust resumes it when its streams are ready. It still flows in a worker that had no partition until now, and a
        # chunk handed out before that is dropped by the streams, or finds no stream at all.
        self.stop_flow()
        # A number of our own: the broker's may start again at 1 when the broker does.
        self._last_generation += 1
        generation = self.app.consumer_generation_id = self._last_generation
        self._ledgers = {tp: PartitionLedger(generation, monotonic()) for tp in sorted(assigned)}
        await self._call_hook(self.config.on_assigned, assigned)
        await self._call_hook(self._leave_foreign_commits, assigned)
        await super().on_partitions_assigned(assigned, generation)
        self._wake_up()

    async def _leave_foreign_commits(self, assigned: set[TP]) -> None:
        """Read from the beginning where the committed offset is noted to be of another topic of that name.

        A commit on its way while a topic is deleted and made anew is tried again until the new one takes it.
        """
        client = self._client()
        committed = await client._coordinator.fetch_committed_offsets([TopicPartition(*tp) for tp in assigned])
        foreign = [
            tp for tp, at in committed.items() if at.metadata and at.metadata != self.config.commit_note(tp.topic)
        ]
        for partition, beginning in (await client.beginning_offsets(foreign) if foreign else {}).items():
            self.log.warning("%s was made anew since its offset was committed: read from its beginning", partition)
            client.seek(partition, beginning)

    async def _call_hook(self, hook: PartitionsCallback | None, partitions: set[TP]) -> None:
        # aiokafka logs what a listener raises and goes on, as if the hook had done its work.
        if hook is not None and partitions:
            try:
                await hook(set(partitions))
            except Exception as error:
                await self.crash(error)

    async def perform_seek(self) -> None:
        """Faust seeks to the committed offsets after a rebalance; aiokafka starts a new assignment there by itself."""

    async def _seek(self, partition: TP, offset: int) -> None:
        """Go on at `offset`. Chunks that are out become void, and the offset is committed as the partition's number."""
        ledger = self._ledgers[partition]
        self._client().seek(TopicPartition(*partition), offset)
        self._last_generation += 1
        self._ledgers[partition] = PartitionLedger(self._last_generation, monotonic(), committed=ledger.committed)
        self._wake_up()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            await self.seek(tp, offset)

    def resume_flow(self) -> None:
        super().resume_flow()
        self._wake_up()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        super().resume_partitions(tps)
        self._wake_up()

    # -- where things stand

    def progress(self) -> list[PartitionProgress]:
        """One entry for each assigned partition."""
        now = monotonic()
        found = []
        for tp, ledger in self._ledgers.items():
            position, end = self._position(tp), self._end_offset(tp)
            found.append(
                PartitionProgress(
                    topic=tp.topic,
                    partition=tp.partition,
                    position=position,
                    acknowledged=ledger.acknowledged(position),
                    committed=ledger.committed,
                    end_offset=end,
                    pending_chunks=ledger.pending_chunks,
                    oldest_pending_seconds=ledger.oldest_pending_seconds(now),
                    stalled_seconds=ledger.stalled_seconds(position, end, now),
                )
            )
        return found

    def _partition_state(self, tp: TP) -> Any:
        subscription = self._client()._subscription.subscription
        if subscription is None or subscription.assignment is None:
            return None
        return subscription.assignment.state_value(tp)

    def _position(self, tp: TP) -> int | None:
        state = self._partition_state(tp)
        return state.position if state is not None and state.has_valid_position else None

    def _end_offset(self, tp: TP) -> int | None:
        state = self._partition_state(tp)
        if state is None:
            return None
        # With read_committed only what is below the last stable offset can be had. -1: the broker does not keep one.
        return state.lso if state.lso is not None and state.lso >= 0 else state.highwater

    def assignment(self) -> set[TP]:
        return set(ensure_TPset(self._client().assignment()))

    async def position(self, tp: TP) -> int | None:
        return self._position(tp)

    def highwater(self, tp: TP) -> int | None:
        return self._end_offset(tp)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        offsets: Mapping[TP, int] = await self._client().end_offsets([TopicPartition(*tp) for tp in partitions])
        return offsets

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        offsets: Mapping[TP, int] = await self._client().beginning_offsets([TopicPartition(*tp) for tp in partitions])
        return offsets

    async def seek_to_committed(self) -> Mapping[TP, int]:
        return {}

    def topic_partitions(self, topic: str) -> int | None:
        partitions = self._client().partitions_for_topic(topic)
        return len(partitions) if partitions else None

    # -- parts of Faust's interface that nothing here reaches: no tables, no transactions, no topics made, nothing sent

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        raise NotImplementedError("chunks are taken by `_next_chunk`")

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"the worker makes no topics, `streamrec topics create` does; asked for: {topic}")

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        raise NotImplementedError("the worker's own producer chooses partitions")
