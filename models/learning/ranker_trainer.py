"""The ranker: fitted for as long as pays off, learning on from each batch, kept on disk. Knows no stream."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.learning.checkpoint import read_checkpoint, write_checkpoint
from models.learning.lists import Lists
from models.learning.places import mean_ndcg
from models.learning.ranker import ListwiseRanker, LogLinearRanker, Standard
from models.learning.ranker_fit import (
    EVEN,
    RankerConfig,
    RankerFit,
    fit,
    follow,
    optimizer_of,
    scores,
    shares,
    step,
)
from models.learning.ranker_weights import RankerWeights

__all__ = ["Foreseen", "RankerConfig", "RankerFit", "RankerTrainer"]

# What AdamW keeps of a parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
NAME = "ranker.safetensors"


class Foreseen(NamedTuple):
    """What a fit on the earlier lists made of the later ones."""

    updates: int
    """After which it foresaw them best."""
    places: npt.NDArray[np.float64]
    """float64[later lists], as `RankerTrainer.places`."""


class RankerTrainer:
    """One ranker, from its first fit on. Deterministic by seed.

    `fit` starts anew; `update` continues, and what is served then is a running average of the weights.
    """

    def __init__(self, config: RankerConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.net: ListwiseRanker
        self.served: ListwiseRanker
        self.optimizer: torch.optim.AdamW
        self.rng = np.random.default_rng(seed)

    def fit(
        self,
        lists: Lists,
        rows: npt.NDArray[np.int64],
        *,
        updates: int,
        validation: npt.NDArray[np.int64] | None = None,
    ) -> RankerFit:
        """Fit the layers alone, anew on `rows` (`ranker_fit.fit`); updates move the weights beside them as well."""
        found = fit(ListwiseRanker, self.config, self.seed, lists, rows, updates=updates, validation=validation)
        self.net, self.served, self.optimizer, self.rng = found.net, found.served, found.optimizer, found.rng
        self.net.straight.requires_grad_(True)
        self.optimizer.add_param_group({"params": [self.net.straight]})
        return found.report

    def fit_latest(self, lists: Lists, latest: int) -> Foreseen | None:
        """Fit the layers, and one weight a feature by itself; served is the sum of both.

        How long each is trained and what share each has of the sum is chosen by the lists from row `latest` on, then
        both are fitted anew on all of them.

        Returns: how the first fits foresaw those; None where there are no rows on one side.
        """
        config, rows = self.config, np.arange(len(lists.at))
        updates = config.at_most(config.updates, len(rows))
        of_weights = config.at_most(config.weight_updates, len(rows))
        parts, foreseen = (EVEN, EVEN), None
        if 0 < latest < len(rows):
            earlier, later = rows[:latest], rows[latest:]
            line = fit(LogLinearRanker, config, self.seed, lists, earlier, updates=of_weights, validation=later)
            updates = self.fit(lists, earlier, updates=updates, validation=later).updates
            of_weights = line.report.updates
            told = self.scores(lists, later), scores(line.served, lists, later)
            parts = shares(*told, lists, later)
            joined = parts[0] * told[0] + parts[1] * told[1]
            foreseen = Foreseen(updates, lists.places(joined, later))
        # Anew on everything: what was held back is the latest, and the latest tells most of what comes next.
        line = fit(LogLinearRanker, config, self.seed, lists, rows, updates=of_weights)
        self.fit(lists, rows, updates=updates)
        self.net.join(line.net.weight, parts)
        self.served.join(line.served.weight, parts)
        self.optimizer.state[self.net.straight] = line.optimizer.state[line.net.weight]
        return foreseen

    def update(self, lists: Lists, new: npt.NDArray[np.int64], old: npt.NDArray[np.int64]) -> None:
        """One pass over new lists, mixed with replayed ones."""
        if not len(new):
            return
        config = self.config
        replayed = self.rng.choice(old, min(len(old), config.replay * len(new)), replace=False)
        rows = self.rng.permutation(np.concatenate([new, replayed]))
        self.net.train()
        for start in range(0, len(rows), config.batch):
            some = rows[start : start + config.batch]
            step(self.net, self.optimizer, config.online_rate, lists, some, config.sampled, self.rng)
            follow(self.served, self.net, config.average)

    def scores(self, lists: Lists, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32[rows, K] of the served weights."""
        return scores(self.served, lists, rows)

    def ndcg(self, lists: Lists, rows: npt.NDArray[np.int64]) -> float:
        """Mean nDCG@10 of the served weights over lists that hold what was chosen."""
        return mean_ndcg(self.places(lists, rows)) if len(rows) else math.nan

    def places(self, lists: Lists, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64[rows], 1-based places of what was chosen, ties counted half."""
        return lists.places(self.scores(lists, rows), rows)

    def weights(self) -> RankerWeights:
        return self.served.weights()

    # keeping ----------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of all that training goes on from, the generator left out."""
        found = {f"raw.{name}": each for name, each in self.net.state_dict().items()}
        found |= {f"served.{name}": each for name, each in self.served.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"{key}.{name}": moment for key, moment in moments.items()}
        return {name: each.detach().clone() for name, each in found.items()}

    def save(self, directory: Path) -> None:
        """Write all that training goes on from, the generator as well. Raises: OSError."""
        state = {"seed": self.seed, "generator": self.rng.bit_generator.state}
        write_checkpoint(directory, self.tensors(), state, NAME)

    @classmethod
    def load(cls, directory: Path, config: RankerConfig) -> RankerTrainer:
        """The trainer that `save` wrote. Raises: CheckpointError."""
        tensors, state = read_checkpoint(directory, NAME)
        trainer = cls.of(config, state["seed"], tensors)
        trainer.rng.bit_generator.state = state["generator"]
        return trainer

    @classmethod
    def of(cls, config: RankerConfig, seed: int, tensors: Mapping[str, torch.Tensor]) -> RankerTrainer:
        """The trainer that has these `tensors`, its generator at the start of `seed`."""
        trainer = cls(config, seed)
        standard = Standard(tensors["raw.mean"].numpy().copy(), tensors["raw.scale"].numpy().copy())
        trainer.net = ListwiseRanker(standard)
        trainer.served = copy.deepcopy(trainer.net)
        for prefix, network in (("raw.", trainer.net), ("served.", trainer.served)):
            own = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
            network.load_state_dict(own)
        trainer.net.straight.requires_grad_(True)
        trainer.optimizer = optimizer_of(trainer.net, config)
        for name, parameter in trainer.net.named_parameters():
            moments = {key: tensors[f"{key}.{name}"].clone() for key in _MOMENTS if f"{key}.{name}" in tensors}
            if moments:
                trainer.optimizer.state[parameter] = moments
        return trainer
