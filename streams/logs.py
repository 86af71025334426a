"""How log lines look and which libraries may write them. It must not know what is logged, but keeps users' words out.

Log with fields, not sentences built from them: `log.info("chunk published", extra={"partition": 3, "events": 128})`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]

# Third parties, at DEBUG, write records, payloads and headers: never below WARNING, whatever our own level is.
NOISY = (
    "aiohttp",
    "aiokafka",
    "asyncio",
    "faust",
    "filelock",
    "grpc",
    "hpack",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "kafka",
    "mode",
    "numba",
    "qdrant_client",
    "urllib3",
)
# Fields that would carry what a user wrote; a line shows their length instead.
PRIVATE = frozenset({"body", "event", "item", "message_value", "payload", "query", "review", "search", "text", "value"})

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(level: str, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send every log line of the process to one stream (standard error), replacing what was configured before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`, private fields as their length."""
    fields: dict[str, Any] = {}
    for name, value in vars(record).items():
        if name in _STANDARD or name.startswith("_"):
            continue
        if name in PRIVATE:
            value = f"<{len(value)} long>" if isinstance(value, str | bytes) else f"<{type(value).__name__}>"
        fields[name] = value
    return fields


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII, so that no text can break a line or a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _stamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in fields_of(record).items() if name not in line})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger, message and fields, for people; line breaks only in a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f"  {name}={value}" for name, value in fields_of(record).items())
        head = f"{_stamp(record)} {record.levelname:<7} {record.name}  {record.getMessage()}{fields}"
        line = head.replace("\r", "\\r").replace("\n", "\\n")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
