"""Work in forked children, some side by side: none inherits what another did, and this process stays as it is."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

Key = TypeVar("Key")
Work = Callable[[], dict[str, Any]]


def in_children(works: Mapping[Key, Work], most: int) -> Iterator[tuple[Key, dict[str, Any]]]:
    """What each work finds, as they end.

    Args:
        most: children at a time; they begin in the order given.
    Raises: RuntimeError when one fails; the others are ended.
    """
    waiting = list(works.items())
    running: dict[int, tuple[Key, int]] = {}
    """By the end of the pipe that is read: whose it is, and the child."""
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    key, work = waiting.pop(0)
                    reading, child = _fork(work)
                    running[reading] = key, child
                    selector.register(reading, selectors.EVENT_READ)
                for ready, _ in selector.select():
                    selector.unregister(ready.fd)
                    key, child = running.pop(ready.fd)
                    yield key, _answer(ready.fd, child)
        finally:
            for reading, (_, child) in running.items():
                os.close(reading)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _fork(work: Work) -> tuple[int, int]:
    """Returns: the pipe's end that its child's answer can be read from, and the child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as out:
                out.write(msgspec.json.encode(work()))
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
    os.close(writing)
    return reading, child


def _answer(reading: int, child: int) -> dict[str, Any]:
    with os.fdopen(reading, "rb") as answer:
        data = answer.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError(f"a child ended with status {status}")
    found: dict[str, Any] = msgspec.json.decode(data)
    return found
