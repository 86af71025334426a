"""A trainer beside a worker, on a real broker: it learns from what the worker writes, which serves what it found.

Needs torch; what is learned, and by which rule it is released, is tested in `tests/model`.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from models.domain.feedback import Feedback
from models.encoders.manifest import read_manifest
from models.learning.replay_buffer import ReplayBuffer
from streams.cli.learning import BundleLearner
from streams.registry import Registry
from streams.releases import read_releases
from tests.services.deployment import Deployment, until_consumed
from tests.services.streams import START_MS, make_events, make_items
from tests.services.versions import Models, learned
from tests.services.worker import TrainerProcess, WorkerProcess, until

pytestmark = [pytest.mark.train, pytest.mark.integration]

ITEMS = 60
IDS = [item["item_id"] for item in make_items(ITEMS)]
# Small rounds, so that a test sees several of them.
ROUND = {"trainer_round_records": "100", "trainer_round_seconds": "3600"}


def series(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Views in time order: everybody goes through the catalogue from a place of his own, item after item."""
    rng = random.Random(first)
    users = 60
    started = {f"u{user}": user * 7 % ITEMS for user in range(users)}
    seen = dict.fromkeys(started, 0)
    events = []
    for number in range(first, first + count):
        user = rng.choice(sorted(started))
        item = (started[user] + seen[user]) % ITEMS
        seen[user] += 1
        events.append(
            {
                "type": "view",
                "event_id": f"e{number}",
                "user_id": user,
                "item_id": f"i{item}",
                "event_time_ms": START_MS + number * 1_000,
            }
        )
    return events


async def send_items(deployed: Deployment) -> None:
    await deployed.send(deployed.names.items, [(item["item_id"], item) for item in make_items(ITEMS)])


async def started(deployed: Deployment, name: str = "trainer", **settings: str) -> TrainerProcess:
    trainer = deployed.trainer(name, **{**ROUND, **settings})
    trainer.start()
    await trainer.until_ready()
    return trainer


def rounds(trainer: TrainerProcess) -> float:
    return trainer.metric("streamrec_trainer_round_seconds_count")


async def until_leads(trainer: TrainerProcess) -> None:
    await until(lambda: trainer.metric("streamrec_trainer_leads") == 1, f"{trainer.name} leads:\n{trainer.log_tail(5)}")


def buffered(deployed: Deployment, data_dir: Path | None = None) -> list[Feedback]:
    """What lies in a trainer's replay buffer, once the trainer has ended."""
    buffer = ReplayBuffer((data_dir or deployed.data_dir) / "trainer" / "replay")
    return [record for _, records in buffer.after(0) for record in records]


async def until_serves_another(worker: WorkerProcess, version: str) -> None:
    def another() -> bool:
        served = worker.metric("streamrec_model_info")
        return served == 1 and worker.metric("streamrec_model_info", version=version) == 0

    await until(another, f"{worker.name} serves another version than {version}:\n{worker.log_tail(5)}", seconds=300)


async def until_read(trainer: TrainerProcess, records: int) -> None:
    await until(
        lambda: trainer.metric("streamrec_trainer_records_total", outcome="taken") >= records,
        f"{trainer.name} has taken {records} records:\n{trainer.log_tail(5)}",
        seconds=120,
    )


async def test_a_worker_that_began_with_a_poor_model_serves_what_the_trainer_learned(
    deployed: Deployment, worker_bundle: Path, tmp_path: Path
) -> None:
    poor = learned(tmp_path / "poor", worker_bundle, IDS, seed=1)
    version = read_manifest(poor).version
    await send_items(deployed)
    worker = await deployed.started(bundle=str(poor))
    trainer = await started(deployed, bundle=str(poor))
    events = series(2_000)
    await deployed.send_events(events)

    await until_serves_another(worker, version)

    releases = await read_releases(deployed.connection, deployed.names.models)
    assert releases.champion is not None
    assert releases.champion.by == "trainer"
    assert releases.champion.action == "promote"
    assert "records" in releases.champion.reason
    registry = Registry(str(deployed.data_dir / "models"))
    manifest = registry.manifest(releases.champion.version)
    assert manifest.training is not None
    assert manifest.metrics["challenger_ndcg_at_10"] > manifest.metrics["served_ndcg_at_10"]
    assert trainer.metric("streamrec_trainer_decisions_total", decision="promote") >= 1
    await until_read(trainer, len(events))
    trainer.stop(seconds=30)
    worker.stop()
    ids = [record.event_id for record in buffered(deployed)]
    assert sorted(ids) == sorted(event["event_id"] for event in events)


async def test_while_a_champion_is_on_trial_a_better_challenger_waits(
    deployed: Deployment, worker_bundle: Path, tmp_path: Path
) -> None:
    poor = learned(tmp_path / "poor", worker_bundle, IDS, seed=1)
    await Models(deployed).promote(poor)
    await send_items(deployed)
    worker = await deployed.started()
    trainer = await started(deployed, rollout="canary", rollout_seconds="3600")
    await deployed.send_events(series(2_000))
    await until(
        lambda: trainer.metric("streamrec_trainer_decisions_total", decision="promote") >= 1,
        f"a challenger is better:\n{trainer.log_tail(5)}",
        seconds=300,
    )
    await until(lambda: "still on trial" in trainer.log_path.read_text(), "it is not released")
    champion = (await read_releases(deployed.connection, deployed.names.models)).champion
    assert champion is not None
    assert (champion.sequence, champion.version) == (1, read_manifest(poor).version)
    trainer.stop(seconds=60)
    worker.stop()


async def test_a_trainer_killed_again_and_again_loses_no_record_and_publishes_nothing_by_halves(
    deployed: Deployment, worker_bundle: Path, tmp_path: Path
) -> None:
    poor = learned(tmp_path / "poor", worker_bundle, IDS, seed=1)
    await send_items(deployed)
    worker = await deployed.started(bundle=str(poor))
    trainer = await started(deployed, bundle=str(poor))
    rng = random.Random(0)
    events: list[dict[str, Any]] = []
    for number in range(4):
        events += series(500, first=number * 500)
        await deployed.send_events(events[-500:])
        await until_leads(trainer)
        before = rounds(trainer)
        await until(lambda before=before: rounds(trainer) > before, "a round", seconds=300)
        await asyncio.sleep(rng.random() * 2.0)  # where in a round the kill falls is drawn, not waited for
        trainer.kill()
        trainer.start()
        await trainer.until_ready()
    await until_leads(trainer)
    await until_consumed([worker], deployed)
    await until(lambda: trainer.metric("streamrec_trainer_lag_records") == 0, "the trainer has read everything")
    trainer.stop(seconds=60)
    worker.stop()

    ids = [record.event_id for record in buffered(deployed)]
    assert set(ids) == {event["event_id"] for event in events}
    registry = Registry(str(deployed.data_dir / "models"))
    versions = registry.versions()
    for version in versions:
        registry.fetch(version, tmp_path / "fetched", training=True)
    champion = (await read_releases(deployed.connection, deployed.names.models)).champion
    assert champion is None or champion.version in versions


async def test_a_second_trainer_stands_by_and_takes_over(deployed: Deployment, tmp_path: Path) -> None:
    await send_items(deployed)
    worker = await deployed.started()
    first = await started(deployed)
    await until_leads(first)
    second = await started(
        deployed, "second", data_dir=str(tmp_path / "second"), registry=str(deployed.data_dir / "models")
    )
    events = make_events(300, items=ITEMS)
    await deployed.send_events(events[:150])
    await until_consumed([worker], deployed)
    await until_read(first, 50)
    assert second.metric("streamrec_trainer_records_total", outcome="taken") == 0
    assert second.metric("streamrec_trainer_leads") == 0

    first.kill()
    await until_leads(second)
    await deployed.send_events(events[150:])

    await until_consumed([worker], deployed)
    await until_read(second, 50)
    worker.stop()
    second.stop(seconds=30)


async def test_what_is_no_feedback_is_counted_and_passed_over(deployed: Deployment) -> None:
    await send_items(deployed)
    worker = await deployed.started()
    trainer = await started(deployed)
    await deployed.send(deployed.names.feedback, [("u1", b"nonsense"), ("u2", b""), ("u3", b"\x93\x01\x02\x03")])
    await deployed.send_events(series(40))
    await until_consumed([worker], deployed)

    await until(lambda: trainer.metric("streamrec_trainer_records_total", outcome="bad") == 3, "three bad records")
    await until_read(trainer, 40)
    worker.stop()
    trainer.stop(seconds=30)


async def test_a_forgotten_user_leaves_the_replay_buffer(deployed: Deployment) -> None:
    await send_items(deployed)
    worker = await deployed.started()
    trainer = await started(deployed)
    events = series(200)
    await deployed.send_events(events)
    gone = events[0]["user_id"]
    forget = {"type": "forget", "event_id": "f1", "user_id": gone, "event_time_ms": events[-1]["event_time_ms"] + 1}
    await deployed.send_events([forget])
    await until_consumed([worker], deployed)
    kept = sum(event["user_id"] != gone for event in events)
    await until_read(trainer, 200)
    await until(lambda: trainer.metric("streamrec_trainer_lag_records") == 0, "everything is read")
    worker.stop()
    trainer.stop(seconds=30)

    users = [record.user_id for record in buffered(deployed)]
    assert gone not in users
    assert len(users) == kept


async def test_a_release_of_an_operator_becomes_the_trainer_s_champion(
    deployed: Deployment, worker_bundle: Path, tmp_path: Path
) -> None:
    await send_items(deployed)
    trainer = await started(deployed)
    other = learned(tmp_path / "other", worker_bundle, IDS, seed=2)

    version = await Models(deployed).promote(other)

    await until(
        lambda: trainer.metric("streamrec_trainer_champion_info", version=version) == 1, "the operator's is champion"
    )
    trainer.stop(seconds=30)


async def test_two_trainers_cannot_share_a_directory(deployed: Deployment) -> None:
    await send_items(deployed)
    first = await started(deployed)
    second = deployed.trainer("second", **ROUND)
    second.start()

    await until(lambda: second.status is not None, "the second one ends")

    assert second.status == 2
    assert "another trainer works in" in second.log_tail()
    first.stop(seconds=30)


def test_the_learner_keeps_to_its_port() -> None:
    from streams.learning_port import OnlineLearner

    names = {name for name in vars(OnlineLearner) if not name.startswith("_")}
    assert names <= set(dir(BundleLearner))
