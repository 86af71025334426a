"""The probes over real HTTP: ready only when every check passes, alive only while there is progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from models.domain.errors import SettingsError, StoreError
from streams.health import CHECK_TIMEOUT_SECONDS, HealthServer
from streams.metrics import Metrics


class World:
    """What the checks look at."""

    def __init__(self) -> None:
        self.store: str | None = "not connected"
        self.stalled: str | None = None
        self.store_raises = False
        self.store_hangs = False

    async def check_store(self) -> str | None:
        if self.store_raises:
            raise StoreError("connection refused")
        if self.store_hangs:
            await asyncio.Event().wait()
        return self.store

    async def check_bundle(self) -> str | None:
        return None


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def server(world: World) -> AsyncIterator[HealthServer]:
    server = HealthServer(
        Metrics(),
        host="127.0.0.1",
        port=0,
        readiness={"store": world.check_store, "bundle": world.check_bundle},
        liveness=lambda: world.stalled,
    )
    await server.start()
    yield server
    await server.stop()


async def get(server: HealthServer, path: str) -> tuple[int, str, str]:
    host, port = server.address
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}{path}") as response:
        return response.status, await response.text(), response.headers["Content-Type"]


async def test_metrics_are_served_as_prometheus_text(server: HealthServer) -> None:
    status, text, content_type = await get(server, "/metrics")
    assert status == 200
    assert "# TYPE streamrec_events_total counter" in text
    assert content_type.startswith("text/plain; version=")


async def test_readiness_says_what_is_missing_and_turns(server: HealthServer, world: World) -> None:
    status, text, _ = await get(server, "/readyz")
    assert status == 503
    assert text == '{"ready": false, "checks": {"store": "not connected", "bundle": "ok"}}'
    world.store = None
    assert (await get(server, "/readyz"))[:2] == (200, '{"ready": true, "checks": {"store": "ok", "bundle": "ok"}}')


async def test_a_check_that_raises_is_a_reason_not_a_crash(server: HealthServer, world: World) -> None:
    world.store_raises = True
    status, text, _ = await get(server, "/readyz")
    assert status == 503
    assert "StoreError: connection refused" in text


async def test_a_check_that_hangs_is_given_up_in_time_for_the_probe(server: HealthServer, world: World) -> None:
    world.store_hangs = True
    async with asyncio.timeout(CHECK_TIMEOUT_SECONDS + 5):
        status, text, _ = await get(server, "/readyz")
    assert status == 503
    assert "no answer within" in text


async def test_a_stalled_worker_is_not_alive(server: HealthServer, world: World) -> None:
    assert (await get(server, "/healthz"))[0] == 200
    world.stalled = "events/3 stands at 17 for 61 s"
    status, text, _ = await get(server, "/healthz")
    assert status == 503
    assert "events/3" in text


async def test_a_taken_port_is_an_error_that_names_the_setting(server: HealthServer) -> None:
    host, port = server.address
    second = HealthServer(Metrics(), host=host, port=port, readiness={}, liveness=lambda: None)
    with pytest.raises(SettingsError, match="metrics_port"):
        await second.start()


async def test_stopping_frees_the_port_and_may_be_repeated(server: HealthServer) -> None:
    host, port = server.address
    await server.stop()
    await server.stop()
    with pytest.raises(RuntimeError):
        _ = server.address
    second = HealthServer(Metrics(), host=host, port=port, readiness={}, liveness=lambda: None)
    await second.start()
    assert second.address == (host, port)
    await second.stop()
