"""The HTTP face of a worker: `/metrics`, `/healthz`, `/readyz`. It must not know what the checks look at.

Alive = the watchdog sees progress, else the process is to be restarted. Ready = every named check passes (topics caught
up, store answers, bundle loaded), else traffic and roll-outs wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from models.domain.errors import SettingsError
from streams.metric_base import MetricSet

Check = Callable[[], Awaitable[str | None]]
"""Returns None where all is well, else what is missing, for people."""

# Kubernetes gives a probe one second by default and calls it failed after that; a check that hangs must not hang it.
CHECK_TIMEOUT_SECONDS = 0.8

log = logging.getLogger(__name__)


class HealthServer:
    """Serves metrics and probes until stopped.

    Args:
        port: 0 = any free one; `address` tells which after `start`.
        readiness: name -> check; all are asked at once.
        liveness: None while the process makes progress, else why it does not; must not block.
    Raises: SettingsError from `start` when the address cannot be bound.
    """

    def __init__(
        self,
        metrics: MetricSet,
        *,
        host: str,
        port: int,
        readiness: Mapping[str, Check],
        liveness: Callable[[], str | None],
    ) -> None:
        self._metrics = metrics
        self._host = host
        self._port = port
        self._readiness = dict(readiness)
        self._liveness = liveness
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and the port really bound. Raises: RuntimeError before `start`."""
        if self._runner is None or not self._runner.addresses:
            raise RuntimeError("the health server is not started")
        host, port = self._runner.addresses[0][:2]
        return str(host), int(port)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/healthz", self._serve_liveness)
        app.router.add_get("/readyz", self._serve_readiness)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(
                f"`metrics_host`, `metrics_port`: cannot listen on {self._host}:{self._port}"
                f" ({error.strerror or error}); choose another port, or 0 for any free one"
            ) from error
        self._runner = runner
        host, port = self.address
        log.info("metrics and probes", extra={"url": f"http://{host}:{port}"})

    async def stop(self) -> None:
        """Stop listening and end open connections; safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _serve_liveness(self, request: web.Request) -> web.Response:
        problem = self._liveness()
        return web.json_response({"alive": problem is None, "problem": problem}, status=200 if problem is None else 503)

    async def _serve_readiness(self, request: web.Request) -> web.Response:
        problems = await asyncio.gather(*(_ask(check) for check in self._readiness.values()))
        checks = {name: problem or "ok" for name, problem in zip(self._readiness, problems, strict=True)}
        ready = not any(problems)
        return web.json_response({"ready": ready, "checks": checks}, status=200 if ready else 503)


async def _ask(check: Check) -> str | None:
    try:
        return await asyncio.wait_for(check(), CHECK_TIMEOUT_SECONDS)
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT_SECONDS:g} s"
    except Exception as error:  # whatever a service's client raises means that the service is not there
        return f"{type(error).__name__}: {error}"
