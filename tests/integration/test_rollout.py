"""A promoted version that is tried before it serves everybody: whom it serves meanwhile, and how a trial ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.domain.trial import is_drawn
from models.encoders.manifest import items_version, read_manifest
from tests.services.deployment import (
    Deployment,
    assert_newest_lists,
    assert_states_follow,
    until_consumed,
)
from tests.services.streams import expected_touches, make_events, make_items
from tests.services.versions import Models, learned, other_ranker, told_by
from tests.services.worker import WorkerProcess, until

pytestmark = pytest.mark.integration

ITEMS, USERS = 60, 80
IDS = [item["item_id"] for item in make_items(ITEMS)]
SHARE = 0.3


@pytest.fixture(scope="session")
def made(worker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two learned bundles with item vectors of their own, and another log-linear ranker."""
    folder = tmp_path_factory.mktemp("rollout")
    return {
        "ranker": other_ranker(folder / "ranker"),
        "learned": learned(folder / "learned", worker_bundle, IDS, seed=1, mark=1),
        "other": learned(folder / "other", worker_bundle, IDS, seed=2, mark=2),
    }


def version(bundle: Path) -> str:
    return read_manifest(bundle).version


async def started(deployed: Deployment, mode: str, *, share: float = SHARE, seconds: float = 3_600) -> WorkerProcess:
    await deployed.send(deployed.names.items, [(item["item_id"], item) for item in make_items(ITEMS)])
    worker = await deployed.started(rollout=mode, rollout_share=str(share), rollout_seconds=str(seconds))
    await until(lambda: worker.metric("streamrec_items_total", outcome="encoded") >= ITEMS, "the catalogue has vectors")
    return worker


async def until_tried(worker: WorkerProcess, wanted: Path, mode: str) -> None:
    await until(
        lambda: worker.metric("streamrec_trial_share", version=version(wanted), mode=mode) > 0,
        f"{version(wanted)} is on trial:\n{worker.log_tail(5)}",
    )


def serves(worker: WorkerProcess, bundle: Path) -> bool:
    assert worker.running, worker.log_tail()
    return worker.metric("streamrec_model_info", version=version(bundle)) == 1


async def newest_versions(deployed: Deployment) -> dict[str, str]:
    """User -> version that made his newest list; every list's scores are of one version's vectors and ranker."""
    found: dict[str, str] = {}
    for made in await deployed.lists():
        found[str(made.user_id)] = made.model_version
        if made.items and made.model_version.startswith("learned"):
            told = told_by(made)
            assert told.ranker == told.vectors, f"a list of mixed versions: {made}"
            assert len(told.ranker) == 1, f"a list of mixed versions: {made}"
    return found


async def test_a_canary_serves_its_share_of_the_users_and_a_rollback_takes_it_back(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models, names = Models(deployed), deployed.names
    worker = await started(deployed, "canary")
    # What a log-linear ranker learns it learns from all users: it has no trial.
    await models.promote(made["ranker"])
    await until(lambda: serves(worker, made["ranker"]), "the other ranker serves everybody")

    tried = await models.promote(made["learned"])
    await until_tried(worker, made["learned"], "canary")
    late = [{"item_id": f"late{n}", "title": f"A late violin story {n}"} for n in range(5)]
    await deployed.send(names.items, [(item["item_id"], item) for item in late])
    events = make_events(3_000, users=USERS, items=ITEMS)
    await deployed.send_events(events[:1_000])
    await until_consumed([worker], deployed)
    expected = {
        user: tried if is_drawn(user, tried, SHARE) else version(made["ranker"])
        for user in {str(event["user_id"]) for event in events[:1_000]}
    }
    assert len(set(expected.values())) == 2
    assert await newest_versions(deployed) == expected
    assert serves(worker, made["ranker"])
    assert worker.metric("streamrec_online_scored_events_total", model_version=tried, list="asked") > 0
    worker.stop()

    # In the middle of a trial a worker starts with the version before, and goes on with the trial.
    worker.start()
    await worker.until_ready()
    assert serves(worker, made["ranker"])
    await until_tried(worker, made["learned"], "canary")
    await deployed.send_events(events[1_000:2_000])
    await until_consumed([worker], deployed)
    users = {str(event["user_id"]) for event in events[1_000:2_000]}
    found = await newest_versions(deployed)
    assert {user: found[user] for user in users} == {
        user: tried if is_drawn(user, tried, SHARE) else version(made["ranker"]) for user in users
    }

    await models.log.roll_back(by="operator", reason="a test")
    await until(
        lambda: worker.metric("streamrec_trial_share", version=tried, mode="canary") == 0, "the trial has ended"
    )
    await until(lambda: worker.metric("streamrec_model_sequence") == 3, "the rollback is taken up")
    await deployed.send_events(events[2_000:])
    await until_consumed([worker], deployed)
    found = await newest_versions(deployed)
    users = {str(event["user_id"]) for event in events[2_000:]}
    assert {found[user] for user in users} == {version(made["ranker"])}
    worker.stop()
    states = await deployed.states()
    assert_states_follow(states, events)
    assert await deployed.touches() == expected_touches(events)
    await assert_newest_lists(deployed, states)


async def test_when_its_time_is_over_a_canary_serves_everybody_with_all_that_came_meanwhile(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models, names = Models(deployed), deployed.names
    worker = await started(deployed, "canary", seconds=8)
    await models.promote(made["learned"])
    await until_tried(worker, made["learned"], "canary")
    await deployed.send(names.items, [("late", {"item_id": "late", "title": "A late violin story"}), ("i5", None)])
    await until(lambda: serves(worker, made["learned"]), "it serves everybody")
    assert worker.metric("streamrec_trial_share", version=version(made["learned"]), mode="canary") == 0
    assert worker.metric("streamrec_model_switches_total", outcome="switched") == 1
    await deployed.send_events(make_events(300, users=USERS, items=ITEMS))
    await until_consumed([worker], deployed)
    assert set((await newest_versions(deployed)).values()) == {version(made["learned"])}
    # A worker that starts after the trial has no reason to look back.
    worker.stop()
    worker.start()
    await worker.until_ready()
    assert serves(worker, made["learned"])
    worker.stop()

    from streams.stores.embedded import EmbeddedStores

    stores = EmbeddedStores(deployed.data_dir)
    try:
        index = await stores.items(version=items_version(read_manifest(made["learned"])), dimension=65)
        assert {record.item_id async for record in index.scan()} == {*IDS, "late"} - {"i5"}
    finally:
        await stores.close()


async def test_a_shadow_is_scored_beside_the_served_version_and_publishes_nothing(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models = Models(deployed)
    worker = await started(deployed, "shadow", share=1.0)
    await models.promote(made["learned"])
    await until_tried(worker, made["learned"], "shadow")
    events = make_events(2_000, users=USERS, items=ITEMS)
    await deployed.send_events(events)
    await until_consumed([worker], deployed)

    def scored(bundle: Path) -> float:
        return worker.metric("streamrec_online_scored_events_total", model_version=version(bundle), list="shadow")

    assert scored(made["learned"]) == scored(deployed.bundle) > 100
    assert set((await newest_versions(deployed)).values()) == {version(deployed.bundle)}

    # A newer release ends the trial of this one and begins its own.
    await models.promote(made["other"])
    await until_tried(worker, made["other"], "shadow")
    assert worker.metric("streamrec_trial_share", version=version(made["learned"]), mode="shadow") == 0
    assert serves(worker, deployed.bundle)
    worker.stop()
    states = await deployed.states()
    assert_states_follow(states, events)
    assert await deployed.touches() == expected_touches(events)
    await assert_newest_lists(deployed, states)
