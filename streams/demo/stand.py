"""A deployment on this machine for the time of a run: embedded broker, topics, a worker process with an embedded index.

Owns the processes and what is asked of the worker over HTTP; what is published and measured is the caller's.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from streams.demo.data import DemoError
from streams.kafka.admin import create_topics
from streams.kafka.connection import KafkaConnection
from streams.kafka.embedded_broker import BrokerProcess, EmbeddedBroker, free_port
from streams.settings import ENV_PREFIX
from streams.topics import TopicNames, topic_specs

ROOT = Path(__file__).resolve().parents[2]
# Compiling the pipeline and loading the encoders takes 10-20 s the first time on two cores, and took more than 120 s
# beside two other jobs; a worker that ends is noticed at once.
READY_DEADLINE_SECONDS = 300.0
# 1,682 titles are encoded in 10 s on two cores.
CATALOGUE_DEADLINE_SECONDS = 180.0
# A worker ends within 5 s of SIGTERM.
STOP_DEADLINE_SECONDS = 8.0
POLL_SECONDS = 0.2
# Vectors are counted when they are computed; the worker promises them in its lists within a second.
SETTLE_SECONDS = 1.0

_SAMPLE = re.compile(r"^(streamrec_\w+)(?:\{(.*)\})? ([^ ]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Samples:
    """What `/metrics` said at one moment."""

    def __init__(self, text: str) -> None:
        self._samples = [
            (name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in _SAMPLE.findall(text)
        ]

    def total(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels; 0 where there is none."""
        return sum(value for each, found, value in self._samples if each == name and labels.items() <= found.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples of a metric by one of its labels, summed over the others."""
        out: dict[str, float] = {}
        for each, found, value in self._samples:
            if each == name and label in found:
                out[found[label]] = out.get(found[label], 0.0) + value
        return out


class Stand:
    """Broker and worker from `with` to its end, whatever ends it.

    Args:
        run_dir: a directory of this run: index, logs.
        settings: the worker's settings by name, over the stand's own.
        broker: one that is shared with other stands; ended with this one all the same.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: Mapping[str, str],
        *,
        partitions: int = 1,
        topic_prefix: str = "",
        broker: BrokerProcess | None = None,
    ) -> None:
        self.run_dir, self.partitions = run_dir.absolute(), partitions
        self.names = TopicNames(topic_prefix)
        self.broker = broker or EmbeddedBroker(self.run_dir / "broker")
        # The embedded broker keeps every record in memory, and nobody trains here: 20 KB an event for nothing.
        quiet = {"feedback": "false"}
        self.settings = {"metrics_host": "127.0.0.1", "metrics_port": str(free_port()), **quiet, **settings}
        self.log_path = self.run_dir / "worker.log"
        self._worker: subprocess.Popen[bytes] | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def connection(self) -> KafkaConnection:
        return KafkaConnection(bootstrap_servers=self.broker.bootstrap_servers)

    @property
    def metrics_url(self) -> str:
        host = self.settings["metrics_host"].replace("0.0.0.0", "127.0.0.1")
        return f"http://{host}:{self.settings['metrics_port']}"

    @property
    def worker_pid(self) -> int:
        """Raises: DemoError when no worker runs."""
        self.check_worker()
        assert self._worker is not None
        return self._worker.pid

    async def open(self) -> None:
        """Start the broker and make the topics, before any other client asks about them and so makes them.

        Raises: BrokerStartError, TopicError.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.broker.start()
        await create_topics(self.connection, topic_specs(self.names, partitions=self.partitions))

    def start_worker(self) -> None:
        """Start the process; it outlives Ctrl-C, which reaches us first, so that it is ended in order."""
        # Nothing of the user's own deployment may be met: neither his environment nor a streamrec.toml where he stands.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        settings = {
            **self.settings,
            "kafka_bootstrap_servers": self.broker.bootstrap_servers,
            "topic_prefix": self.names.prefix,
            "data_dir": str(self.run_dir / "data"),
        }
        environment |= {f"{ENV_PREFIX}{name.upper()}": value for name, value in settings.items()}
        with self.log_path.open("ab") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "streams.cli.main", "worker"],
                cwd=self.run_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        atexit.register(self.close)

    def check_worker(self) -> None:
        """Raises: DemoError when the worker is not running, with what it said last."""
        status = None if self._worker is None else self._worker.poll()
        if self._worker is None or status is not None:
            raise DemoError(f"the worker ended with status {status}: {self._last_words()} (all of it: {self.log_path})")

    async def ready(self) -> None:
        """Returns when the worker takes events. Raises: DemoError when it ends or does not get that far."""
        try:
            async with asyncio.timeout(READY_DEADLINE_SECONDS):
                while not await self._answers_ready():
                    self.check_worker()
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise DemoError(
                f"the worker was not ready after {READY_DEADLINE_SECONDS:.0f} s, see {self.log_path}"
            ) from error

    async def items_encoded(self) -> int:
        return int((await self.samples()).total("streamrec_items_total", outcome="encoded"))

    async def samples(self) -> Samples:
        """The worker's metrics now. Raises: DemoError when it does not answer."""
        try:
            async with self._session().get(f"{self.metrics_url}/metrics") as answer:
                return Samples(await answer.text())
        except (aiohttp.ClientError, TimeoutError) as error:
            self.check_worker()
            raise DemoError(f"the worker does not answer at {self.metrics_url}: {error!r}") from error

    async def _answers_ready(self) -> bool:
        try:
            async with self._session().get(f"{self.metrics_url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0))
        return self._http

    def _last_words(self) -> str:
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "no log"
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")

    def stop_worker(self) -> None:
        """SIGTERM, and SIGKILL when that was not enough."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                worker.wait(STOP_DEADLINE_SECONDS)
        if worker.poll() is None:
            worker.kill()
        worker.wait()

    def close(self) -> None:
        """End both processes, the worker first. Blocks, so that a second Ctrl-C cannot leave one behind."""
        atexit.unregister(self.close)
        try:
            self.stop_worker()
        finally:
            self.broker.stop()

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        await self.close_http()

    async def close_http(self) -> None:
        session, self._http = self._http, None
        if session is not None:
            await session.close()
