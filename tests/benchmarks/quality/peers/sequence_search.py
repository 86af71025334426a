"""The search of SASRec and GRU4Rec: axis after axis from a start, early stopping, then how to learn online."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from tests.benchmarks.quality.peers.base import Choice, Config, best, trial, validation_ndcg
from tests.benchmarks.quality.peers.sequence import OnlineConfig, SequenceNetwork, fit, score, stream_scores
from tests.benchmarks.quality.peers.sequence_network import SequenceConfig
from tests.benchmarks.quality.protocol import Part, gains, rank, validation
from tests.benchmarks.quality.stream import F32, I64, Stream

# Early stopping looks every so many epochs, and gives up after so many looks without a better one.
LOOK_EVERY, PATIENCE = 3, 3
# A trial that stands more than this share below the best one at the same epoch is stopped from the second look on.
HOPELESS, HOPELESS_FROM = 0.08, 6
# Looks are taken on every third validation event while validation holds more events than this.
SMALL_VALIDATION = 1_500
# A frozen network cannot rank items that it never saw: where more validation targets than this are new, trials are
# compared after learning online.
NEW_SHARE = 0.1


@dataclass
class SequencePeer:
    """`axes`: (field, other values) tried in turn, each from the best configuration so far."""

    start: SequenceConfig
    axes: Sequence[tuple[str, Sequence[Any]]]
    online: Sequence[OnlineConfig]
    form: str = "logits"
    cache: Path | None = None
    """Where fitted networks are kept, so that a run can be interrupted."""

    def choose(self, stream: Stream, protocol: str, seed: int) -> Choice:
        """`config`: {"network", "epochs"} and, under p2, "online"."""
        trials = [self._try(stream, self.start, seed, [])]
        for name, values in self.axes:
            base = SequenceConfig(**best(trials)["config"]["network"])
            for value in values:
                trials.append(self._try(stream, replace(base, **{name: value}), seed, trials))
        winner = best(trials)["config"]
        if protocol != "p2":
            return Choice(winner, trials)
        part, online_trials = validation(stream, "p2"), []
        for online in self.online:
            started = time.perf_counter()
            config = {**winner, "online": asdict(online)}
            online_trials.append(trial(config, validation_ndcg(part, self.rows(part, config, seed)), started))
        return Choice(best(online_trials)["config"], trials + online_trials)

    def rows(self, part: Part, config: Config, seed: int) -> Iterator[F32]:
        network_config = SequenceConfig(**config["network"])
        network = self._fit(part.stream, part.fitted, network_config, seed, config["epochs"])
        return stream_scores(network, part, OnlineConfig(**config.get("online", {})), seed)

    def _fit(self, stream: Stream, stop: int, config: SequenceConfig, seed: int, epochs: int) -> SequenceNetwork:
        path = self._path(stream, stop, config, seed, epochs)
        if path is None or not path.exists():
            network = fit(stream, stop, config, seed, epochs)
            self._keep(network, path)
            return network
        network = SequenceNetwork(config, stream.catalogue_size)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network

    def _path(self, stream: Stream, stop: int, config: SequenceConfig, seed: int, epochs: int) -> Path | None:
        if self.cache is None:
            return None
        key = hashlib.sha256(repr((config, seed, epochs)).encode()).hexdigest()[:12]
        return self.cache / f"{stream.name}-{stop}-{config.body}-{key}.pt"

    @staticmethod
    def _keep(network: SequenceNetwork, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), path)

    def _try(self, stream: Stream, config: SequenceConfig, seed: int, before: list[dict[str, Any]]) -> dict[str, Any]:
        journal = self._journal(stream, config, seed)
        if journal is not None and journal.exists():
            return msgspec.json.decode(journal.read_bytes(), type=dict[str, Any])
        started = time.perf_counter()
        part = validation(stream, "p1")
        looked = part.scored[::3] if len(part.scored) > SMALL_VALIDATION else part.scored
        bar = best(before)["looks"] if before else {}  # by epoch as text, as JSON has it
        looks: dict[int, float] = {}
        kept: dict[int, SequenceNetwork] = {}

        def watch(network: SequenceNetwork, epoch: int) -> bool:
            if epoch % LOOK_EVERY:
                return True
            looks[epoch] = _ndcg(network, part, looked)
            top = max(looks, key=lambda at: looks[at])
            if top == epoch:
                kept.clear()
                kept[epoch] = copy.deepcopy(network)
            hopeless = epoch >= HOPELESS_FROM and looks[epoch] < (1 - HOPELESS) * bar.get(str(epoch), 0.0)
            return not hopeless and epoch - top < PATIENCE * LOOK_EVERY

        fit(stream, stream.fit_end, config, seed, config.epochs, watch)
        ((epochs, network),) = kept.items()
        self._keep(network, self._path(stream, stream.fit_end, config, seed, epochs))
        ndcg = looks[epochs]
        if _share_of_new(stream) > NEW_SHARE:
            online = validation(stream, "p2")
            ndcg = validation_ndcg(online, stream_scores(network, online, self.online[0], seed))
        chosen = {"network": asdict(config), "epochs": epochs}
        found = trial(chosen, ndcg, started, looks={str(at): round(value, 5) for at, value in looks.items()})
        if journal is not None:
            journal.write_bytes(msgspec.json.encode(found))
        return found

    def _journal(self, stream: Stream, config: SequenceConfig, seed: int) -> Path | None:
        """Where a finished trial is written, so that a search goes on where it was interrupted."""
        path = self._path(stream, stream.fit_end, config, seed, 0)
        return None if path is None else path.with_suffix(".json")


def _ndcg(network: SequenceNetwork, part: Part, looked: I64) -> float:
    some = _Some(part, looked)
    return float(gains(rank(some, score(network, part, looked)).ranks).mean())


class _Some(Part):
    """A part of which only some events are asked."""

    def __init__(self, part: Part, positions: I64) -> None:
        super().__init__(part.stream, part.fitted, part.stop, part.protocol)
        self.__dict__["scored"] = positions


def _share_of_new(stream: Stream) -> float:
    """The share of scored validation events on items that the fit part does not hold."""
    held = np.zeros(stream.catalogue_size, bool)
    held[stream.items[: stream.fit_end]] = True
    return float(1 - held[stream.items[validation(stream, "p1").scored]].mean())
