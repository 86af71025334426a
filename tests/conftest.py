"""Fixtures every level shares: two brokers, and a fresh topic prefix for each test.

A missing service skips by name on a developer's machine and is an error where REQUIRE_SERVICES=1 (CI).
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import pytest

from streams.kafka.embedded_broker import BrokerProcess
from tests.services import embedded as embedded_service
from tests.services import kafka as kafka_service


def pytest_configure() -> None:
    """A run that is asked to end (by `timeout`, by CI) still stops its brokers."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("asked to end", returncode=143))


def need_service(name: str, missing: str | None) -> None:
    """Skips the asking test by the service's name, or fails it where services are required."""
    if missing is None:
        return
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"service {name} is required (REQUIRE_SERVICES=1): {missing}")
    pytest.skip(f"service {name} is missing: {missing}")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_service.KafkaBroker]:
    """A real Apache Kafka broker, one for the whole run. A test that stops it takes `own_kafka`."""
    need_service("kafka", kafka_service.missing_tools())
    with kafka_service.KafkaBroker(tmp_path_factory.mktemp("kafka"), sasl=True) as broker:
        yield broker


@pytest.fixture
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_service.KafkaBroker]:
    """A real Apache Kafka broker of this test alone, which it may stop, kill and start again."""
    need_service("kafka", kafka_service.missing_tools())
    with kafka_service.KafkaBroker(tmp_path_factory.mktemp("own-kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def embedded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded_service.EmbeddedBroker]:
    """The in-memory broker of the demo, one for the whole run."""
    need_service("embedded_kafka", embedded_service.missing_tools())
    with embedded_service.EmbeddedBroker(tmp_path_factory.mktemp("embedded-kafka")) as broker:
        yield broker


@pytest.fixture(params=["kafka", "embedded_kafka"])
def broker(request: pytest.FixtureRequest) -> BrokerProcess:
    """Each of the two brokers in turn, for what must hold on both."""
    found: BrokerProcess = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def topic_prefix() -> str:
    """A prefix no other test uses, so that one broker serves the whole run."""
    return f"t{uuid.uuid4().hex[:10]}"
