"""A deployment on real Kafka for each test, and the states of an uninterrupted run to compare with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.services.deployment import Deployment, StoredUser, deployment, make_bundle, until_consumed
from tests.services.kafka import KafkaBroker
from tests.services.streams import make_events, make_items

EVENTS = 20_000


@pytest.fixture(scope="session")
def worker_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("worker-bundle"))


@pytest.fixture
async def deployed(
    kafka: KafkaBroker, topic_prefix: str, tmp_path: Path, worker_bundle: Path
) -> AsyncIterator[Deployment]:
    async with deployment(kafka, topic_prefix, tmp_path, worker_bundle) as found:
        yield found


@pytest.fixture(scope="session")
def uninterrupted(
    kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory, worker_bundle: Path
) -> dict[str, StoredUser]:
    """Final states after `make_events(EVENTS)` over `make_items()`, by one worker that nothing disturbed."""

    async def play() -> dict[str, StoredUser]:
        folder = tmp_path_factory.mktemp("uninterrupted")
        async with deployment(kafka, "uninterrupted", folder, worker_bundle) as deployed:
            await send_items(deployed)
            worker = await deployed.started()
            await until_consumed([worker], deployed)
            await deployed.send_events(make_events(EVENTS))
            await until_consumed([worker], deployed)
            worker.stop()
            return await deployed.states()

    # In a thread: the event loops of the tests are pytest's.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, play()).result()


async def send_items(deployed: Deployment) -> None:
    await deployed.send(deployed.names.items, [(item["item_id"], item) for item in make_items()])
