"""A deployment of workers on real Kafka for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.services.deployment import Deployment, deployment, make_bundle
from tests.services.kafka import KafkaBroker


@pytest.fixture(scope="session")
def worker_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("worker-bundle"))


@pytest.fixture
async def deployed(
    kafka: KafkaBroker, topic_prefix: str, tmp_path: Path, worker_bundle: Path
) -> AsyncIterator[Deployment]:
    async with deployment(kafka, topic_prefix, tmp_path, worker_bundle) as found:
        yield found
