"""Work that waits for a network, in one thread that the end of the process does not wait for. Knows no network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Background:
    """Runs functions one after the other. The thread is made at the first call and stays.

    One thread for all of them: glibc may give each new thread an arena of its own, which keeps what was freed in it.

    Args:
        first: what the thread does before anything else.
    """

    def __init__(self, name: str, first: Callable[[], None] = lambda: None) -> None:
        self._name, self._first = name, first
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def tell(deliver: Callable[..., None], what: object) -> None:
            if not answer.done():  # else whoever asked was cancelled
                deliver(what)

        def work() -> None:
            deliver: Callable[..., None]
            what: object
            try:
                deliver, what = answer.set_result, function()
            except Exception as error:
                deliver, what = answer.set_exception, error
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(tell, deliver, what)

        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._work.put(work)
        return await answer

    def _serve(self) -> None:
        self._first()
        while True:
            self._work.get()()
