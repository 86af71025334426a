"""Work that waits for a network, away from the event loop and from every pool of threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_background(function: Callable[[], T]) -> T:
    """Run what waits for a network in a thread that the end of the process does not wait for."""
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
        except BaseException as error:
            deliver, what = answer.set_exception, error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, deliver, what)

    threading.Thread(target=work, name="registry", daemon=True).start()
    return await answer
