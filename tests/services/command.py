"""The command `streamrec` as its users run it: in processes of its own, configured by the environment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "streams.cli.main"]
# Generous: a busy two-core machine compiles numba's passes in the first worker.
DEADLINE_SECONDS = 120.0


def wait_for(condition: Callable[[], Any], what: str, deadline_seconds: float = DEADLINE_SECONDS) -> Any:
    """The condition's first true answer. Raises: AssertionError after the deadline."""
    deadline = time.monotonic() + deadline_seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {deadline_seconds:g} s: {what}")


class Process:
    """A command that goes on running; `log` holds what it said."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        """True. Raises: AssertionError with what it said when it has ended."""
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said()[-3000:]}"
        return True

    def stop(self, number: signal.Signals = signal.SIGTERM, deadline_seconds: float = 30.0) -> tuple[int, float]:
        """Returns: the exit code, and the seconds it took to end."""
        started = time.monotonic()
        self.process.send_signal(number)
        try:
            code = self.process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        return code, time.monotonic() - started

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Command:
    """Runs `streamrec` with the same settings each time."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMREC_")}
        self.environment |= {f"STREAMREC_{name.upper()}": value for name, value in settings.items()}

    def run(self, *arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run to the end; `code` is the exit code it must have (None = any)."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        if code is not None:
            assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def lines(self, *arguments: str | Path) -> list[Any]:
        """What a command prints as JSON, a value a line."""
        return [json.loads(line) for line in self.run(*arguments).stdout.splitlines()]

    @contextmanager
    def started(self, *arguments: str) -> Iterator[Process]:
        number = len(list(self.directory.glob("process-*.log")))
        process = Process(list(arguments), self.environment, self.directory / f"process-{number}.log")
        try:
            yield process
        finally:
            process.end()

    @contextmanager
    def worker(self) -> Iterator[Process]:
        """A worker that takes events: `/readyz` says so. Its port stands in its log."""
        with self.started("worker") as process:
            wait_for(lambda: process.alive() and _ready(process), f"a worker that is ready\n{process.said()}")
            yield process


def _ready(process: Process) -> bool:
    found = re.search(r"url=(http://\S+)", process.said())
    if found is None:
        return False
    try:
        with urllib.request.urlopen(found[1] + "/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
