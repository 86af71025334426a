"""A deployment on this machine for the time of a run: embedded broker, topics, a worker process with an embedded index,
and a trainer where one is asked for.

Owns the processes and what is asked of them over HTTP; what is published and measured is the caller's.
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
from contextlib import ExitStack, suppress
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
# Compiling the pipeline and loading the encoders takes 10-20 s the first time on two cores.
READY_DEADLINE_SECONDS = 120.0
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

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The samples of a metric that have these labels by one of the others, summed over the rest."""
        out: dict[str, float] = {}
        for each, found, value in self._samples:
            if each == name and label in found and labels.items() <= found.items():
                out[found[label]] = out.get(found[label], 0.0) + value
        return out


class Child:
    """A process of `streamrec`. It outlives Ctrl-C, which reaches us first, so that it is ended in order.

    Args:
        command: of `streamrec`; names the log in `run_dir` too.
        environment: settings, by the names that the command reads.
    """

    def __init__(self, command: str, run_dir: Path, environment: Mapping[str, str]) -> None:
        self.command, self.log_path = command, log_path(run_dir, command)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streams.cli.main", command],
                cwd=run_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raises: DemoError when it has ended, with what it said last."""
        status = self._process.poll()
        if status is not None:
            raise DemoError(
                f"the {self.command} ended with status {status}: {self._last_words()} (all of it: {self.log_path})"
            )

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that was not enough."""
        process = self._process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_DEADLINE_SECONDS)
        if process.poll() is None:
            process.kill()
        process.wait()

    def _last_words(self) -> str:
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "no log"
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")


def log_path(run_dir: Path, command: str) -> Path:
    return run_dir / f"{command}.log"


class Stand:
    """Broker, worker and trainer from `with` to its end, whatever ends it.

    Args:
        run_dir: a directory of this run: index, logs.
        settings: worker's and trainer's by name, over the stand's own.
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
        # The embedded broker keeps every record in memory: where nobody trains, 20 KB an event for nothing.
        quiet = {"feedback": "false"}
        ports = {name: str(free_port()) for name in ("metrics_port", "trainer_metrics_port")}
        self.settings = {"metrics_host": "127.0.0.1", **ports, **quiet, **settings}
        self.log_path = log_path(self.run_dir, "worker")
        self._worker: Child | None = None
        self._trainer: Child | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def connection(self) -> KafkaConnection:
        return KafkaConnection(bootstrap_servers=self.broker.bootstrap_servers)

    @property
    def metrics_url(self) -> str:
        return self._url("metrics_port")

    @property
    def learns(self) -> bool:
        """Whether a trainer was started."""
        return self._trainer is not None

    @property
    def worker_pid(self) -> int:
        """Raises: DemoError when no worker runs."""
        self.check()
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
        self._worker = self._started("worker")

    def start_trainer(self) -> None:
        """Needs torch; reads all feedback there is, so that it may come at any time."""
        self._trainer = self._started("trainer")

    def _started(self, command: str) -> Child:
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
        child = Child(command, self.run_dir, environment)
        atexit.register(self.close)
        return child

    def check(self) -> None:
        """Raises: DemoError when the worker, or the trainer that was started, is not running."""
        if self._worker is None:
            raise DemoError("no worker was started")
        self._worker.check()
        if self._trainer is not None:
            self._trainer.check()

    async def ready(self) -> None:
        """Returns when the worker takes events. Raises: DemoError when it ends or does not get that far."""
        await self._ready("worker", "metrics_port")

    async def trainer_ready(self) -> None:
        """Returns when the trainer takes records. Raises: DemoError when it ends or does not get that far."""
        await self._ready("trainer", "trainer_metrics_port")

    async def _ready(self, command: str, port: str) -> None:
        try:
            async with asyncio.timeout(READY_DEADLINE_SECONDS):
                while not await self._answers_ready(port):
                    self.check()
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise DemoError(
                f"the {command} was not ready after {READY_DEADLINE_SECONDS:.0f} s,"
                f" see {log_path(self.run_dir, command)}"
            ) from error

    async def items_encoded(self) -> int:
        return int((await self.samples()).total("streamrec_items_total", outcome="encoded"))

    async def samples(self) -> Samples:
        """The worker's metrics now. Raises: DemoError when it does not answer."""
        try:
            return await self._samples("metrics_port")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.check()
            raise DemoError(f"the worker does not answer at {self.metrics_url}: {error!r}") from error

    async def trainer_samples(self) -> Samples:
        """The trainer's metrics now; nothing while it is starting, or where there is none."""
        try:
            return await self._samples("trainer_metrics_port") if self.learns else Samples("")
        except (aiohttp.ClientError, TimeoutError):
            return Samples("")

    async def _samples(self, port: str) -> Samples:
        async with self._session().get(f"{self._url(port)}/metrics") as answer:
            return Samples(await answer.text())

    def _url(self, port: str) -> str:
        host = self.settings["metrics_host"].replace("0.0.0.0", "127.0.0.1")
        return f"http://{host}:{self.settings[port]}"

    async def _answers_ready(self, port: str) -> bool:
        try:
            async with self._session().get(f"{self._url(port)}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0))
        return self._http

    def stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def close(self) -> None:
        """End all processes, the broker last. Blocks, so that a second Ctrl-C cannot leave one behind."""
        atexit.unregister(self.close)
        trainer, self._trainer = self._trainer, None
        with ExitStack() as ending:  # in reverse order, and all of it whatever one of them raises
            ending.callback(self.broker.stop)
            ending.callback(self.stop_worker)
            if trainer is not None:
                ending.callback(trainer.stop)

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
