"""A worker seen from outside: events, items and requests go in over Kafka, ranked lists come out."""

from __future__ import annotations

import random
import time
import zlib
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from models.domain.state import user_key
from streams.kafka.embedded_broker import BrokerProcess
from streams.kafka.partitioner import partition_of
from streams.kafka.publisher import Message
from tests.services.deployment import Deployment, ListReader, deployment, until_consumed
from tests.services.streams import START_MS, expected_touches, make_events
from tests.services.worker import until

pytestmark = pytest.mark.integration

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FILMS = {
    "space-1": "A star ship crosses the galaxy",
    "space-2": "Astronauts on a distant planet",
    "space-3": "War between the planets of a galaxy",
    "cook-1": "A chef opens a restaurant",
    "cook-2": "The secret of the perfect soup",
    "cook-3": "Baking bread in a village",
    "dog-1": "A dog looks for its master",
    "dog-2": "The puppy and the farm",
}


def view(user: str, item: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "view",
        "event_id": f"{user}-{number}",
        "user_id": user,
        "item_id": item,
        "event_time_ms": START_MS + 60_000 * number,
        **more,
    }


async def send_films(deployed: Deployment, worker: Any) -> None:
    await deployed.send(
        deployed.names.items, [(item, {"item_id": item, "title": title}) for item, title in FILMS.items()]
    )
    await until(lambda: worker.metric("streamrec_items_total", outcome="encoded") >= len(FILMS), "films are encoded")


async def test_lists_follow_events_and_requests_on_either_broker(
    broker: BrokerProcess, topic_prefix: str, tmp_path: Path, worker_bundle: Path
) -> None:
    async with deployment(broker, topic_prefix, tmp_path, worker_bundle) as deployed, ListReader(deployed) as reader:
        worker = await deployed.started()
        await send_films(deployed, worker)
        names = deployed.names
        made = []
        for number, item in enumerate(("space-1", "cook-1", "dog-1")):
            event = view("new-user", item, number)
            await deployed.publisher.send(
                Message(
                    names.events,
                    b"new-user",
                    msgspec.json.encode(event),
                    (("traceparent", TRACE.encode()), ("x", b"y")),
                )
            )
            made.append(await reader.after(event["event_id"]))
            assert item not in [one.item_id for one in made[-1].items], "what was seen is not recommended"
            assert [one.rank for one in made[-1].items] == list(range(1, len(made[-1].items) + 1))
            assert made[-1].model_version.startswith("bootstrap")
        assert len({tuple(one.item_id for one in each.items) for each in made}) == 3, (
            "the list changes after each event"
        )
        assert next(iter(made[0].items)).item_id.startswith("space"), made[0]
        assert [record.headers for record in reader.records] == [(("traceparent", TRACE.encode()),)] * 3

        await deployed.send(
            names.requests,
            [
                ("new-user", {"request_id": "r1", "user_id": "new-user", "k": 3}),
                ("new-user", {"request_id": "r2", "user_id": "new-user", "k": 2, "text": "a soup and a restaurant"}),
                ("stranger", {"request_id": 3, "user_id": "stranger"}),
            ],
        )
        plain, asked, stranger = [await reader.answer(request) for request in ("r1", "r2", "3")]
        assert len(plain.items) == 3
        assert len(asked.items) == 2
        assert asked.items[0].item_id in ("cook-2", "cook-3"), asked
        assert stranger.user_id == "stranger"
        assert stranger.trigger_event_id is None
        sequences = [each.sequence for each in (*made, plain, asked)]
        assert sequences == sorted(set(sequences)), "the sequence strictly grows"
        worker.stop()


async def test_a_new_item_is_recommended_and_a_removed_one_is_not_within_a_second_or_so(deployed: Deployment) -> None:
    numbers = count()

    async def until_listed(item: str, listed: bool) -> float:
        started = time.monotonic()
        while True:
            request = f"look-{next(numbers)}"
            await deployed.send(names.requests, [("u", {"request_id": request, "user_id": "u"})])
            answer = await reader.answer(request)
            if (item in [one.item_id for one in answer.items]) == listed:
                return time.monotonic() - started
            assert time.monotonic() - started < 30, f"{item}: listed={not listed} still"

    names = deployed.names
    async with ListReader(deployed) as reader:
        worker = await deployed.started()
        await send_films(deployed, worker)
        await deployed.send_events([view("u", "space-1", 1), view("u", "space-2", 2)])
        await reader.after("u-2")
        await deployed.send(
            names.items, [("space-9", {"item_id": "space-9", "title": "A planet far out in the galaxy"})]
        )
        added = await until_listed("space-9", True)
        await deployed.send(names.items, [("space-9", None)])
        removed = await until_listed("space-9", False)
        await deployed.send(
            names.items, [("cook-1", {"item_id": "cook-1", "title": FILMS["cook-1"], "available": False})]
        )
        sold_out = await until_listed("cook-1", False)
        worker.stop()
    print(
        f"new item listed after {added:.3f} s, removed one gone after {removed:.3f} s, sold out after {sold_out:.3f} s"
    )


@pytest.mark.recovery
async def test_events_of_any_client_reach_their_user_once_even_over_a_kill(deployed: Deployment) -> None:
    """Partitioners differ (murmur2, CRC32, random), keys are missing, batches are compressed: one user, one writer."""
    names, rng = deployed.names, random.Random(5)
    events = make_events(6_000, users=60, items=80)
    # What Java, librdkafka, kcat without a key, and a client of its own would choose.
    partitioners = (
        lambda user: partition_of(user, deployed.partitions),
        lambda user: zlib.crc32(user) % deployed.partitions,
        lambda user: rng.randrange(deployed.partitions),
    )
    worker = await deployed.started()
    wrong = 0
    for start, compression in zip(range(0, len(events), 1_200), (None, "gzip", "lz4", "zstd", "snappy"), strict=True):
        async with AIOKafkaProducer(
            bootstrap_servers=deployed.connection.bootstrap_servers, compression_type=compression
        ) as producer:
            sends = []
            for event in events[start : start + 1_200]:
                user = event["user_id"].encode()
                partition = rng.choice(partitioners)(user)
                wrong += partition != partition_of(user, deployed.partitions)
                key = rng.choice((user, None, b"other"))
                sends.append(
                    await producer.send(names.events, msgspec.json.encode(event), key=key, partition=partition)
                )
            for sent in sends:
                await sent
        if start == 2_400:
            await until(
                lambda: worker.metric("streamrec_events_total", outcome="folded") >= 1_000, "the worker is at work"
            )
            worker.kill()
            worker.start()
    await worker.until_ready()
    await until_consumed([worker], deployed)
    forwarded = worker.metric("streamrec_forwarded_total")
    worker.stop()
    counts = dict.fromkeys({event["user_id"] for event in events}, 0)
    for event in events:
        counts[event["user_id"]] += event["type"] != "impression"
    assert {user: state.body.events for user, state in (await deployed.states()).items()} == counts
    assert await deployed.touches() == expected_touches(events)
    assert await deployed.dead_letters() == []
    print(f"{wrong} of {len(events)} events were in a wrong partition; {forwarded:.0f} forwarded after the kill")


@pytest.mark.recovery
async def test_a_forgotten_user_stays_forgotten_after_replays_a_restart_and_on_another_worker(
    deployed: Deployment,
) -> None:
    names = deployed.names
    store = deployed.store()
    store.start()
    await store.until_ready()
    history = [view("gone", f"i{number}", number) for number in range(20)]
    others = [view("stays", f"i{number}", number) for number in range(5)]
    forget = {"type": "forget", "event_id": "f", "user_id": "gone", "event_time_ms": START_MS + 60_000 * 30}
    older = [*history, view("gone", "i90", 25), view("gone", "i91", 30, event_id="fresh-id")]
    async with ListReader(deployed) as reader:
        first = await deployed.started("first", store=store)
        await deployed.send_events([*history, *others])
        before = await reader.after("gone-19")
        await deployed.send_events([forget, *older])
        await until_consumed([first], deployed)
        told = await _told(deployed, "gone")
        assert told[-1] is None, "the newest word on `recommendations` is a null"
        assert len(set(told)) == len(history) + 1

        first.stop()
        second = await deployed.started("second", store=store)
        await deployed.send_events(older)
        await until_consumed([second], deployed)
        assert second.metric("streamrec_events_total", outcome="dropped_forgotten") == len(older)
        # A record that is delivered again (a slow machine loses its group for a moment) may repeat the null.
        again_told = await _told(deployed, "gone")
        assert again_told[: len(told)] == told
        assert set(again_told[len(told) :]) <= {None}
        second.stop()
        store.stop()

        states = await deployed.states()
        assert states.keys() == {"stays", user_key("gone")}
        tombstone = states[user_key("gone")].body
        assert (tombstone.events, tombstone.recent, tombstone.last_list, tombstone.last_items) == (0, [], b"", [])
        assert tombstone.forgotten_ms == forget["event_time_ms"]
        assert tombstone.seen == b""
        assert tombstone.ring == []
        assert not states[user_key("gone")].embedding.any()

        third = await deployed.started("third")
        await deployed.send_events([view("gone", "i1", 40)])
        again = await reader.after("gone-40")
        assert again.sequence > before.sequence
        third.stop()
        assert (await deployed.states())["gone"].body.events == 1
    assert await deployed.read(names.dead_letters) == []


async def _told(deployed: Deployment, user: str) -> list[bytes | None]:
    """Everything `recommendations` says of a user up to its end, oldest first."""
    return [
        record.value for record in await deployed.read(deployed.names.recommendations) if record.key == user.encode()
    ]
