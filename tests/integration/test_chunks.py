"""The chunk consumer behind Faust, on real brokers and in real processes: what is lost or repeated, in which order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from faust.types import TP

from streams.kafka.chunks import Chunk, PartitionLedger, PartitionProgress
from streams.kafka.embedded_broker import BrokerProcess, EmbeddedBroker
from streams.kafka.faust_app import ChunkApp, WorkerCrashedError, add_chunk_agent, build_app, run
from streams.kafka.faust_consumer import CHUNKS_PER_PARTITION
from tests.services.kafka import SASL_PASSWORD, SASL_USER, KafkaBroker

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4

integration = pytest.mark.integration
recovery = pytest.mark.recovery


# -- the offset arithmetic alone


def chunk(*offsets: int, generation: int = 1) -> Chunk:
    class Record:
        def __init__(self, offset: int) -> None:
            self.offset = offset

    return Chunk("t", 0, [Record(offset) for offset in offsets], generation)


def test_a_commit_never_passes_a_chunk_that_is_not_acknowledged() -> None:
    ledger = PartitionLedger(1, since=0.0)
    first, second, third = chunk(0, 1), chunk(2, 3), chunk(4)
    for each, start, end in ((first, 0, 2), (second, 2, 4), (third, 4, 5)):
        ledger.hand_out(each, start, end, now=1.0)
    assert ledger.acknowledge(second, now=2.0)
    assert ledger.acknowledge(third, now=2.0)
    assert ledger.to_commit(position=5) is None
    assert ledger.acknowledge(first, now=3.0)
    assert ledger.to_commit(position=5) == 5
    assert ledger.pending_chunks == 0


def test_gaps_between_and_behind_the_records_are_committed_with_them() -> None:
    ledger = PartitionLedger(1, since=0.0)
    first, second = chunk(3, 9), chunk(40)
    ledger.hand_out(first, 0, 12, now=1.0)
    ledger.hand_out(second, 12, 41, now=1.0)
    ledger.acknowledge(first, now=1.0)
    assert ledger.to_commit(position=41) == 12
    ledger.acknowledge(second, now=1.0)
    assert ledger.to_commit(position=57) == 57  # markers only behind the last record


def test_an_unknown_or_repeated_acknowledgement_changes_nothing() -> None:
    ledger = PartitionLedger(1, since=0.0)
    known = chunk(0)
    ledger.hand_out(known, 0, 1, now=1.0)
    assert not ledger.acknowledge(chunk(0), now=1.0)
    assert ledger.to_commit(position=1) is None
    assert ledger.acknowledge(known, now=1.0)
    assert not ledger.acknowledge(known, now=1.0)


def test_where_a_partition_starts_is_not_committed_and_a_position_that_fell_back_is() -> None:
    ledger = PartitionLedger(1, since=0.0)
    assert ledger.to_commit(position=None) is None
    assert ledger.to_commit(position=7) is None
    assert ledger.to_commit(position=0) == 0


def test_a_stall_counts_from_the_last_progress_and_not_while_caught_up() -> None:
    ledger = PartitionLedger(1, since=0.0)
    assert ledger.stalled_seconds(position=None, end_offset=None, now=5.0) == 5.0
    ledger.observe(position=10, end_offset=10, now=100.0)
    assert ledger.stalled_seconds(position=10, end_offset=10, now=200.0) == 0.0
    given = chunk(10)
    ledger.hand_out(given, 10, 11, now=200.0)
    assert ledger.stalled_seconds(position=11, end_offset=12, now=203.0) == 3.0
    assert ledger.oldest_pending_seconds(now=203.0) == 3.0
    ledger.acknowledge(given, now=204.0)
    assert ledger.stalled_seconds(position=11, end_offset=12, now=206.0) == 2.0


def test_lag_is_unknown_until_both_ends_are_known() -> None:
    known = PartitionProgress("t", 0, 5, 3, 3, 9, 1, 0.1, 0.1)
    assert known.lag == 6
    assert PartitionProgress("t", 0, None, None, None, 9, 0, 0.0, 0.0).lag is None


# -- helpers


async def until(condition: Callable[[], object], seconds: float = 30.0, what: str = "") -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not in {seconds} s: {what or condition}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def admin(broker: BrokerProcess) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def make_topics(broker: BrokerProcess, *topics: str, partitions: int = PARTITIONS) -> None:
    async with admin(broker) as client:
        answer = await client.create_topics([NewTopic(topic, partitions, 1) for topic in topics])
        assert all(code == 0 for _, code, *_ in answer.topic_errors), answer
    for topic in topics:
        await visible(broker, topic, partitions)


async def visible(broker: BrokerProcess, topic: str, partitions: int) -> None:
    """Kafka answers `create` before each partition has a leader that clients can write to."""
    async with admin(broker) as client:
        for _ in range(500):
            (found,) = await client.describe_topics([topic])
            leaders = [part["leader"] for part in found["partitions"]]
            if found["error_code"] == 0 and len(leaders) == partitions and min(leaders) >= 0:
                return
            await asyncio.sleep(0.02)
    raise AssertionError(f"topic {topic} is not there")


async def delete_topic(broker: BrokerProcess, topic: str) -> None:
    async with admin(broker) as client:
        await client.delete_topics([topic])
        for _ in range(500):
            (found,) = await client.describe_topics([topic])
            if found["error_code"] != 0:
                return
            await asyncio.sleep(0.02)
    raise AssertionError(f"topic {topic} is still there")


async def produce(
    broker: BrokerProcess, topic: str, first: int, last: int, pause: float = 0.0, partitions: int = PARTITIONS
) -> None:
    """Values `first` to `last` - 1; value n goes to partition n % partitions."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all")
    await producer.start()
    try:
        for value in range(first, last):
            await producer.send(topic, str(value).encode(), partition=value % partitions)
            if pause and value % 50 == 49:
                await asyncio.sleep(pause)
        await producer.flush()
    finally:
        await producer.stop()


async def committed(broker: BrokerProcess, group: str, topic: str, partitions: int = PARTITIONS) -> dict[int, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        every = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(every)
        return {tp.partition: await consumer.committed(tp) or 0 for tp in every}
    finally:
        await consumer.stop()


async def ends(broker: BrokerProcess, topic: str, partitions: int = PARTITIONS) -> dict[int, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    await consumer.start()
    try:
        found = await consumer.end_offsets([TopicPartition(topic, partition) for partition in range(partitions)])
        return {tp.partition: offset for tp, offset in found.items()}
    finally:
        await consumer.stop()


class Worker:
    """A worker process and the file it writes; a second start goes on with the same file."""

    def __init__(self, broker: BrokerProcess, group: str, topics: str, out: Path, *more: str) -> None:
        self.out = out
        self.log = out.with_name(f"{out.name}.{os.urandom(3).hex()}.log")
        self.said_path = self.log.with_suffix(".said")
        command = [sys.executable, "-m", "tests.services.chunk_worker", "--servers", broker.bootstrap_servers]
        command += ["--group", group, "--topics", topics, "--out", str(out), *more]
        with self.log.open("ab") as log, self.said_path.open("ab") as said:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=log)

    def said(self, what: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.said_path.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["what"] == what]

    def holds(self, topic: str) -> list[int]:
        """Partitions of the topic by the last thing said about assignments."""
        for line in reversed(self.said_path.read_text().splitlines()):
            message = json.loads(line)
            if message["what"] in ("assigned", "revoked"):
                return (
                    [tp[1] for tp in message["partitions"] if tp[0] == topic] if message["what"] == "assigned" else []
                )
        return []

    async def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 5.0) -> int:
        self.process.send_signal(number)
        await until(lambda: self.process.poll() is not None, seconds, f"the worker's end after {number.name}")
        return int(self.process.returncode)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(broker: BrokerProcess, group: str, topics: str, *more: str, name: str = "out") -> Worker:
        started.append(Worker(broker, group, topics, tmp_path / name, *more))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def delivered(*files: Path) -> list[tuple[str, int, int, str]]:
    """Everything handed to handlers, in the order of the files. The last line may still be under way: it counts once it
    is whole."""
    found = []
    for file in files:
        for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
            if not line.endswith("\n"):
                continue
            topic, partition, offset, value = line.split()
            found.append((topic, int(partition), int(offset), value))
    return found


def values(*files: Path) -> list[int]:
    return [int(value) for *_, value in delivered(*files)]


def holds_more_than(file: Path, count: int) -> bool:
    return len(set(values(file))) > count


def assert_in_order_but_for_repeats(records: list[tuple[str, int, int, str]]) -> None:
    """What is new of a partition comes in offset order without a hole; a repeat may only go back, never skip ahead."""
    following: dict[tuple[str, int], int] = defaultdict(int)
    for topic, partition, offset, _ in records:
        expected = following[topic, partition]
        assert offset <= expected, f"{topic}/{partition}: {offset} came where {expected} was due"
        following[topic, partition] = max(expected, offset + 1)


# -- processes


@integration
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_every_record_is_handed_over_once_over_a_clean_stop_and_restart(
    broker: BrokerProcess, topic_prefix: str, workers: Callable[..., Worker], tmp_path: Path, loop: str
) -> None:
    topic, total = f"{topic_prefix}.events", 4000
    more = ["--chunk-seconds", "0.02", *(["--uvloop"] if loop == "uvloop" else [])]
    await make_topics(broker, topic)
    await produce(broker, topic, 0, total)
    first = workers(broker, topic_prefix, topic, *more)
    await until(lambda: len(values(first.out)) > 500)
    assert await first.end() == 0
    assert 500 < len(values(first.out)) < total, "stopped in the middle"
    second = workers(broker, topic_prefix, topic, *more)
    await until(lambda: len(values(second.out)) >= total)
    assert await second.end() == 0
    assert sorted(values(second.out)) == list(range(total))
    assert_in_order_but_for_repeats(delivered(second.out))
    # Not compared with the broker's own end: the embedded one answers that with the start of the last batch + 1.
    assert set((await committed(broker, topic_prefix, topic)).values()) == {total // PARTITIONS}


@integration
@recovery
async def test_a_worker_killed_twice_loses_nothing_and_repeats_only_from_its_last_commit(
    kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker], tmp_path: Path
) -> None:
    topic, total, out = f"{topic_prefix}.events", 20_000, tmp_path / "out"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, total)
    before, point = 0, dict.fromkeys(range(PARTITIONS), 0)
    for killed_after in (5000, 12_000):
        worker = workers(kafka, topic_prefix, topic, "--chunk-seconds", "0.01")
        await until(partial(holds_more_than, out, killed_after))
        worker.kill()
        assert all(offset >= point[partition] for _, partition, offset, _ in delivered(out)[before:])
        before, point = len(delivered(out)), await committed(kafka, topic_prefix, topic)
    last = workers(kafka, topic_prefix, topic)
    await until(lambda: len(set(values(out))) == total)
    assert await last.end() == 0
    assert all(offset >= point[partition] for _, partition, offset, _ in delivered(out)[before:])
    assert_in_order_but_for_repeats(delivered(out))
    assert await committed(kafka, topic_prefix, topic) == await ends(kafka, topic)


@integration
@recovery
@pytest.mark.slow
async def test_workers_that_join_and_leave_under_load_lose_nothing_and_share_partitions_across_topics(
    kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    events, requests, total = f"{topic_prefix}.events", f"{topic_prefix}.requests", 15_000
    await make_topics(kafka, events, requests)
    both = f"{events},{requests}"
    load = asyncio.create_task(produce(kafka, events, 0, total, pause=0.05))
    first = workers(kafka, topic_prefix, both, "--chunk-seconds", "0.005", name="first")
    await until(lambda: len(values(first.out)) > 200)
    second = workers(kafka, topic_prefix, both, "--chunk-seconds", "0.005", name="second")
    third = workers(kafka, topic_prefix, both, "--chunk-seconds", "0.005", name="third")
    everyone = (first, second, third)
    await until(lambda: sorted(p for worker in everyone for p in worker.holds(events)) == list(range(PARTITIONS)))
    await until(lambda: all(worker.holds(events) for worker in everyone), what="three workers with a partition each")
    for worker in everyone:
        assert worker.holds(events) == worker.holds(requests), "one worker owns partition p of both topics"
    await until(lambda: all(values(worker.out) for worker in everyone), what="each worker is handed records")
    assert await second.end() == 0  # leaves
    third.kill()  # crashes
    await until(lambda: len(first.holds(events)) == PARTITIONS, what="the first worker has all partitions again")
    await load
    files = [worker.out for worker in everyone]
    await until(lambda: len(set(values(*files))) == total)
    assert await first.end() == 0
    assert await committed(kafka, topic_prefix, events) == await ends(kafka, events)
    repeats = len(values(*files)) - total
    assert repeats < 2000, f"{repeats} repeats for a crash and five rebalances"


@integration
async def test_a_worker_that_waited_without_a_partition_takes_over_when_the_other_leaves(
    kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic, partitions=1)
    one = workers(kafka, topic_prefix, topic, "--chunk-seconds", "0.01", "--chunk-size", "5", name="one")
    two = workers(kafka, topic_prefix, topic, "--chunk-seconds", "0.01", "--chunk-size", "5", name="two")
    await until(lambda: one.said("assigned") or two.said("assigned"))
    await until(lambda: two.log.read_text().count("Worker ready") and one.log.read_text().count("Worker ready"))
    owner, waiting = (one, two) if one.holds(topic) else (two, one)
    await produce(kafka, topic, 0, 2000, partitions=1)
    await until(lambda: len(values(owner.out)) > 100)
    assert not values(waiting.out)
    assert await owner.end() == 0
    await until(lambda: len(values(owner.out, waiting.out)) >= 2000)
    assert sorted(values(owner.out, waiting.out)) == list(range(2000))
    assert await waiting.end() == 0


@integration
async def test_a_topic_made_after_the_worker_started_is_read(
    kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    early, late = f"{topic_prefix}.events", f"{topic_prefix}.requests"
    await make_topics(kafka, early)
    worker = workers(kafka, topic_prefix, f"{early},{late}")
    await until(lambda: worker.holds(early))
    await make_topics(kafka, late)
    await produce(kafka, late, 0, 100)
    await until(lambda: sorted(values(worker.out)) == list(range(100)))
    assert await worker.end() == 0


@integration
@recovery
@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_worker_goes_on_after_the_broker_was_away(
    own_kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker], how: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(own_kafka, topic)
    await produce(own_kafka, topic, 0, 2000)
    worker = workers(own_kafka, topic_prefix, topic)
    await until(lambda: len(values(worker.out)) == 2000)
    own_kafka.stop() if how == "stopped" else own_kafka.kill()
    await asyncio.sleep(5)  # longer than the session: not a wait for something, the outage itself
    own_kafka.start()
    await produce(own_kafka, topic, 2000, 4000)
    await until(lambda: len(set(values(worker.out))) == 4000, 60)
    assert worker.process.poll() is None
    assert await worker.end() == 0
    assert len(values(worker.out)) - 4000 <= 2000
    assert await committed(own_kafka, topic_prefix, topic) == await ends(own_kafka, topic)


@integration
@recovery
async def test_a_worker_stops_in_time_while_the_broker_is_away(
    own_kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(own_kafka, topic)
    await produce(own_kafka, topic, 0, 100)
    worker = workers(own_kafka, topic_prefix, topic)
    await until(lambda: len(values(worker.out)) == 100)
    own_kafka.kill()
    await asyncio.sleep(1)
    assert await worker.end(seconds=5.0) == 0


@integration
async def test_a_topic_deleted_and_made_anew_while_running_is_read_from_its_beginning(
    kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    topic, other = f"{topic_prefix}.events", f"{topic_prefix}.requests"
    await make_topics(kafka, topic, other)
    await produce(kafka, topic, 0, 2000)
    worker = workers(kafka, topic_prefix, f"{topic},{other}")
    await until(lambda: len(values(worker.out)) == 2000)
    await delete_topic(kafka, topic)
    await produce(kafka, other, 2000, 2400)
    await until(lambda: len(values(worker.out)) == 2400, what="the other topic goes on")
    await make_topics(kafka, topic)
    await produce(kafka, topic, 3000, 3400)
    await until(lambda: set(range(3000, 3400)) <= set(values(worker.out)), 40)
    assert worker.process.poll() is None
    assert await worker.end() == 0
    assert await committed(kafka, topic_prefix, topic) == await ends(kafka, topic)


@integration
async def test_a_topic_deleted_and_made_anew_at_once_while_running_is_read_from_its_beginning(
    kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, 2000)
    worker = workers(kafka, topic_prefix, topic)
    await until(lambda: len(values(worker.out)) == 2000)
    await delete_topic(kafka, topic)
    await make_topics(kafka, topic)
    await produce(kafka, topic, 3000, 3400)
    await until(lambda: set(range(3000, 3400)) <= set(values(worker.out)), 40)
    assert await worker.end() == 0
    assert await committed(kafka, topic_prefix, topic) == await ends(kafka, topic)


@integration
async def test_a_topic_deleted_and_made_anew_while_stopped_is_read_from_its_beginning(
    kafka: KafkaBroker, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, 2000)
    first = workers(kafka, topic_prefix, topic)
    await until(lambda: len(values(first.out)) == 2000)
    assert await first.end() == 0
    await delete_topic(kafka, topic)
    await make_topics(kafka, topic)
    await produce(kafka, topic, 3000, 3400)
    second = workers(kafka, topic_prefix, topic)
    await until(lambda: len(values(second.out)) == 2400)
    assert await second.end() == 0
    assert sorted(values(second.out))[-400:] == list(range(3000, 3400))


@integration
async def test_a_handler_that_raises_is_reported_its_chunk_is_not_acknowledged_and_the_worker_still_stops(
    broker: BrokerProcess, topic_prefix: str, workers: Callable[..., Worker]
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(broker, topic)
    await produce(broker, topic, 0, 1000)
    first = workers(broker, topic_prefix, topic, "--raise-on", "403", "--chunk-size", "10")
    await until(lambda: first.said("failure"))
    assert first.said("failure")[0]["error"] == "asked to raise at 403"
    assert await first.end() == 0
    assert 403 not in values(first.out)
    point = await committed(broker, topic_prefix, topic)
    assert point[3] <= 403 // PARTITIONS
    second = workers(broker, topic_prefix, topic)
    await until(lambda: set(values(second.out)) == set(range(1000)))
    assert await second.end() == 0
    assert len(values(second.out)) == 1000, "what was acknowledged before the failure was committed at the stop"


# -- in one process


@contextlib.asynccontextmanager
async def running(app: ChunkApp) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(run(app, stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 8)


def make_app(broker: BrokerProcess, group: str, **more: object) -> ChunkApp:
    options: dict[str, object] = {
        "connection": {"bootstrap_servers": broker.bootstrap_servers},
        "group": group,
        "session_timeout_seconds": 3.0,
        "chunk_size": 50,
        **more,
    }
    return build_app(**options)  # type: ignore[arg-type]


def by_partition(app: ChunkApp, topic: str) -> dict[int, PartitionProgress]:
    return {entry.partition: entry for entry in app.progress() if entry.topic == topic}


@integration
async def test_hooks_and_progress_follow_the_assignment(broker: BrokerProcess, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(broker, topic)
    await produce(broker, topic, 0, 400)
    seen: list[str] = []

    async def on_assigned(partitions: set[TP]) -> None:
        seen.append(f"assigned {len(partitions)}")

    async def on_revoked(partitions: set[TP]) -> None:
        seen.append(f"revoked {len(partitions)}")

    async def handler(chunk: Chunk) -> None:
        seen.append("chunk")
        assert 0 < len(chunk) <= 50
        assert chunk.last_offset - chunk.first_offset == len(chunk) - 1

    app = make_app(broker, topic_prefix, on_assigned=on_assigned, on_revoked=on_revoked)
    add_chunk_agent(app, [topic], handler)
    assert app.progress() == []
    async with running(app):
        await until(lambda: [e.committed for e in by_partition(app, topic).values()] == [100] * PARTITIONS)
        for entry in by_partition(app, topic).values():
            assert (entry.position, entry.acknowledged, entry.end_offset, entry.lag) == (100, 100, 100, 0)
            assert (entry.pending_chunks, entry.oldest_pending_seconds, entry.stalled_seconds) == (0, 0.0, 0.0)
    assert seen[0] == f"assigned {PARTITIONS}"
    assert app.progress() == []


@integration
async def test_at_most_a_few_chunks_of_a_partition_are_out_and_a_slow_handler_keeps_its_partitions(
    kafka: KafkaBroker, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, 4000)
    release, generations = asyncio.Event(), set()

    async def handler(chunk: Chunk) -> None:
        generations.add(chunk.generation)
        await release.wait()

    app = make_app(kafka, topic_prefix, session_timeout_seconds=1.0, heartbeat_interval_seconds=0.3)
    add_chunk_agent(app, [topic], handler)
    async with running(app):
        # Three sessions long nothing is acknowledged: heartbeats go on, so there is no rebalance.
        await until(lambda: any(e.oldest_pending_seconds > 3.0 for e in app.progress()))
        assert all(entry.pending_chunks <= CHUNKS_PER_PARTITION for entry in app.progress())
        assert max(entry.stalled_seconds for entry in app.progress()) > 3.0
        assert sum(entry.lag or 0 for entry in app.progress()) == 4000
        release.set()
        await until(lambda: all(entry.committed == 1000 for entry in app.progress()))
    assert len(generations) == 1


@integration
async def test_a_seek_voids_what_is_out_and_reads_again_and_a_paused_partition_rests(
    kafka: KafkaBroker, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, 400)
    got: dict[int, list[int]] = defaultdict(list)

    async def handler(chunk: Chunk) -> None:
        got[chunk.partition] += [record.offset for record in chunk.records]

    app = make_app(kafka, topic_prefix)
    add_chunk_agent(app, [topic], handler)
    async with running(app):
        await until(lambda: all(entry.committed == 100 for entry in app.progress()) and app.progress())
        await app.chunks.seek(TP(topic, 2), 40)
        await until(lambda: len(got[2]) == 160)
        assert got[2] == [*range(100), *range(40, 100)]
        app.chunks.pause_partitions([TP(topic, 1)])
        await produce(kafka, topic, 400, 800)
        await until(lambda: [len(got[p]) for p in (0, 2, 3)] == [200, 260, 200])
        assert len(got[1]) == 100
        app.chunks.resume_partitions([TP(topic, 1)])
        await until(lambda: len(got[1]) == 200)
        await until(lambda: all(entry.committed == 200 for entry in app.progress()))


@integration
async def test_an_acknowledgement_after_the_partition_was_sought_is_ignored(
    kafka: KafkaBroker, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic, partitions=1)
    await produce(kafka, topic, 0, 100, partitions=1)
    in_work, release = asyncio.Event(), asyncio.Event()
    got: list[int] = []

    async def handler(chunk: Chunk) -> None:
        got.append(chunk.first_offset)
        in_work.set()
        await release.wait()

    app = make_app(kafka, topic_prefix)
    add_chunk_agent(app, [topic], handler)
    async with running(app):
        await asyncio.wait_for(in_work.wait(), 20)
        await until(lambda: app.progress()[0].pending_chunks == 2)
        await app.chunks.seek(TP(topic, 0), 30)
        release.set()
        await until(lambda: app.progress()[0].committed == 100)
    assert got == [0, 30, 80], "the chunk that waited behind the one in work was dropped"


@integration
async def test_the_chunk_in_work_ends_and_is_committed_before_its_partition_is_given_away(
    kafka: KafkaBroker, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, 400)
    got: list[tuple[str, int, int]] = []

    def handler_of(name: str) -> Callable[[Chunk], object]:
        async def handler(chunk: Chunk) -> None:
            await asyncio.sleep(0.3)
            got.extend((name, chunk.partition, record.offset) for record in chunk.records)

        return handler

    one, two = make_app(kafka, topic_prefix, chunk_size=10), make_app(kafka, topic_prefix, chunk_size=10)
    add_chunk_agent(one, [topic], handler_of("one"))  # type: ignore[arg-type]
    add_chunk_agent(two, [topic], handler_of("two"))  # type: ignore[arg-type]
    async with running(one):
        await until(lambda: len(got) >= 20)
        async with running(two):
            await until(lambda: len(got) >= 400)
    assert len(got) == len({entry[1:] for entry in got}) == 400, "nothing was handed over twice"
    assert {name for name, *_ in got} == {"one", "two"}


@integration
async def test_markers_of_transactions_and_aborted_records_block_no_commit(
    kafka: KafkaBroker, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=topic_prefix)
    await producer.start()
    for turn in range(6):
        await producer.begin_transaction()
        for value in range(turn * 100, turn * 100 + 100):
            await producer.send(topic, str(value).encode(), partition=value % PARTITIONS)
        await (producer.abort_transaction() if turn % 2 else producer.commit_transaction())
    await producer.stop()
    got: list[int] = []

    async def handler(chunk: Chunk) -> None:
        got.extend(int(record.value) for record in chunk.records)

    app = make_app(kafka, topic_prefix)
    add_chunk_agent(app, [topic], handler)
    async with running(app):
        await until(lambda: app.progress() and all(e.committed == e.end_offset == 156 for e in app.progress()))
        assert all(entry.lag == 0 for entry in app.progress())
    assert sorted(got) == [value for value in range(600) if value // 100 % 2 == 0]
    assert await committed(kafka, topic_prefix, topic) == await ends(kafka, topic)


@integration
async def test_two_agents_of_one_worker_run_side_by_side(kafka: KafkaBroker, topic_prefix: str) -> None:
    events, items = f"{topic_prefix}.events", f"{topic_prefix}.items"
    await make_topics(kafka, events, items)
    await produce(kafka, events, 0, 400)
    await produce(kafka, items, 0, 400)
    release = asyncio.Event()
    got: list[int] = []

    async def slow(chunk: Chunk) -> None:
        await release.wait()

    async def quick(chunk: Chunk) -> None:
        assert chunk.topic == events
        got.extend(int(record.value) for record in chunk.records)

    app = make_app(kafka, topic_prefix)
    add_chunk_agent(app, [items], slow)
    add_chunk_agent(app, [events], quick)
    async with running(app):
        await until(lambda: sorted(got) == list(range(400)))
        await until(lambda: {entry.committed for entry in by_partition(app, events).values()} == {100})
        assert {entry.committed for entry in by_partition(app, items).values()} == {0}
        release.set()
        await until(lambda: {entry.committed for entry in by_partition(app, items).values()} == {100})


@integration
async def test_a_chunk_that_does_not_end_holds_up_no_stop_and_stays_unacknowledged(
    kafka: KafkaBroker, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, 400)
    in_work, ended = asyncio.Event(), []

    async def handler(chunk: Chunk) -> None:
        in_work.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(chunk)

    app = make_app(kafka, topic_prefix)
    add_chunk_agent(app, [topic], handler)
    stop = asyncio.Event()
    task = asyncio.create_task(run(app, stop))
    await asyncio.wait_for(in_work.wait(), 20)
    stop.set()
    await asyncio.wait_for(task, 5)
    assert len(ended) == 1
    assert set((await committed(kafka, topic_prefix, topic)).values()) == {0}


@integration
async def test_a_stop_before_the_group_is_joined_ends_at_once(
    embedded_kafka: EmbeddedBroker, topic_prefix: str
) -> None:
    async def handler(chunk: Chunk) -> None: ...

    app = make_app(embedded_kafka, topic_prefix)
    add_chunk_agent(app, [f"{topic_prefix}.events"], handler)
    stop = asyncio.Event()
    task = asyncio.create_task(run(app, stop))
    await asyncio.sleep(0.5)  # in the middle of the start, which takes 1.5 s at least
    stop.set()
    await asyncio.wait_for(task, 5)


@integration
async def test_an_assignment_hook_that_raises_crashes_the_app(kafka: KafkaBroker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)

    async def on_assigned(partitions: set[TP]) -> None:
        raise RuntimeError("cannot")

    async def handler(chunk: Chunk) -> None: ...

    app = make_app(kafka, topic_prefix, on_assigned=on_assigned)
    add_chunk_agent(app, [topic], handler)
    with pytest.raises(WorkerCrashedError) as caught:
        await asyncio.wait_for(run(app, asyncio.Event()), 20)
    assert isinstance(caught.value.__cause__, RuntimeError)


@integration
@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_records_of_any_compression_are_read(kafka: KafkaBroker, topic_prefix: str, compression: str) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, compression_type=compression)
    await producer.start()
    for value in range(400):
        await producer.send(topic, str(value).encode(), partition=value % PARTITIONS)
    await producer.stop()
    got: list[int] = []

    async def handler(chunk: Chunk) -> None:
        got.extend(int(record.value) for record in chunk.records)

    app = make_app(kafka, topic_prefix)
    add_chunk_agent(app, [topic], handler)
    async with running(app):
        await until(lambda: sorted(got) == list(range(400)))


@integration
async def test_credentials_reach_the_broker(kafka: KafkaBroker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(kafka, topic)
    await produce(kafka, topic, 0, 100)
    got: list[int] = []

    async def handler(chunk: Chunk) -> None:
        got.extend(int(record.value) for record in chunk.records)

    connection = {
        "bootstrap_servers": kafka.sasl_bootstrap_servers,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": SASL_USER,
        "sasl_plain_password": SASL_PASSWORD,
    }
    app = make_app(kafka, topic_prefix, connection=connection)
    add_chunk_agent(app, [topic], handler)
    async with running(app):
        await until(lambda: sorted(got) == list(range(100)))


@integration
async def test_without_a_failure_callback_a_handler_that_raises_crashes_the_app(
    embedded_kafka: EmbeddedBroker, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.events"
    await make_topics(embedded_kafka, topic)
    await produce(embedded_kafka, topic, 0, 100)

    async def handler(chunk: Chunk) -> None:
        raise ValueError("no")

    app = make_app(embedded_kafka, topic_prefix)
    add_chunk_agent(app, [topic], handler)
    with pytest.raises(WorkerCrashedError) as caught:
        await asyncio.wait_for(run(app, asyncio.Event()), 20)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_broker_that_is_not_there_ends_the_run_with_an_error() -> None:
    app = build_app(connection={"bootstrap_servers": "127.0.0.1:1"}, group="g")

    async def handler(chunk: Chunk) -> None: ...

    add_chunk_agent(app, ["events"], handler)
    with pytest.raises(WorkerCrashedError) as caught:
        await asyncio.wait_for(run(app, asyncio.Event()), 20)
    assert isinstance(caught.value.__cause__, KafkaError)


async def test_environment_variables_of_faust_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROKER_SESSION_TIMEOUT", "44")
    monkeypatch.setenv("WEB_ENABLED", "1")
    app = build_app(connection={"bootstrap_servers": "127.0.0.1:1"}, group="g")
    assert app.conf.broker_session_timeout == 6.0
    assert app.conf.web_enabled is False
    assert os.listdir(tmp_path) == []
