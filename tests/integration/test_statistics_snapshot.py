"""A statistics snapshot goes through Kafka and comes back whole; without one a new worker reads every delta."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from models.domain.catalogue import Catalogue
from models.domain.circumstances import NOT_TOLD
from models.domain.deltas import Ledger, encode_delta
from models.domain.ranking import AdaptiveWeights, bootstrap_weights
from models.domain.statistics import PAIR_WINDOW, Statistics, Touches
from streams.agents.statistics import SNAPSHOT_KEY, StatisticsFeed
from streams.kafka.admin import create_topics, topic_ids
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.connection import KafkaConnection
from streams.kafka.embedded_broker import BrokerProcess, EmbeddedBroker
from streams.kafka.publisher import Message, Publisher
from streams.kafka.snapshot_pointer import fetch_parts, load_pointer, save_pointer
from streams.metrics import Metrics
from streams.topics import TopicNames, topic_specs

pytestmark = pytest.mark.integration
SOURCE = "events@1/0"


def _touches(items: list[int], start_ms: int) -> Touches:
    recent = np.full((len(items), PAIR_WINDOW), -1, np.int32)
    recent[1:, 0] = items[:-1]
    return Touches(
        item=np.array(items, np.int32),
        event_time_ms=start_ms + np.arange(len(items)),
        value=np.full(len(items), 0.5, np.float32),
        first=np.ones(len(items), np.bool_),
        strong=np.zeros(len(items), np.bool_),
        recent=recent,
        recent_gap_ms=np.where(recent >= 0, 5_000, NOT_TOLD).astype(np.int64),
        tag=1 + np.arange(len(items), dtype=np.int32),
        chosen=np.zeros(len(items), np.int32),
        gap_ms=np.full(len(items), 60_000, np.int64),
    )


class _Side:
    """One worker's statistics with their feed."""

    def __init__(self, name: str, topic: str, publisher: Publisher) -> None:
        self.catalogue, self.statistics = Catalogue(9), Statistics()
        self.weights = AdaptiveWeights(bootstrap_weights())
        self.ledger = Ledger(self.statistics, self.catalogue, self.weights, name)
        self.feed = StatisticsFeed(self.ledger, topic, publisher, Metrics(), asyncio.Lock())
        self.topic, self.publisher = topic, publisher

    async def count(self, items: list[int], start: int) -> None:
        """Count touches of items (`i<number>`) as the records from offset `start` on and share them."""
        index = self.catalogue.intern_many(f"i{item}" for item in items)
        touches = _touches(index.tolist(), 1_700_000_000_000 + start)
        self.statistics.reserve(len(self.catalogue), len(items))
        self.statistics.update(touches)
        offsets = list(range(start, start + len(items)))
        delta = self.ledger.write(SOURCE, offsets[-1] + 1, [touches], offsets, [], [])
        assert delta is not None
        await self.publisher.send_many([Message(self.topic, SOURCE.encode(), encode_delta(delta))])

    def touches(self) -> dict[str, float]:
        counts = self.statistics.arrays.touches
        return {item_id: float(counts[at]) for at, item_id in enumerate(self.catalogue.ids) if counts[at]}


async def test_a_new_worker_starts_from_the_snapshot_and_the_deltas_after_it(
    broker: BrokerProcess, topic_prefix: str
) -> None:
    connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
    names = TopicNames(topic_prefix)
    await create_topics(connection, topic_specs(names, partitions=1))
    topic = names.item_stats
    incarnation = (await topic_ids(connection, [topic]))[topic]
    assert await load_pointer(connection, topic, incarnation) is None
    async with Publisher(connection) as publisher:
        old = _Side("old", topic, publisher)
        await old.count([n % 50 for n in range(400)], 0)
        reader = BroadcastReader(topic, connection, old.feed.apply)
        reader.start()
        await reader.caught_up()
        pointer = await old.feed.write_snapshot(reader.position(), incarnation)
        await reader.stop()
        assert pointer is not None
        await save_pointer(connection, topic, pointer)
        await old.count([7, 60, 7], 400)

        new = _Side("new", topic, publisher)
        new.catalogue.intern("i33")  # another numbering
        found = await load_pointer(connection, topic, incarnation)
        start = {}
        if isinstance(broker, EmbeddedBroker):
            assert found is None  # it keeps no metadata of an offset: whoever is new reads from the beginning
        else:
            assert found == pointer
            assert await load_pointer(connection, topic, "another incarnation") is None
            parts = await fetch_parts(connection, topic, found, SNAPSHOT_KEY)
            assert parts is not None
            new.feed.restore(parts)
            start = {0: found.read_from}
        rest = BroadcastReader(topic, connection, new.feed.apply, start_offsets=start)
        rest.start()
        await rest.caught_up()
        await rest.stop()
        assert new.touches() == old.touches()
        assert new.ledger.applied == old.ledger.applied == {SOURCE: 403}
