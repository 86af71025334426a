"""The stream's clock: the latest event time seen, carried on by wall time only while the stream is live."""

from __future__ import annotations

from collections.abc import Callable

# A stream whose newest event is this close to the machine's time is live; a replay of last year never is.
LIVE_WITHIN_MS = 300_000


class StreamClock:
    """
    Args:
        wall_ms: the machine's time, milliseconds since the epoch.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self.wall_ms = wall_ms
        self._latest_ms = 0

    def observe(self, event_time_ms: int) -> None:
        self._latest_ms = max(self._latest_ms, event_time_ms)

    def now_ms(self) -> int:
        wall = self.wall_ms()
        if self._latest_ms <= wall <= self._latest_ms + LIVE_WITHIN_MS or self._latest_ms == 0:
            return wall
        return self._latest_ms
