"""A real Apache Kafka broker for the tests, run by `deploy/kafka/start.sh`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from streams.kafka.embedded_broker import BrokerProcess, BrokerStartError, free_port

START_SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "start.sh"
SASL_USER, SASL_PASSWORD = "streamrec", "streamrec-secret"
# 43 MB over a slow line; a broken repository must not hang the suite.
FETCH_DEADLINE_SECONDS = 300.0


class KafkaBroker(BrokerProcess):
    """Apache Kafka in KRaft mode. Its data survives `restart()`; with `sasl=True` a second port asks for SASL/PLAIN."""

    def __init__(self, data_dir: Path, port: int = 0, *, sasl: bool = False) -> None:
        super().__init__(data_dir, port)
        self.controller_port = free_port()
        self.sasl_port = free_port() if sasl else None

    @property
    def sasl_bootstrap_servers(self) -> str:
        if self.sasl_port is None:
            raise ValueError("this broker was made without SASL")
        return f"127.0.0.1:{self.sasl_port}"

    def command(self) -> list[str]:
        ports = [self.port, self.controller_port, *([self.sasl_port] if self.sasl_port else [])]
        return [str(START_SCRIPT), str(self.data_dir / "kafka"), *map(str, ports)]


def missing_tools() -> str | None:
    """Why a real broker cannot run here, or None. Brings the jars on the first call, so that a start is quick."""
    missing = [tool for tool in ("java", "mvn", "bash") if shutil.which(tool) is None]
    if missing:
        return f"Apache Kafka needs {' and '.join(missing)} on the PATH"
    try:
        fetched = subprocess.run(
            [str(START_SCRIPT), "--fetch"], capture_output=True, text=True, timeout=FETCH_DEADLINE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"Maven did not bring the Kafka jars in {FETCH_DEADLINE_SECONDS:.0f} s"
    if fetched.returncode != 0:
        return f"Maven could not bring the Kafka jars: {(fetched.stdout + fetched.stderr)[-500:]}"
    return None


__all__ = ["SASL_PASSWORD", "SASL_USER", "BrokerStartError", "KafkaBroker", "missing_tools"]
