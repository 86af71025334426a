"""What the topic `models` says to this worker, as it comes: the newest champion, and who waits for a newer one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from models.domain.releases import Release
from streams.metrics import Metrics
from streams.releases import ReleaseLog


class ReleaseFeed:
    """Applies the broadcast of `models`.

    Args:
        log: what was said so far.
    """

    def __init__(self, log: ReleaseLog, metrics: Metrics) -> None:
        self._log, self._metrics = log, metrics
        self._moved = asyncio.Condition()
        self.read_to_its_end: Callable[[], Awaitable[None]]
        """Returns when all is applied that is in the topic now; the reader's, once there is one."""

    @property
    def champion(self) -> Release | None:
        return self._log.champion

    async def apply(self, records: Sequence[Any]) -> None:
        malformed = self._log.malformed
        changed = self._log.read(records)
        self._metrics.count_malformed_releases(self._log.malformed - malformed)
        if changed:
            async with self._moved:
                self._moved.notify_all()

    async def other_than(self, *releases: Release | None) -> Release:
        """The champion, as soon as it is by none of these. It never goes back to a smaller sequence; where two writers
        used one number, the later one holds."""
        async with self._moved:
            while (champion := self.champion) is None or champion in releases:
                await self._moved.wait()
            return champion
