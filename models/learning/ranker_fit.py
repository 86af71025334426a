"""Fits a ranker on past lists: listwise softmax, the chosen item as target. Knows no stream and no bundle.

Whatever scores lists can be fitted: features float32[B, K, F] and a mask bool[B, K] in, scores float32[B, K] out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from models.learning.lists import Lists
from models.learning.places import mean_ndcg
from models.learning.ranker import Standard

Scorer = TypeVar("Scorer", bound=nn.Module)
# Lists a look at the validation part takes at most, spread evenly.
CHECKED_LISTS = 3_000
# Lists the standard is taken from: 4,000 of 100 candidates fix a mean to half a percent of its deviation.
STANDARD_LISTS = 4_000
# Shares of two rankers of which nothing is known, and how many lists that counts as.
EVEN, EVEN_LISTS = 0.5, 10.0


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
    weight_updates: int = 1_500
    """The same of the weights beside the layers; they are as good after half as many."""
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

    def at_most(self, limit: int, lists: int) -> int:
        """Updates of a fit on so many lists: `limit` at most, fewer where `passes` over them take fewer."""
        return min(limit, max(self.first_check, self.passes * lists // self.batch))


class RankerFit(NamedTuple):
    """How a fit ended."""

    updates: int
    """After which the weights are kept."""
    validation: float
    """nDCG@10 there; NaN without a validation part."""


@dataclass(frozen=True)
class Fitted(Generic[Scorer]):
    """A ranker, as it is when a fit has ended."""

    net: Scorer
    """The weights that were trained."""
    served: Scorer
    """Their running average."""
    optimizer: torch.optim.AdamW
    rng: np.random.Generator
    report: RankerFit


def fit(
    make: Callable[[Standard], Scorer],
    config: RankerConfig,
    seed: int,
    lists: Lists,
    rows: npt.NDArray[np.int64],
    *,
    updates: int,
    validation: npt.NDArray[np.int64] | None = None,
) -> Fitted[Scorer]:
    """Fit one from nothing on `rows`, the rate falling to zero over `updates`.

    Args:
        seed: decides first weights, order and draws.
        validation: later lists, by which is chosen how many updates are enough; the weights after them are kept.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = make(_standard(lists, rows, rng))
    served, optimizer = copy.deepcopy(net), optimizer_of(net, config)
    order = np.empty(0, np.int64)
    looks: list[tuple[int, npt.NDArray[np.float64], dict[str, torch.Tensor]]] = []
    check = config.first_check
    net.train()
    for update in range(updates):
        if len(order) < min(config.batch, len(rows)):
            order = rng.permutation(rows)
        batch, order = order[: config.batch], order[config.batch :]
        rise = min(1.0, (update + 1) / config.warm_up)
        rate = config.rate * rise * 0.5 * (1.0 + math.cos(math.pi * update / updates))
        step(net, optimizer, rate, lists, batch, config.sampled, rng)
        # What is served is averaged, from few updates at first to about fifty.
        follow(served, net, min(config.average, (update + 1) / (update + 10)))
        if validation is not None and update + 1 in (check, updates):
            check *= 2
            seen = validation[:: max(1, len(validation) // CHECKED_LISTS)]
            found = lists.places(scores(served, lists, seen), seen)
            looks.append((update + 1, found, copy.deepcopy(served.state_dict())))
    report = RankerFit(updates, math.nan)
    if looks:
        passed, found, kept = looks[enough([found for _, found, _ in looks])]
        report = RankerFit(passed, mean_ndcg(found))
        net.load_state_dict(kept)
        served.load_state_dict(kept)
    return Fitted(net, served, optimizer, rng, report)


def enough(looks: Sequence[npt.NDArray[np.float64]]) -> int:
    """The last look that is within a standard error of the best one, by octaves: how often a place was halved.

    nDCG@10 is blind to most of some hundred lists, and takes what knows its lists by heart for as good. What is chosen
    is fitted anew on more lists than these: of looks that cannot be told apart the later one is meant.

    Args:
        looks: places of what was chosen, each float64[lists], of the same lists.
    """
    octaves = [np.log2(places) for places in looks]
    best = min(octaves, key=lambda each: float(each.mean()))
    for at in range(len(looks) - 1, -1, -1):
        behind = octaves[at] - best
        if behind.mean() <= behind.std() / math.sqrt(len(behind)):
            return at
    raise AssertionError("the best look is not behind itself")


def optimizer_of(net: nn.Module, config: RankerConfig) -> torch.optim.AdamW:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=config.rate, weight_decay=config.decay)


def step(
    net: nn.Module,
    optimizer: torch.optim.AdamW,
    rate: float,
    lists: Lists,
    rows: npt.NDArray[np.int64],
    sampled: int,
    rng: np.random.Generator,
) -> None:
    """One update of `net` by these lists.

    Args:
        sampled: candidates of each list that are looked at, drawn by `rng`; 0 = all.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    rows = np.sort(rows)
    drawn = lists.draw(rows, sampled, rng) if 0 < sampled < lists.features.shape[1] else None
    features, mask, chosen = _batch(lists, rows, drawn)
    loss = F.cross_entropy(net(features, mask), chosen)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def follow(served: nn.Module, net: nn.Module, keep: float) -> None:
    """Move what is served towards the trained weights."""
    for kept, fresh in zip(served.parameters(), net.parameters(), strict=True):
        kept.lerp_(fresh, 1.0 - keep)


@torch.no_grad()
def scores(net: nn.Module, lists: Lists, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32[rows, K]."""
    net.eval()
    out = []
    for start in range(0, len(rows), 256):
        features, mask, _ = _batch(lists, rows[start : start + 256])
        out.append(net(features, mask).numpy())
    return np.concatenate(out)


def shares(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], lists: Lists, rows: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """What to multiply each of two rankers' scores by, so that their sum makes what was chosen likeliest.

    Args:
        one, other: float32[rows, K], of lists that neither was fitted on.
    """
    mask = torch.from_numpy(np.arange(one.shape[1]) < lists.size[rows][:, None])
    both = torch.from_numpy(np.stack([one, other], axis=-1)).double().masked_fill(~mask[..., None], 0.0)  # [n, K, 2]
    chosen = torch.from_numpy(lists.chosen[rows].astype(np.int64))
    found = torch.full((2,), EVEN, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        told = F.cross_entropy((both @ found).masked_fill(~mask, -1e9), chosen, reduction="sum")
        # Few lists leave the shares where they begin.
        total: torch.Tensor = told + EVEN_LISTS * ((found - EVEN) ** 2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    of_one, of_other = found.tolist()
    return of_one, of_other


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


def _standard(lists: Lists, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Standard:
    rows = np.sort(rng.choice(rows, min(len(rows), STANDARD_LISTS), replace=False))
    mask = np.arange(lists.features.shape[1]) < lists.size[rows][:, None]
    values = lists.features[rows][mask].astype(np.float32)
    return Standard(values.mean(0), (1.0 / (values.std(0) + 1e-3)).astype(np.float32))
