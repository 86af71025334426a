"""Trains the ranker on past lists: listwise softmax, the chosen item as target. Knows no stream and no bundle."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from models.learning.checkpoint import read_checkpoint, write_checkpoint
from models.learning.lists import Lists
from models.learning.places import gains, mean_ndcg
from models.learning.ranker import ListwiseRanker, Standard
from models.learning.ranker_weights import RankerWeights

# What AdamW keeps of a parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
NAME = "ranker.safetensors"
# Lists a look at the validation part takes at most, spread evenly.
CHECKED_LISTS = 3_000


@dataclass(frozen=True)
class RankerConfig:
    """What decides how a ranker is trained; defaults from research/joint-ranker.md and models/README.md."""

    batch: int = 128
    sampled: int = 32
    """Candidates of a list that an update looks at: the chosen one and others at random; 0 = all. More lists with fewer
    candidates of each are quicker and better (models/README.md)."""
    rate: float = 3e-3
    decay: float = 1e-3
    warm_up: int = 100
    """Updates until the rate is reached."""
    updates: int = 3_000
    """Updates of a fit at most. Counted in updates, because short streams need many passes and long ones few."""
    passes: int = 60
    """Passes over the lists at most: a thousand lists are known by heart by then."""
    first_check: int = 50
    """Updates before the first look at the validation part; every next look comes after twice as many. Short streams
    are learned by heart within some hundred updates, long ones take thousands."""
    online_rate: float = 1e-3
    replay: int = 3
    """Earlier lists to each new one in an online update."""
    average: float = 0.98
    """Share of the served weights that an online update keeps."""


class RankerFit(NamedTuple):
    """How a fit ended."""

    updates: int
    """After which the weights are kept."""
    validation: float
    """nDCG@10 there; NaN without a validation part."""


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

    network_class: type[ListwiseRanker] = ListwiseRanker

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
        """Fit anew on `rows`, the rate falling to zero over `updates`.

        Args:
            validation: later lists, by which is chosen how many updates are enough; the weights after them are kept.
        """
        config = self.config
        torch.manual_seed(self.seed)
        self.rng = np.random.default_rng(self.seed)
        self.net = self.network_class(_standard(lists, rows, self.rng))
        self.optimizer = self._optimizer()
        order = np.empty(0, np.int64)
        looks: list[tuple[int, npt.NDArray[np.float64], dict[str, torch.Tensor]]] = []
        check = config.first_check
        self.served = copy.deepcopy(self.net)
        self.net.train()
        for update in range(updates):
            if len(order) < min(config.batch, len(rows)):
                order = self.rng.permutation(rows)
            batch, order = order[: config.batch], order[config.batch :]
            rise = min(1.0, (update + 1) / config.warm_up)
            self._step(lists, batch, config.rate * rise * 0.5 * (1.0 + math.cos(math.pi * update / updates)))
            # What is served is averaged, from few updates at first to about fifty.
            self._average(min(config.average, (update + 1) / (update + 10)))
            if validation is not None and update + 1 in (check, updates):
                check *= 2
                places = self.places(lists, validation[:: max(1, len(validation) // CHECKED_LISTS)])
                looks.append((update + 1, gains(places), copy.deepcopy(self.served.state_dict())))
        if not looks:
            return RankerFit(updates, math.nan)
        passed, found, kept = looks[enough([found for _, found, _ in looks])]
        self.net.load_state_dict(kept)
        self.served.load_state_dict(kept)
        return RankerFit(passed, float(found.mean()))

    def fit_latest(self, lists: Lists, latest: int) -> Foreseen | None:
        """Choose how long to train by the lists from row `latest` on, then fit anew on all of them for as long.

        Returns: how the first of both fits foresaw those; None where there are no rows on one side.
        """
        config, rows = self.config, np.arange(len(lists.at))
        updates = min(config.updates, max(config.first_check, config.passes * len(rows) // config.batch))
        foreseen = None
        if 0 < latest < len(rows):
            updates = self.fit(lists, rows[:latest], updates=updates, validation=rows[latest:]).updates
            foreseen = Foreseen(updates, self.places(lists, rows[latest:]))
        # Anew on everything: what was held back is the latest, and the latest tells most of what comes next.
        self.fit(lists, rows, updates=updates)
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
            self._step(lists, rows[start : start + config.batch], config.online_rate)
            self._average(config.average)

    def scores(self, lists: Lists, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32[rows, K] of the served weights."""
        self.served.eval()
        out = []
        with torch.no_grad():
            for start in range(0, len(rows), 256):
                features, mask, _ = _batch(lists, rows[start : start + 256])
                out.append(self.served(features, mask).numpy())
        return np.concatenate(out)

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
        trainer.net = trainer.network_class(standard)
        trainer.served = copy.deepcopy(trainer.net)
        for prefix, network in (("raw.", trainer.net), ("served.", trainer.served)):
            own = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
            network.load_state_dict(own)
        trainer.optimizer = trainer._optimizer()
        for name, parameter in trainer.net.named_parameters():
            moments = {key: tensors[f"{key}.{name}"].clone() for key in _MOMENTS if f"{key}.{name}" in tensors}
            if moments:
                trainer.optimizer.state[parameter] = moments
        return trainer

    def _optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.net.parameters(), lr=self.config.rate, weight_decay=self.config.decay)

    def _average(self, keep: float) -> None:
        """Move what is served towards the trained weights."""
        with torch.no_grad():
            for kept, fresh in zip(self.served.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(fresh, 1.0 - keep)

    def _draw(self, lists: Lists, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Places of the `sampled` candidates of each list that an update looks at; None = all."""
        sampled = self.config.sampled
        return lists.draw(rows, sampled, self.rng) if 0 < sampled < lists.features.shape[1] else None

    def _step(self, lists: Lists, rows: npt.NDArray[np.int64], rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = np.sort(rows)
        features, mask, chosen = _batch(lists, rows, self._draw(lists, rows))
        loss = F.cross_entropy(self.net(features, mask), chosen)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def enough(looks: Sequence[npt.NDArray[np.float64]]) -> int:
    """The last look that is within a standard error of the best one.

    A few hundred lists tell the best look only by chance, and what is chosen is fitted anew on more lists than these:
    of looks that cannot be told apart the later one is meant.

    Args:
        looks: each float64[lists], of the same lists.
    """
    best = max(looks, key=lambda found: float(found.mean()))
    for at in range(len(looks) - 1, -1, -1):
        behind = best - looks[at]
        if behind.mean() <= behind.std() / math.sqrt(len(behind)):
            return at
    raise AssertionError("the best look is not behind itself")


def _batch(
    lists: Lists, rows: npt.NDArray[np.int64], kept: npt.NDArray[np.int64] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, mask and target of some lists, of the candidates at places `kept` (int64[rows, k]) or of all."""
    size, chosen = lists.size[rows][:, None], lists.chosen[rows].astype(np.int64)
    if kept is None:
        features, mask = lists.features[rows], np.arange(lists.features.shape[1]) < size
    else:
        features, mask = lists.features[rows[:, None], kept], kept < size
        chosen = (kept == chosen[:, None]).argmax(1)
    return torch.from_numpy(features).float(), torch.from_numpy(mask), torch.from_numpy(chosen)


# Lists the standard is taken from: 4,000 of 100 candidates fix a mean to half a percent of its deviation.
_STANDARD_LISTS = 4_000


def _standard(lists: Lists, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Standard:
    rows = np.sort(rng.choice(rows, min(len(rows), _STANDARD_LISTS), replace=False))
    mask = np.arange(lists.features.shape[1]) < lists.size[rows][:, None]
    values = lists.features[rows][mask].astype(np.float32)
    return Standard(values.mean(0), (1.0 / (values.std(0) + 1e-3)).astype(np.float32))
