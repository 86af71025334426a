"""Log lines are one line each, readable by machines or people, and hold no user's words."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from streams.logs import LogFormat, configure_logging


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def written(log_format: LogFormat, level: str = "INFO") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    configure_logging(level, log_format, stream)
    return logging.getLogger("streams.test"), stream


def test_json_lines_carry_message_and_fields() -> None:
    log, stream = written("json")
    log.info("chunk %s", "published", extra={"partition": 3, "seconds": 0.5})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["level"], line["logger"]) == ("chunk published", "INFO", "streams.test")
    assert (line["partition"], line["seconds"]) == (3, 0.5)
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_users_words_become_their_length(log_format: LogFormat) -> None:
    log, stream = written(log_format)
    log.info("event refused", extra={"text": "my secret wish", "value": b"my secret wish", "query": ["my secret wish"]})
    assert "secret" not in stream.getvalue()
    assert "<14 long>" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_value_can_break_a_line(log_format: LogFormat) -> None:
    log, stream = written(log_format)
    log.info("topic\n%s", "a\r\nb", extra={"detail": "x\ny"})
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_exception_is_written_with_its_traceback(log_format: LogFormat) -> None:
    log, stream = written(log_format)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("stopped")
    assert "Traceback" in stream.getvalue()
    assert "ValueError: broken" in stream.getvalue()


def test_libraries_that_would_write_payloads_stay_quiet_even_at_debug() -> None:
    log, stream = written("text", "DEBUG")
    log.debug("ours")
    logging.getLogger("aiokafka.consumer.fetcher").debug("a record with a user's words")
    logging.getLogger("faust.agents").info("an event")
    logging.getLogger("faust.agents").warning("a warning")
    assert "ours" in stream.getvalue()
    assert "a warning" in stream.getvalue()
    assert "record" not in stream.getvalue()
    assert "an event" not in stream.getvalue()


def test_configuring_twice_writes_once() -> None:
    written("text")
    log, stream = written("text")
    log.info("once")
    assert stream.getvalue().count("once") == 1
