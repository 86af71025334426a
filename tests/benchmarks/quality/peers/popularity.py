"""Decayed popularity: counts halved every so many events or hours, of all events or of first touches only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.benchmarks.quality.peers.streaming import streamed
from tests.benchmarks.quality.protocol import Part
from tests.benchmarks.quality.stream import F32, I64, Stream

HOUR_MS = 3_600_000.0
EVENTS = (5, 10, 20, 30, 50, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
HOURS = (0.25, 0.5, 1, 3, 6, 12, 24, 72, 168, 720, 8_760)


class DecayedCounts:
    """A touch counts 1 at its moment, half after one half-life; `unit` is "events" or "hours".

    In logarithms to the base 2, so that only the touched item is written: log2 sum 2^((age of the log at the touch) /
    half-life). `first_only` counts a user's first touch of an item only.
    """

    def __init__(self, size: int, half_life: float, unit: str, first_only: bool) -> None:
        self.logs = np.full(size, -np.inf)
        self.half_life, self.unit, self.first_only = half_life, unit, first_only
        self.events, self.since = 0, 0

    def _now(self, now_ms: int) -> float:
        age = self.events if self.unit == "events" else (now_ms - self.since) / HOUR_MS
        return age / self.half_life

    def observe(self, stream: Stream, position: int) -> None:
        if self.events == 0:
            self.since = int(stream.times_ms[position])
        self.events += 1
        if self.first_only and not stream.first[position]:
            return
        item = stream.items[position]
        self.logs[item] = np.logaddexp2(self.logs[item], self._now(int(stream.times_ms[position])))

    def score(self, history: I64, now_ms: int) -> F32:
        """log2 of the decayed count now; -1,000 where nothing is left of it."""
        return np.maximum(self.logs - self._now(now_ms), -1_000.0).astype(np.float32)


def popularity(part: Part, *, half_life: float, unit: str, first_only: bool) -> Iterator[F32]:
    return streamed(part, DecayedCounts(part.stream.catalogue_size, half_life, unit, first_only))


def grid(first_only: bool) -> list[dict[str, object]]:
    axes = [("events", each) for each in EVENTS] + [("hours", each) for each in HOURS]
    return [{"half_life": half, "unit": unit, "first_only": first_only} for unit, half in axes]
