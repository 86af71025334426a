"""The topic `events` deleted and made anew: its offsets start again at 0 and must not look like a replay."""

from __future__ import annotations

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from streams.kafka.admin import topic_ids
from tests.services.deployment import Deployment, assert_states_follow, until_consumed
from tests.services.streams import expected_touches, make_events
from tests.services.worker import until

pytestmark = [pytest.mark.recovery, pytest.mark.integration]


async def make_anew(deployed: Deployment) -> None:
    """Delete `events` and create it again, as an operator would."""
    topic = deployed.names.events
    before = await topic_ids(deployed.connection, [topic])
    admin = AIOKafkaAdminClient(**deployed.connection.client_options("test-admin"))
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()
    await deployed.create_topics()
    assert await topic_ids(deployed.connection, [topic]) != before


async def test_events_of_a_topic_made_anew_all_count_whether_the_worker_ran_meanwhile_or_not(
    deployed: Deployment,
) -> None:
    old, while_stopped, while_running = (
        make_events(length, users=50, seed=seed, first=first)
        for length, seed, first in ((2_000, 1, 0), (1_000, 2, 10_000), (4_000, 3, 20_000))
    )
    for later, earlier in ((while_stopped, old), (while_running, while_stopped)):
        shift = earlier[-1]["event_time_ms"] - later[0]["event_time_ms"] + 1_000
        for event in later:
            event["event_time_ms"] += shift
    worker = await deployed.started()
    await deployed.send_events(old)
    await until_consumed([worker], deployed)
    worker.stop()

    await make_anew(deployed)
    await deployed.send_events(while_stopped)
    worker.start()
    await worker.until_ready()
    # Not by the committed offsets: right after a deletion those of the old topic may still be there.
    await until(
        lambda: worker.metric("streamrec_events_total") == len(while_stopped), "all of the second topic is read"
    )

    # Longer at once than the one before was: a position in the old topic is a valid one in the new topic too.
    await make_anew(deployed)
    await deployed.send_events(while_running)
    await until(lambda: not worker.running, "the worker ends, for its supervisor to start it again")
    assert worker.status == 1, worker.log_tail()
    # It looks now and then: whether it sees the new topic or the moment without one is chance.
    assert any(words in worker.log_tail() for words in ("made anew", f"{deployed.prefix}.events does not exist"))
    worker.start()
    await worker.until_ready()
    await until(lambda: worker.metric("streamrec_events_total") >= len(while_running), "all of the third topic is read")
    worker.stop()

    events = [*old, *while_stopped, *while_running]
    assert_states_follow(await deployed.states(), events)
    assert await deployed.touches() == expected_touches(events)
