"""Workers and stores as the real processes that an operator starts: watched over HTTP, asked to stop, killed.

Owns processes and their logs; what they do is the product's affair. Whoever starts one ends it with `end`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from streams.kafka.embedded_broker import free_port

ROOT = Path(__file__).resolve().parents[2]
# A cold start compiles for some seconds, and five other suites may share the two cores.
START_SECONDS = 120.0
# What a supervisor gives: the promise of a clean stop.
STOP_SECONDS = 5.0


async def until(
    condition: Callable[[], object], what: str, *, seconds: float = 60.0, pause_seconds: float = 0.05
) -> float:
    """Wait for a condition. Returns: the seconds it took. Raises: AssertionError at the deadline, naming `what`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(pause_seconds)
    return time.monotonic() - started


class ServiceProcess:
    """One `streamrec` command as a child process, which may be started again after it ended."""

    def __init__(self, command: list[str], folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self.command, self.name = command, name
        self.log_path = folder / f"{name}.log"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("STREAMREC_")}
        self.environment = {**kept, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def status(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams.cli.main", *self.command],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when it is gone."""
        assert self.process is not None, f"{self.name} was not started"
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = STOP_SECONDS) -> float:
        """SIGTERM. Returns: the seconds the stop took. Raises: AssertionError without a clean end in time."""
        assert self.process is not None, f"{self.name} was not started"
        assert self.running, f"{self.name} ended before it was asked to:\n{self.log_tail()}"
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {seconds:g} s:\n{self.log_tail()}") from None
        took = time.monotonic() - started
        assert status == 0, f"{self.name} stopped with status {status}:\n{self.log_tail()}"
        return took

    def end(self) -> None:
        """Whatever happened before: it does not run afterwards."""
        if self.running:
            self.kill()

    def log_tail(self, lines: int = 30) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class StoreProcess(ServiceProcess):
    """`streamrec store`: the embedded index of a data directory behind a Unix socket."""

    def __init__(self, folder: Path, data_dir: Path, socket: Path) -> None:
        super().__init__(["store", "--socket", str(socket)], folder, "store", {"STREAMREC_DATA_DIR": str(data_dir)})
        self.socket = socket

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"

    async def until_ready(self) -> None:
        said = self.log_path.stat().st_size if self.log_path.exists() else 0

        def serves() -> bool:
            assert self.running, f"the store ended:\n{self.log_tail()}"
            return b"serving" in self.log_path.read_bytes()[said:]

        await until(serves, "the store serves", seconds=START_SECONDS)


class WorkerProcess(ServiceProcess):
    """`streamrec worker`, with its metrics and probes."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self.port = free_port()
        super().__init__(["worker"], folder, name, {**environment, "STREAMREC_METRICS_PORT": str(self.port)})

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5.0) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def is_ready(self) -> bool:
        assert self.running, f"{self.name} ended with status {self.status}:\n{self.log_tail()}"
        return self.get("/readyz")[0] == 200

    async def until_ready(self, seconds: float = START_SECONDS) -> float:
        return await until(self.is_ready, f"{self.name} is ready:\n{self.log_tail()}", seconds=seconds)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of that full name whose labels include `labels`; 0 when nobody answers."""
        total = 0.0
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total


class TrainerProcess(WorkerProcess):
    """`streamrec trainer`, with its metrics and probes."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str]) -> None:
        super().__init__(folder, name, environment)
        self.command = ["trainer"]
        self.environment |= {"STREAMREC_TRAINER_METRICS_PORT": str(self.port)}
