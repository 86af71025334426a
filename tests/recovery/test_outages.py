"""Services that go away under load and come back: the worker waits, catches up, loses nothing and doubles nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.services.deployment import (
    Deployment,
    assert_newest_lists,
    assert_states_follow,
    deployment,
    until_consumed,
)
from tests.services.kafka import KafkaBroker
from tests.services.streams import expected_touches, make_events
from tests.services.worker import until

BROKER_AWAY_SECONDS, STORE_AWAY_SECONDS = 10.0, 20.0

pytestmark = [pytest.mark.recovery, pytest.mark.integration]


async def feed(
    deployed: Deployment, events: Sequence[dict[str, Any]], per_second: float, enough: asyncio.Event | None = None
) -> int:
    """Publish at a rate; what could not be sent for a while follows at once.

    Args:
        enough: ends it early.
    Returns: how many of the events were sent.
    """
    step = 50
    for start in range(0, len(events), step):
        if enough is not None and enough.is_set():
            return start
        await deployed.send_events(events[start : start + step])
        await asyncio.sleep(step / per_second)
    return len(events)


async def test_the_broker_goes_away_for_ten_seconds_and_then_the_index_for_twenty(
    own_kafka: KafkaBroker, topic_prefix: str, tmp_path: Path, worker_bundle: Path
) -> None:
    events = make_events(9_000)
    async with deployment(own_kafka, topic_prefix, tmp_path, worker_bundle) as deployed:
        store = deployed.store()
        store.start()
        await store.until_ready()
        worker = await deployed.started(store=store)
        pid = worker.pid
        feeding = asyncio.create_task(feed(deployed, events, 500))

        await until(lambda: worker.metric("streamrec_events_total", outcome="folded") > 500, "the worker is at work")
        await asyncio.to_thread(own_kafka.stop)
        await asyncio.sleep(BROKER_AWAY_SECONDS)
        assert worker.running
        await asyncio.to_thread(own_kafka.start)
        before = worker.metric("streamrec_events_total", outcome="folded")
        caught_up = await until(
            lambda: worker.metric("streamrec_events_total", outcome="folded") > before + 500, "work goes on"
        )
        print(f"work went on {caught_up:.1f} s after the broker was back")

        store.kill()
        await until(lambda: worker.metric("streamrec_retries_total") > 0, "the missing index is noticed")
        assert worker.get("/readyz")[0] == 503
        await asyncio.sleep(STORE_AWAY_SECONDS)
        assert worker.running
        assert worker.get("/healthz")[0] == 200, "waiting is not standing still"
        store.start()
        await store.until_ready()
        caught_up = await until(worker.is_ready, "the worker is ready again")
        print(f"ready {caught_up:.1f} s after the index was back")

        await feeding
        await until_consumed([worker], deployed)
        assert worker.pid == pid
        worker.stop()
        store.stop()
        states = await deployed.states()
        # The test's own producer may have had to send a batch twice; the users' rings of event ids recognise it.
        assert_states_follow(states, events)
        assert await deployed.touches() == expected_touches(events)
        await assert_newest_lists(deployed, states)


async def test_a_second_worker_joins_and_leaves_under_load_by_stop_and_by_kill(deployed: Deployment) -> None:
    # More than are needed: how long a second worker takes to start is the machine's affair, and events must not end
    # before it works.
    events = make_events(80_000)
    store = deployed.store()
    store.start()
    await store.until_ready()
    first = await deployed.started("first", store=store)
    enough = asyncio.Event()
    feeding = asyncio.create_task(feed(deployed, events, 700, enough))
    second = deployed.worker("second", store=store)
    for leave in (second.stop, second.kill):
        second.start()
        await second.until_ready()
        await until(lambda: second.metric("streamrec_events_total", outcome="folded") > 200, "the second one works")
        assert first.running
        leave()
    enough.set()
    events = events[: await feeding]
    await until_consumed([first], deployed)
    first.stop()
    store.stop()

    states = await deployed.states()
    assert_states_follow(states, events)
    assert await deployed.touches() == expected_touches(events)
    await assert_newest_lists(deployed, states)
