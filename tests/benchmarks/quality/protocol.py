"""The protocols as one object: which events are scored, what may be known before each, and how a place is counted.

Scored: events whose (user, item) pair never occurred before and whose item is in the catalogue. Candidates: the whole
catalogue but for what the user has any earlier event on. Place: 1 + items scored higher + half of the ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tests.benchmarks.quality.stream import F32, F64, I64, Stream

PROTOCOLS = ("p1", "p1-strict", "p2")
K = 10
# Rows of scores made at once: 1,000 rows of 10,000 items are 40 MB.
BLOCK_ROWS = 1_000


@dataclass(frozen=True, eq=False)
class Part:
    """Events [fitted, stop) are asked; weights come from [0, fitted).

    p1: weights and counts frozen at `fitted`, the user's history follows. p1-strict: the history besides holds only
    strictly earlier stamps. p2: everything may learn from an event once it is scored.
    """

    stream: Stream
    fitted: int
    stop: int
    protocol: str

    @cached_property
    def scored(self) -> I64:
        """int64[S]: positions of the scored events."""
        at = np.arange(self.fitted, self.stop)
        stream = self.stream
        return at[stream.first[at] & (stream.known_from[stream.items[at]] <= at)]

    @property
    def learns(self) -> bool:
        return self.protocol == "p2"

    @property
    def history_lengths(self) -> I64:
        """int64[n]: how many of the user's first touches may be known at an event."""
        return self.stream.touched_strictly if self.protocol == "p1-strict" else self.stream.touched

    def history(self, position: int) -> I64:
        """Items of the user, oldest first, as far as they may be known at this event."""
        stream = self.stream
        return stream.touched_items[stream.users[position]][: self.history_lengths[position]]

    def blocks(self, every: int) -> Iterator[tuple[int, I64]]:
        """(events before the block, its scored positions); one block where nothing learns."""
        step = every if self.learns else self.stop - self.fitted
        for start in range(self.fitted, self.stop, step):
            inside = (self.scored >= start) & (self.scored < start + step)
            yield start, self.scored[inside]


def validation(stream: Stream, protocol: str) -> Part:
    return Part(stream, stream.fit_end, stream.trained_end, protocol)


def test(stream: Stream, protocol: str) -> Part:
    return Part(stream, stream.trained_end, len(stream), protocol)


class Ranked(NamedTuple):
    """What a system answered to the scored events.

    positions: int64[S]; ranks: float64[S], infinite where not in the list; lists: int64[S, 10], -1 where shorter.
    """

    positions: I64
    ranks: F64
    lists: npt.NDArray[np.int64]


def hide(stream: Stream, positions: I64, scores: F32) -> F32:
    """Scores float32[B, N] with -inf where an item is no candidate; in place."""
    for row, k in enumerate(positions):
        scores[row, stream.seen(k)] = -np.inf
    if not stream.declared:
        scores[stream.known_from[None, :] > positions[:, None]] = -np.inf
    return scores


def rank(part: Part, blocks: Iterable[F32]) -> Ranked:
    """Places and lists from rows of scores float32[B, N] that follow `part.scored`."""
    ranks, lists, done = [], [], 0
    for block in blocks:
        positions = part.scored[done : done + len(block)]
        done += len(block)
        if not np.isfinite(block).all():
            raise ValueError("a system gave a score that is no number")
        scores = hide(part.stream, positions, block.astype(np.float32))  # a copy: the caller keeps its rows
        own = scores[np.arange(len(positions)), part.stream.items[positions]][:, None]
        ranks.append(1 + (scores > own).sum(1) + 0.5 * ((scores == own).sum(1) - 1))
        lists.append(_best(scores))
    if done != len(part.scored):
        raise ValueError(f"{done} rows of scores for {len(part.scored)} events")
    return Ranked(part.scored, np.concatenate(ranks).astype(np.float64), np.concatenate(lists))


def _best(scores: F32) -> npt.NDArray[np.int64]:
    """int64[B, 10], best first; -1 where there are fewer candidates."""
    kept = min(K, scores.shape[1])
    at = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
    values = np.take_along_axis(scores, at, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    at = np.take_along_axis(at, order, 1)
    return np.where(np.isfinite(np.take_along_axis(values, order, 1)), at, -1)


def gains(ranks: F64) -> F64:
    """nDCG@10 with one relevant item: 1 / log2(1 + place) up to place 10."""
    return np.where(ranks <= K, 1 / np.log2(1 + np.maximum(ranks, 1)), 0.0)
