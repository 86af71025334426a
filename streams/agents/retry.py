"""One policy for services that are away: try again with growing pauses until a deadline, and say so meanwhile.

Owns the pauses and the flag that tells the watchdog "waiting, not stalled". Knows no service.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from models.domain.errors import RecommenderError

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 2.0
# An index that is restarted or moved is back within minutes; after five the worker ends and its supervisor decides.
DEADLINE_SECONDS = 300.0


class Retry:
    """Tries calls again that may succeed later. `waiting` is true while any call is between two attempts."""

    def __init__(self, on_retry: Callable[[str], None], deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._on_retry, self._deadline = on_retry, deadline_seconds
        self._waiting = 0

    @property
    def waiting(self) -> bool:
        return self._waiting > 0

    async def call(self, operation: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Raises: the last error when it does not say that it is `retryable`, or the deadline has passed."""
        until, pause = time.monotonic() + self._deadline, FIRST_PAUSE_SECONDS
        while True:
            try:
                return await attempt()
            except RecommenderError as error:
                if not getattr(error, "retryable", False) or time.monotonic() + pause > until:
                    raise
                self._on_retry(operation)
                log.warning("%s failed, next attempt in %.2f s: %s", operation, pause, error)
                self._waiting += 1
                try:
                    await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                finally:
                    self._waiting -= 1
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
