"""Peers that count: one event after the other, asked before it, told after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from tests.benchmarks.quality.protocol import BLOCK_ROWS, Part
from tests.benchmarks.quality.stream import F32, I64, Stream


class Counter(Protocol):
    def observe(self, stream: Stream, position: int) -> None:
        """Take in one event."""
        ...

    def score(self, history: I64, now_ms: int) -> F32:
        """float32[N] for a user who touched these items, oldest first."""
        ...


def streamed(part: Part, counter: Counter) -> Iterator[F32]:
    """Rows for `part.scored`: counts up to `fitted`, and under p2 on from there."""
    stream = part.stream
    for k in range(part.fitted):
        counter.observe(stream, k)
    asked = np.zeros(len(stream), bool)
    asked[part.scored] = True
    rows: list[F32] = []
    for k in range(part.fitted, part.stop):
        if asked[k]:
            rows.append(counter.score(part.history(k), int(stream.times_ms[k])))
            if len(rows) == BLOCK_ROWS:
                yield np.stack(rows)
                rows = []
        if part.learns:
            counter.observe(stream, k)
    if rows:
        yield np.stack(rows)
