"""What a worker writes for a trainer: each interaction once, with what its user was shown and could have been."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from models.domain.features import FEATURE_COUNT, FEATURES
from models.domain.feedback import Feedback, Forgotten, decode_feedback, unpack_features
from streams.cli.rebuild import rebuild_users
from streams.kafka.embedded_broker import BrokerProcess
from streams.settings import Settings
from tests.services.deployment import Deployment, ListReader, deployment, until_consumed
from tests.services.streams import START_MS, make_events, make_items
from tests.services.worker import until

pytestmark = pytest.mark.integration

EVENTS = 1_500
NO_INTERACTIONS = ("search", "hide", "impression", "forget")


async def send_items(deployed: Deployment, items: int = 400) -> None:
    await deployed.send(deployed.names.items, [(item["item_id"], item) for item in make_items(items)])


async def test_every_interaction_is_told_once_and_in_its_users_order(deployed: Deployment) -> None:
    events = make_events(EVENTS, users=60)
    forget = {
        "type": "forget",
        "event_id": "f",
        "user_id": "u1",
        "event_time_ms": max(event["event_time_ms"] for event in events) + 1,
    }
    await send_items(deployed)
    worker = await deployed.started()
    await until(lambda: worker.metric("streamrec_items_total", outcome="encoded") >= 400, "the items are encoded")
    await until_consumed([worker], deployed)
    await deployed.send_events([*events, forget])
    await until_consumed([worker], deployed)
    topic = await deployed.read(deployed.names.feedback)
    records = [decode_feedback(record.value) for record in topic]
    told = [record for record in records if isinstance(record, Feedback)]
    interactions = {event["event_id"]: event for event in events if event["type"] not in NO_INTERACTIONS}
    assert Counter(record.event_id for record in told) == dict.fromkeys(interactions, 1)
    assert [record for record in records if isinstance(record, Forgotten)] == [
        Forgotten(1, "u1", forget["event_time_ms"])
    ]
    assert worker.metric("streamrec_feedback_total", outcome="sent") == len(records)
    assert worker.metric("streamrec_published_bytes_total", topic=deployed.names.feedback) == sum(
        len(record.value) for record in topic
    )
    assert [record.key.decode() for record in topic] == [record.user_id for record in records]
    place = {event["event_id"]: at for at, event in enumerate(events)}
    for user in {record.user_id for record in told}:
        his = [place[record.event_id] for record in told if record.user_id == user]
        assert his == sorted(his)

    lists = {made.recommendation_id: made for made in await deployed.lists()}
    for record in told:
        event = interactions[record.event_id]
        assert (record.item_id, record.kind, record.value) == (event["item_id"], event["type"], event.get("value"))
        assert record.shown is not None or record.history == ()
        if record.shown is not None and record.user_id != "u1":  # whose lists of this batch were never published
            made = lists[record.shown.recommendation_id or ""]
            assert record.shown.items == tuple(item.item_id for item in made.items)
            assert record.shown.sources == tuple(item.source for item in made.items)
            assert (record.shown.named_by, record.shown.model_version) == ("latest", made.model_version)
        assert (record.candidates is not None) == record.first
    described = [record.candidates for record in told if record.candidates and record.candidates.features]
    assert len(described) > EVENTS / 10
    features = np.concatenate([unpack_features(one.features, len(one.items)) for one in described])
    assert features.shape[1] == FEATURE_COUNT
    assert np.isfinite(features).all()
    assert features[:, FEATURES.index("passed_times")].any(), "habits are kept under a log-linear ranker too"

    worker.stop()
    await rebuild_users(
        Settings(
            kafka_bootstrap_servers=deployed.broker.bootstrap_servers,
            topic_prefix=deployed.prefix,
            consumer_group=f"{deployed.prefix}-workers",
            data_dir=deployed.data_dir,
            bundle=str(deployed.bundle),
        )
    )
    assert len(await deployed.feedback()) == len(records), "a rebuild tells nobody"


async def test_an_interaction_is_told_with_the_list_that_it_names(deployed: Deployment) -> None:
    def view(number: int, item: str, **names: str) -> dict[str, object]:
        return {
            "type": "view",
            "event_id": f"e{number}",
            "user_id": "u",
            "item_id": item,
            "event_time_ms": START_MS + 60_000 * number,
            **names,
        }

    await send_items(deployed, 40)
    worker = await deployed.started()
    await until(lambda: worker.metric("streamrec_items_total", outcome="encoded") >= 40, "the items are encoded")
    await until_consumed([worker], deployed)
    async with ListReader(deployed) as reader:
        await deployed.send_events([view(1, "i1")])
        first = await reader.after("e1")
        await deployed.send_events([view(2, "i2")])
        await reader.after("e2")
        await deployed.send(deployed.names.requests, [("u", {"request_id": "page", "user_id": "u", "k": 5})])
        asked = await reader.answer("page")
        seen = ["i30", "i31"]
        await deployed.send_events(
            [
                view(3, first.items[1].item_id, recommendation_id=first.recommendation_id),
                view(4, asked.items[4].item_id, request_id="page"),
                {
                    "type": "impression",
                    "event_id": "shelf",
                    "user_id": "u",
                    "item_ids": seen,
                    "request_id": "shelf-1",
                    "event_time_ms": START_MS + 60_000 * 5,
                },
                view(6, "i31", request_id="shelf-1"),
                view(7, "i39"),
            ]
        )
        latest = await reader.after("e6")
        await reader.after("e7")
    worker.stop()
    by = {record.event_id: record.shown for record in await deployed.feedback() if isinstance(record, Feedback)}
    assert by["e1"] is None
    found = {event: (s.named_by, s.recommendation_id, s.place) for event, s in by.items() if s is not None}
    assert found["e3"] == ("recommendation", first.recommendation_id, 2)
    assert found["e4"] == ("request", asked.recommendation_id, 5)
    assert found["e6"] == ("request", None, 2)
    assert found["e7"][:2] == ("latest", latest.recommendation_id)


async def test_a_record_larger_than_the_topic_allows_is_left_out_and_counted(deployed: Deployment) -> None:
    events = [
        {
            "type": "view",
            "event_id": f"e{number}",
            "user_id": "u",
            "item_id": f"i{number}" if number % 2 else f"i{number}-" + "x" * 240,
            "event_time_ms": START_MS + 60_000 * number,
        }
        for number in range(30)
    ]
    admin = AIOKafkaAdminClient(**deployed.connection.client_options("test-admin"))
    await admin.start()
    try:
        limit = {"max.message.bytes": "2000"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, deployed.names.feedback, limit)])
    finally:
        await admin.close()
    worker = await deployed.started()
    await deployed.send_events(events)
    await until_consumed([worker], deployed)
    told = await deployed.feedback()
    left_out = worker.metric("streamrec_feedback_total", outcome="too_large")
    assert 0 < len(told) < len(events)
    assert left_out == len(events) - len(told)
    assert worker.metric("streamrec_feedback_total", outcome="sent") == len(told)
    assert worker.metric("streamrec_events_total", outcome="folded") == len(events)
    assert len(await deployed.lists()) == len(events), "lists do not wait for it"
    worker.stop()


async def test_a_worker_told_not_to_writes_no_feedback_on_either_broker(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, worker_bundle: Path
) -> None:
    async with deployment(broker, topic_prefix, tmp_path, worker_bundle) as deployed:
        worker = await deployed.started(feedback="false")
        await deployed.send_events(make_events(60, users=5))
        await until(lambda: worker.metric("streamrec_events_total", outcome="folded") == 60, "the events are folded")
        assert await deployed.feedback() == []
        full = [made for made in await deployed.lists() if made.items]
        assert worker.metric("streamrec_list_score_spread_count") == len(full) > 0
        assert worker.metric("streamrec_state_norm_sum") > 0
        worker.stop()
        loud = await deployed.started("loud")
        await deployed.send_events(make_events(60, users=5, first=60))
        await until(lambda: loud.metric("streamrec_events_total", outcome="folded") == 60, "the events are folded")
        assert len(await deployed.feedback()) > 40
        loud.stop()
