"""What a peer is to the runner: it chooses its configuration on the validation part, then gives rows of scores."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tests.benchmarks.quality.protocol import Part, gains, rank, validation
from tests.benchmarks.quality.stream import F32, Stream

Config = dict[str, Any]


class Choice(NamedTuple):
    """The configuration that won on validation, and every trial: {"config", "ndcg_at_10", "seconds"}."""

    config: Config
    trials: list[dict[str, Any]]


class Peer(Protocol):
    form: str
    """How its scores read, for the fusions: `log2`, `share`, `linear` or `logits`."""

    def choose(self, stream: Stream, protocol: str, seed: int) -> Choice: ...

    def rows(self, part: Part, config: Config, seed: int) -> Iterator[F32]:
        """Rows float32[B, N] for `part.scored`, in its order."""
        ...


@dataclass(frozen=True)
class GridPeer:
    """A peer whose whole grid is tried; it needs no seed."""

    scores: Callable[..., Iterator[F32]]
    grid: Sequence[Config]
    form: str

    def choose(self, stream: Stream, protocol: str, seed: int) -> Choice:
        part = validation(stream, protocol)
        trials = []
        for config in self.grid:
            started = time.perf_counter()
            trials.append(trial(config, validation_ndcg(part, self.rows(part, config, seed)), started))
        return Choice(best(trials)["config"], trials)

    def rows(self, part: Part, config: Config, seed: int) -> Iterator[F32]:
        return self.scores(part, **config)


def validation_ndcg(part: Part, rows: Iterator[F32]) -> float:
    return float(gains(rank(part, rows).ranks).mean())


def trial(config: Config, ndcg: float, started: float, **more: Any) -> dict[str, Any]:
    found = {"config": config, "ndcg_at_10": ndcg, "seconds": round(time.perf_counter() - started, 1), **more}
    print(f"  {ndcg:.4f} {found['seconds']:6.1f} s {config} {more or ''}", file=sys.stderr, flush=True)
    return found


def best(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return trials[int(np.argmax([each["ndcg_at_10"] for each in trials]))]


def combinations(**axes: Sequence[Any]) -> list[Config]:
    """Every combination of the values."""
    found: list[Config] = [{}]
    for name, values in axes.items():
        found = [{**each, name: value} for each in found for value in values]
    return found
