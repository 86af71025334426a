"""Log-linear fusion of peers: one weight a member, another one added for cold users, fitted on validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from tests.benchmarks.quality.peers.base import Choice, Config, best, trial
from tests.benchmarks.quality.protocol import BLOCK_ROWS, Part, gains, hide, validation
from tests.benchmarks.quality.stream import F32, F64, I64, Bools, Stream

# Weights are fitted on at most so many rows: 20 members of 10,000 items are 2 GB.
FITTED_ROWS = 2_500
COLD_EVENTS = 5
# Added before the logarithm of a share and of a decayed count: where a source stops telling items apart.
SHARE_FLOORS, COUNT_FLOOR = (1e-5, 1e-3), 0.003
# On the squared weights; ten times that on what is added for cold users.
PULLS = (1e-4, 1e-2)

MemberRows = Callable[[str, Part], Iterable[F32]]


class Fusion:
    """Chooses set, floor and pull to zero: fitted on each half of validation, asked on the other.

    Args:
        forms: how the scores of each member read (see `feature`).
        rows: rows of a tuned member for a part.
    """

    form = "logits"

    def __init__(self, sets: Sequence[Sequence[str]], forms: Mapping[str, str], rows: MemberRows) -> None:
        self.sets, self.forms, self.member_rows = sets, forms, rows

    def choose(self, stream: Stream, protocol: str, seed: int) -> Choice:
        """`config`: {"weights": {member: [for all, added for cold users]}, "floor"}, fitted on all of validation."""
        part = validation(stream, protocol)
        chosen = np.arange(0, len(part.scored), max(1, len(part.scored) // FITTED_ROWS))
        hidden = hide(stream, part.scored[chosen], np.zeros((len(chosen), stream.catalogue_size), np.float32)) < 0
        targets = stream.items[part.scored[chosen]]
        cold = is_cold(stream, part.scored[chosen])
        halves = [slice(0, None, 2), slice(1, None, 2)]
        trials, fitted = [], {}
        for floor in SHARE_FLOORS:
            features = {
                member: self._features(member, part, chosen, floor)
                for member in dict.fromkeys(member for members in self.sets for member in members)
            }
            for members in self.sets:
                of_set = [features[member] for member in members]
                for pull in PULLS:
                    started = time.perf_counter()
                    gained = np.zeros(len(chosen))
                    for fit_on, compare_on in (halves, halves[::-1]):
                        on = [f[fit_on] for f in of_set]
                        weights = fit_weights(on, hidden[fit_on], targets[fit_on], cold[fit_on], pull)
                        scores = combine([f[compare_on] for f in of_set], weights, cold[compare_on])
                        gained[compare_on] = gains(_places(scores, hidden[compare_on], targets[compare_on]))
                    config = {"members": list(members), "floor": floor, "pull": pull}
                    trials.append(trial(config, float(gained.mean()), started))
                    if best(trials) is trials[-1]:
                        weights = fit_weights(of_set, hidden, targets, cold, pull)
                        named = dict(zip(members, weights.T.round(4).tolist(), strict=True))
                        fitted = {"weights": named, "floor": floor, "pull": pull}
        return Choice(fitted, trials)

    def rows(self, part: Part, config: Config, seed: int) -> Iterator[F32]:
        weights = np.array(list(config["weights"].values()), np.float32).T
        members = [regrouped(self.member_rows(member, part)) for member in config["weights"]]
        done = 0
        for blocks in zip(*members, strict=True):
            positions = part.scored[done : done + len(blocks[0])]
            done += len(positions)
            of_set = [
                feature(self.forms[member], part.stream, positions, block, config["floor"])
                for member, block in zip(config["weights"], blocks, strict=True)
            ]
            yield combine(of_set, weights, is_cold(part.stream, positions))

    def _features(self, member: str, part: Part, chosen: I64, floor: float) -> F32:
        """float32[C, N] of the chosen rows of a part."""
        found, done = [], 0
        for block in regrouped(self.member_rows(member, part)):
            at = chosen[(chosen >= done) & (chosen < done + len(block))]
            found.append(feature(self.forms[member], part.stream, part.scored[at], block[at - done], floor))
            done += len(block)
        return np.concatenate(found)


def feature(form: str, stream: Stream, positions: I64, scores: F32, floor: float) -> F32:
    """Scores float32[B, N] of one member on a scale on which they add up; 0 where the item is no candidate.

    `log2`: binary logarithm of a decayed count; `share`: what is not negative and adds up; `linear`: any; `logits`.
    """
    scores = hide(stream, positions, scores.astype(np.float32))
    hidden = np.isneginf(scores)
    if form == "log2":
        out = np.log(np.exp2(scores) + COUNT_FLOOR)
    elif form == "share":
        kept = np.where(hidden, 0, scores)
        total = kept.sum(1, keepdims=True)
        out = np.where(total > 0, np.log(kept / np.maximum(total, 1e-9) + floor), 0)
    elif form == "linear":
        kept = np.where(hidden, 0, scores)
        out = 5 * kept / np.maximum(np.abs(kept).max(1, keepdims=True), 1e-6)
    else:
        top = scores.max(1, keepdims=True)
        out = np.maximum(scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True)), -20)
    return np.where(hidden, 0, out).astype(np.float32)


def fit_weights(features: Sequence[F32], hidden: Bools, targets: I64, cold: Bools, pull: float) -> F32:
    """float32[2, M]: weights for all and what is added for cold users, by the likelihood of the chosen items."""
    x = [torch.as_tensor(each) for each in features]
    mask, wanted = torch.as_tensor(hidden), torch.as_tensor(targets)
    is_cold = torch.as_tensor(cold.astype(np.float32))[:, None]
    weights = torch.zeros((2, len(x)))
    weights[0] = 0.3
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = torch.zeros_like(x[0])
        for at, each in enumerate(x):
            scores = scores + (weights[0, at] + weights[1, at] * is_cold) * each
        value = torch.nn.functional.cross_entropy(scores.masked_fill(mask, -1e9), wanted)
        value = value + pull * (weights[0] ** 2).sum() + 10 * pull * (weights[1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().numpy()


def combine(features: Sequence[F32], weights: F32, cold: Bools) -> F32:
    """float32[B, N]."""
    scores = np.zeros_like(features[0])
    for at, each in enumerate(features):
        scores += (weights[0, at] + weights[1, at] * cold[:, None]).astype(np.float32) * each
    return scores


def _places(scores: F32, hidden: Bools, targets: I64) -> F64:
    """float64[B], ties counted half."""
    scores = np.where(hidden, -np.inf, scores)
    own = scores[np.arange(len(scores)), targets][:, None]
    return 1 + (scores > own).sum(1) + 0.5 * ((scores == own).sum(1) - 1)


def is_cold(stream: Stream, positions: I64) -> Bools:
    return stream.user_events_before[positions] < COLD_EVENTS


def regrouped(blocks: Iterable[F32]) -> Iterator[F32]:
    """The same rows in blocks of `BLOCK_ROWS`."""
    waiting: list[F32] = []
    for block in blocks:
        waiting.append(block)
        while sum(map(len, waiting)) >= BLOCK_ROWS:
            rows = np.concatenate(waiting)
            yield rows[:BLOCK_ROWS]
            waiting = [rows[BLOCK_ROWS:]]
    rows = np.concatenate(waiting) if waiting else None
    if rows is not None and len(rows):
        yield rows
