"""One deployment for a test: topics under a prefix, a data directory, workers, and what they left behind."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from models.domain.catalogue import Catalogue
from models.domain.deltas import Ledger, decode_delta
from models.domain.events import EventContract, Recommendation
from models.domain.feedback import Record, decode_feedback
from models.domain.ports import F32, UserRecord
from models.domain.state import RECENT_LENGTH, StoredBody, unpack_body
from models.domain.statistics import Statistics
from models.encoders.manifest import read_manifest
from streams.agents.statistics import SNAPSHOT_KEY
from streams.cli.common import resolve_bundle
from streams.kafka.admin import create_topics
from streams.kafka.broadcast import read_to_end
from streams.kafka.connection import KafkaConnection
from streams.kafka.dead_letters import DeadLetter, read_dead_letters
from streams.kafka.embedded_broker import BrokerProcess
from streams.kafka.publisher import Message, Publisher
from streams.settings import Settings
from streams.stores.embedded import EmbeddedStores
from streams.topics import TopicNames, topic_specs
from tests.services.worker import StoreProcess, TrainerProcess, WorkerProcess

# A killed worker's partitions are free after it.
SESSION_SECONDS = 3.0


class StoredUser(NamedTuple):
    """A user's state as the store has it; `applied` by partition, whatever the topic's incarnation is called."""

    revision: int
    embedding: F32
    memory: F32
    body: StoredBody
    applied: dict[str, int]


class Deployment:
    """Everything one test runs. Ended by `deployment` in reverse order, whatever happened."""

    def __init__(self, broker: BrokerProcess, prefix: str, folder: Path, bundle: Path, partitions: int) -> None:
        self.broker, self.prefix, self.bundle, self.partitions = broker, prefix, bundle, partitions
        self.folder, self.data_dir = folder, folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        self.connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
        self.names = TopicNames(prefix)
        self.specs = topic_specs(self.names, partitions=partitions)
        self.publisher = Publisher(self.connection)
        self.contract = EventContract()
        self.processes: list[WorkerProcess | StoreProcess] = []

    async def create_topics(self) -> None:
        await create_topics(self.connection, self.specs)

    def worker(self, name: str = "worker", *, store: StoreProcess | None = None, **settings: str) -> WorkerProcess:
        """A worker of this deployment, not started yet; settings by their names, in small letters."""
        worker = WorkerProcess(self.folder, name, self._environment(store, settings))
        self.processes.append(worker)
        return worker

    def trainer(self, name: str = "trainer", **settings: str) -> TrainerProcess:
        """A trainer of this deployment, not started yet."""
        trainer = TrainerProcess(self.folder, name, self._environment(None, settings))
        self.processes.append(trainer)
        return trainer

    def _environment(self, store: StoreProcess | None, settings: Mapping[str, str]) -> dict[str, str]:
        environment = {
            "kafka_bootstrap_servers": self.broker.bootstrap_servers,
            "topic_prefix": self.prefix,
            "consumer_group": f"{self.prefix}-workers",
            "data_dir": str(self.data_dir),
            "qdrant_url": store.url if store is not None else "",
            "bundle": str(self.bundle),
            "topic_partitions": str(self.partitions),
            "kafka_session_timeout_seconds": str(SESSION_SECONDS),
            **settings,
        }
        return {f"STREAMREC_{key.upper()}": value for key, value in environment.items()}

    async def started(
        self, name: str = "worker", *, store: StoreProcess | None = None, **settings: str
    ) -> WorkerProcess:
        worker = self.worker(name, store=store, **settings)
        worker.start()
        await worker.until_ready()
        return worker

    def store(self) -> StoreProcess:
        # A socket's path has room for 107 characters, which pytest's own folders may use up.
        socket = Path(tempfile.mkdtemp(prefix="streamrec-")) / "store.sock"
        store = StoreProcess(self.folder, self.data_dir, socket)
        self.processes.append(store)
        return store

    async def send(self, topic: str, messages: Sequence[tuple[str | None, Any]]) -> None:
        """Publish (key, message); a message is bytes, None or what JSON can say."""
        await self.publisher.send_many(
            [
                Message(
                    topic,
                    None if key is None else key.encode(),
                    value if isinstance(value, bytes) or value is None else msgspec.json.encode(value),
                )
                for key, value in messages
            ]
        )

    async def send_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        await self.send(self.names.events, [(str(event["user_id"]), event) for event in events])

    async def read(self, topic: str) -> list[Any]:
        return [record async for record in read_to_end(self.connection, topic)]

    async def lists(self) -> list[Recommendation]:
        """Every list on the topic, in the order of each partition."""
        records = await self.read(self.names.recommendations)
        return [self.contract.decode_recommendation(record.value) for record in records if record.value is not None]

    async def newest_lists(self) -> dict[str, bytes]:
        """User -> the bytes of the list of the largest sequence."""
        newest: dict[str, tuple[int, bytes]] = {}
        for record in await self.read(self.names.recommendations):
            if record.value is not None:
                made = self.contract.decode_recommendation(record.value)
                if made.sequence >= newest.get(made.user_id, (-1, b""))[0]:
                    newest[made.user_id] = (made.sequence, record.value)
        return {user: data for user, (_, data) in newest.items()}

    async def feedback(self) -> list[Record]:
        """What a trainer would read, in the order of each partition."""
        return [decode_feedback(record.value) for record in await self.read(self.names.feedback)]

    async def dead_letters(self) -> list[DeadLetter]:
        return [letter async for letter in read_dead_letters(self.connection, self.names.dead_letters)]

    async def states(self) -> dict[str, StoredUser]:
        """Every stored user by id (a tombstone by its key), once no process holds the data directory."""
        dimensions = read_manifest(self.bundle).dimensions
        stores = EmbeddedStores(self.data_dir)
        try:
            users = await stores.users(state_size=dimensions.state, dimension=dimensions.item)
            return dict([_stored(record) async for record in users.scan()])
        finally:
            await stores.close()

    async def touches(self) -> Counter[str]:
        """Item -> touches, as a worker that starts now would read them off the topic."""
        catalogue, statistics = Catalogue(read_manifest(self.bundle).dimensions.item), Statistics()
        ledger = Ledger(statistics, catalogue, None, "test")
        for record in await self.read(self.names.item_stats):
            if record.key != SNAPSHOT_KEY and record.value is not None:
                ledger.read(decode_delta(record.value))
        counts = statistics.arrays.touches[: len(catalogue)].tolist()
        return Counter({item: int(count) for item, count in zip(catalogue.ids, counts, strict=True) if count})


class ListReader:
    """Follows `recommendations` from its beginning, as an application would; keeps everything it saw."""

    def __init__(self, deployed: Deployment) -> None:
        self._deployed = deployed
        self._consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
            **deployed.connection.client_options("test-lists"), fetch_max_wait_ms=20, auto_offset_reset="earliest"
        )
        self.records: list[Any] = []
        self.lists: list[Recommendation] = []

    async def __aenter__(self) -> ListReader:
        await self._consumer.start()
        topic = self._deployed.names.recommendations
        partitions = [TopicPartition(topic, number) for number in range(self._deployed.partitions)]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def poll(self) -> None:
        for records in (await self._consumer.getmany(timeout_ms=50)).values():
            self.records += records
            self.lists += [
                self._deployed.contract.decode_recommendation(r.value) for r in records if r.value is not None
            ]

    async def find(self, wanted: Callable[[Recommendation], bool], what: str, seconds: float = 30.0) -> Recommendation:
        """The first list that is wanted. Raises: AssertionError at the deadline."""
        deadline = time.monotonic() + seconds
        looked = 0
        while True:
            for made in self.lists[looked:]:
                if wanted(made):
                    return made
            looked = len(self.lists)
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            await self.poll()

    async def after(self, event_id: str) -> Recommendation:
        return await self.find(lambda made: made.trigger_event_id == event_id, f"the list after {event_id}")

    async def answer(self, request_id: str) -> Recommendation:
        return await self.find(lambda made: made.request_id == request_id, f"the answer to {request_id}")


def _stored(record: UserRecord) -> tuple[str, StoredUser]:
    body = unpack_body(record.body)
    applied = {log.rpartition("/")[2]: offset for log, offset in body.applied.items()}
    return body.user_id or record.user_key, StoredUser(record.revision, record.embedding, record.state, body, applied)


def assert_same_states(
    found: Mapping[str, StoredUser], expected: Mapping[str, StoredUser], *, offsets: bool = True
) -> None:
    """Counts exactly, floats to 1e-5. `offsets` also compares where in the log each user stands."""
    assert found.keys() == expected.keys()
    for user, want in expected.items():
        have = found[user]
        assert have.body.events == want.body.events, user
        assert have.body.recent == want.body.recent, user
        assert have.body.last_event_ms == want.body.last_event_ms, user
        assert set(have.body.ring) == set(want.body.ring), user
        if offsets:
            assert have.applied == want.applied, user
            assert have.revision == want.revision, user
            assert have.body.sequence == want.body.sequence, user
        np.testing.assert_allclose(have.embedding, want.embedding, atol=1e-5, err_msg=user)
        np.testing.assert_allclose(have.memory, want.memory, atol=1e-5, err_msg=user)


def assert_states_follow(states: Mapping[str, StoredUser], events: Sequence[Mapping[str, Any]]) -> None:
    """Each user's state holds each of his events once: their number, and the latest interactions in their order."""
    counts: Counter[str] = Counter()
    recent: dict[str, list[tuple[str, str, float | None, int]]] = defaultdict(list)
    for event in events:
        user, kind = event["user_id"], event["type"]
        if kind != "impression":
            counts[user] += 1
        if kind not in ("search", "hide", "impression"):
            recent[user].append((event["item_id"], kind, event.get("value"), event["event_time_ms"]))
    found = {user: state.body.events for user, state in states.items()}
    wrong = {user: (found.get(user, 0), counts[user]) for user in found | counts if found.get(user, 0) != counts[user]}
    assert not wrong, f"events in the state and published, by user: {wrong}"
    for user, state in states.items():
        assert state.body.recent == recent[user][-RECENT_LENGTH:], user


async def assert_newest_lists(deployed: Deployment, states: Mapping[str, StoredUser]) -> None:
    """Every user's newest list is on the topic, and is the one the state remembers, byte for byte."""
    newest = await deployed.newest_lists()
    assert newest == {user: state.body.last_list for user, state in states.items() if state.body.last_list}


async def until_consumed(workers: Sequence[WorkerProcess], deployed: Deployment, seconds: float = 120.0) -> None:
    """Wait until every event and request is consumed: the group's committed offsets stand at the end."""
    admin = AIOKafkaAdminClient(**deployed.connection.client_options("test-admin"))
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(**deployed.connection.client_options("test-ends"))
    await admin.start()
    await consumer.start()
    try:
        topics = (deployed.names.events, deployed.names.requests, deployed.names.items)
        partitions = [TopicPartition(topic, p) for topic in topics for p in range(deployed.partitions)]
        left: dict[Any, int] = {}

        async def look() -> int:
            ends = await consumer.end_offsets(partitions)
            committed = await admin.list_consumer_group_offsets(f"{deployed.prefix}-workers")
            left.clear()
            for partition, end in ends.items():
                done = committed[partition].offset if partition in committed else 0
                if done < end:
                    left[partition] = end - done
            return sum(left.values())

        deadline = time.monotonic() + seconds
        while await look():
            for worker in workers:
                assert worker.running, f"{worker.name} ended with status {worker.status}:\n{worker.log_tail()}"
            assert time.monotonic() < deadline, f"not consumed within {seconds:g} s: {left}\n{workers[0].log_tail()}"
            await asyncio.sleep(0.1)
    finally:
        await consumer.stop()
        await admin.close()


def make_bundle(folder: Path) -> Path:
    """The bundle a worker would make for itself, made once for many."""
    return resolve_bundle(Settings(data_dir=folder))


@asynccontextmanager
async def deployment(
    broker: BrokerProcess, prefix: str, folder: Path, bundle: Path, *, partitions: int = 4
) -> AsyncIterator[Deployment]:
    """A deployment with its topics; every process of it is ended at the end."""
    deployed = Deployment(broker, prefix, folder, bundle, partitions)
    try:
        await deployed.create_topics()
        await deployed.publisher.start()
        yield deployed
    finally:
        for process in reversed(deployed.processes):
            process.end()
        await deployed.publisher.stop()
