"""A worker that is killed, or asked to stop, in the middle of its work: nothing lost, nothing folded twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from models.domain.feedback import Feedback
from tests.services.deployment import (
    Deployment,
    StoredUser,
    assert_newest_lists,
    assert_same_states,
    assert_states_follow,
    until_consumed,
)
from tests.services.streams import expected_touches, make_events, make_items
from tests.services.worker import STOP_SECONDS, WorkerProcess, until

EVENTS = 20_000

pytestmark = [pytest.mark.recovery, pytest.mark.integration]


def folded(worker: WorkerProcess) -> float:
    return worker.metric("streamrec_events_total", outcome="folded")


async def until_folded(worker: WorkerProcess, events: int) -> None:
    await until(lambda: folded(worker) >= events, f"{events} events are folded", pause_seconds=0.01)


async def until_items_are_encoded(deployed: Deployment, worker: WorkerProcess) -> None:
    items = make_items()
    await deployed.send(deployed.names.items, [(item["item_id"], item) for item in items])
    await until(
        lambda: worker.metric("streamrec_items_total", outcome="encoded") == len(items), "every item has its vector"
    )
    await until_consumed([worker], deployed)


def interactions(events: Sequence[Mapping[str, Any]]) -> set[str]:
    return {e["event_id"] for e in events if e["type"] not in ("search", "hide", "impression", "forget")}


async def told_interactions(deployed: Deployment) -> Counter[str]:
    """Event id -> records on `feedback`."""
    return Counter(record.event_id for record in await deployed.feedback() if isinstance(record, Feedback))


async def test_two_kills_in_twenty_thousand_events_lose_nothing_and_fold_nothing_twice(
    deployed: Deployment, uninterrupted: dict[str, StoredUser]
) -> None:
    events = make_events(EVENTS)
    worker = await deployed.started()
    await until_items_are_encoded(deployed, worker)
    await deployed.send_events(events)
    for wanted in (EVENTS // 5, EVENTS // 4):
        await until_folded(worker, wanted)
        assert folded(worker) < EVENTS, "the kill came after the work was done"
        worker.kill()
        worker.start()
        await worker.until_ready()
    await until_consumed([worker], deployed)
    replayed = worker.metric("streamrec_events_total", outcome="replayed")
    worker.stop()

    states = await deployed.states()
    assert_same_states(states, uninterrupted)
    assert_states_follow(states, events)
    assert await deployed.touches() == expected_touches(events)
    await assert_newest_lists(deployed, states)
    told = await told_interactions(deployed)
    assert told.keys() == interactions(events), "a crash may repeat feedback, and loses none"
    repeated = told.total() - len(told)
    print(f"after the second kill {replayed:.0f} events were delivered again and recognised, {repeated} told twice")


async def test_a_stop_in_the_middle_takes_five_seconds_at_most_and_the_next_start_replays_nothing(
    deployed: Deployment,
) -> None:
    events = make_events(10_000)
    worker = await deployed.started()
    await deployed.send_events(events)
    await until_folded(worker, 2_000)
    assert folded(worker) < 9_000, "the stop came after the work was done"
    took = worker.stop()

    worker.start()
    await worker.until_ready()
    await until_consumed([worker], deployed)
    assert worker.metric("streamrec_events_total", outcome="replayed") == 0
    assert 0 < folded(worker) < 8_000
    worker.stop()
    states = await deployed.states()
    assert_states_follow(states, events)
    assert await deployed.touches() == expected_touches(events)
    await assert_newest_lists(deployed, states)
    told = await told_interactions(deployed)
    assert told.keys() == interactions(events)
    assert told.total() == len(told), "an orderly stop repeats nothing"
    print(f"stopped in {took:.2f} of {STOP_SECONDS:g} s")
