"""Trains the user encoder: fits with a cosine schedule, and online updates with replay. Knows no file and no graph.

Served are always averaged weights: fine-tuned raw ones were worse than frozen ones (models/README.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.learning.averaging import WeightAverage, with_rows
from models.learning.batches import Chunks, Histories, batch_of, cut, cut_recent, histories
from models.learning.checkpoint import read_checkpoint, write_checkpoint
from models.learning.encoder import EncoderNetwork, NetworkConfig, to_weights
from models.learning.encoder_config import EncoderConfig, FitReport
from models.learning.encoder_weights import EncoderWeights
from models.learning.first_vectors import first_vectors
from models.learning.log import TrainingLog
from models.learning.objective import Objective, events_of, points
from models.learning.optimiser import moved
from models.learning.passes import LOOKS, PassEvidence
from models.learning.places import mean_ndcg, places

__all__ = ["EncoderConfig", "EncoderTrainer", "FitReport", "NetworkConfig", "Progress"]

Progress = Callable[[int, int, float], None]
"""Called after each epoch: epochs done, epochs in all, mean loss in nats."""


class EncoderTrainer:
    """Network, its average and its optimiser, for one log that grows.

    Args:
        items: rows of the item table; `grow` adds more.
        kinds: length of the log's `kinds`.
        seed: decides initial weights, order, dropout and draws.
    """

    def __init__(self, config: EncoderConfig, *, items: int, kinds: int, text_dimension: int, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._rng = np.random.default_rng(seed)
        with self._seeded():
            self.network = EncoderNetwork(
                config.network, items=items, kinds=kinds, text_dimension=text_dimension, rng=self._rng
            )
        self.trained: npt.NDArray[np.bool_] = np.zeros(items, np.bool_)
        """bool[N], items that a training event named."""
        self.cold_offset = 0.0
        """Part of the bias of an item without events; see `choose_cold_offset`."""
        self.evidence = PassEvidence()
        self._average = WeightAverage(self.network, config.online_average, early=False)
        self._online: torch.optim.Optimizer | None = None
        self._looks: dict[int, dict[str, Tensor]] = {}
        """Averaged weights after so many passes of the latest fit that kept some."""

    @property
    def passes(self) -> int | None:
        """Passes over a log from nothing after which more do not pay off, see `choose_passes`; None: all do."""
        return self.evidence.enough()

    # training ---------------------------------------------------------------------------------------------------------

    def fit(
        self,
        log: TrainingLog,
        end: int,
        *,
        epochs: int,
        learning_rate: float | None = None,
        validation: tuple[int, int] | None = None,
        progress: Progress | None = None,
        looks: bool = False,
    ) -> FitReport:
        """Train on events [0, end) from the present weights, the learning rate falling to zero along a cosine.

        The first fit of all starts item vectors from what is chosen soon after each other (`first_vectors`).

        Args:
            epochs: at most; fewer with `validation` where it stops getting better, and the best check's weights stay.
            validation: events [a, b) foreseen with frozen weights.
            looks: remember weights for `choose_passes`. What stays are those after as many passes as pay off, and
                without looks the others are left undone.
        """
        config, started = self.config, time.monotonic()
        self.grow(log)
        first = not self.trained.any()
        self._meet(log, 0, end, popular=True)
        if first:
            vectors = first_vectors(histories(log, 0, end, None), log.items, config.network.width, self._rng)
            with torch.no_grad():
                self.network.item_id.copy_(torch.as_tensor(vectors))
        report = FitReport()
        best: dict[str, Tensor] | None = None
        enough = min(self.passes or epochs, epochs)
        self._looks = {}
        average = WeightAverage(self.network, config.average, early=True)
        optimiser = self._optimiser(learning_rate or config.learning_rate)
        self._average = average
        with self._seeded():
            for epoch in range(epochs):
                past = histories(log, 0, end, self._rng)
                chunks = cut(past, config.chunk, self._rng)
                chunks = chunks.take(self._rng.permutation(len(chunks)))
                steps = -(-len(chunks) // config.batch)

                def share(step: int, epoch: int = epoch, steps: int = steps) -> float:
                    done = (epoch + step / steps) / epochs
                    warm = min(1.0, (epoch * steps + step + 1) / WARM_UP_STEPS)
                    return warm * 0.5 * (1 + math.cos(math.pi * done))

                loss = self._pass(log, past, chunks, config.batch, optimiser, average, share)
                report.losses.append(loss)
                report.epochs = epoch + 1
                if progress is not None:
                    progress(epoch + 1, epochs, loss)
                last = epoch + 1 == epochs
                if looks and (last or epoch + 1 in LOOKS):
                    self._looks[epoch + 1] = average.copy()
                    # As a whole: after the fit the part that is foreseen from the texts is another one.
                    self._add_foreseen(self._looks[epoch + 1], log, 1.0)
                if validation is not None and (last or (epoch + 1) % config.check_every == 0):
                    found = self.ndcg(log, *validation)
                    if not found <= report.validation:
                        report.validation, report.best_epoch = found, epoch + 1
                        best = average.copy()
                    elif epoch + 1 - report.best_epoch >= config.patience * config.check_every:
                        break
                if epoch + 1 == enough < epochs:
                    best = average.copy()
                    if not looks:
                        break
        self._load(best or average.tensors)
        self._settle_cold(log, end)
        self._average = WeightAverage(self.network, config.online_average, early=False)
        self._online = None
        report.seconds = time.monotonic() - started
        return report

    def update(self, log: TrainingLog, start: int, end: int) -> float:
        """Learn from events [start, end), which were foreseen already, mixed with replayed older ones.

        Returns: mean loss of the first pass, nats; NaN where there was nothing to foresee.
        """
        losses = []
        config = self.config
        # A log that is known by heart after few passes bears little of what is one more.
        replay = config.online_replay * min(1.0, (self.passes or config.passes) / config.passes)
        since = max(0, end - config.replay_events)
        self.grow(log)
        # All that is looked back on: what a history told of was filled in before `start` (`FeedbackLog`).
        self._meet(log, since, end)
        if self._online is None:
            self._online = self._optimiser(config.online_learning_rate)
        with self._seeded():
            for _ in range(config.online_passes):
                past = histories(log, since, end, self._rng)
                new = cut_recent(past, start, config.online_context, config.online_chunk)
                old = cut(past, config.online_chunk, self._rng)
                drawn = self._rng.permutation(len(old))[: int(replay * len(new))]
                mixed = Chunks(*(np.concatenate(pair) for pair in zip(new, old.take(drawn), strict=True)))
                mixed = mixed.take(self._rng.permutation(len(mixed)))
                loss = self._pass(log, past, mixed, config.online_batch, self._online, self._average, lambda _: 1.0)
                losses.append(loss)
        return losses[0]

    def choose_cold_offset(self, log: TrainingLog, start: int, end: int, *, allowed_loss: float = 0.005) -> float:
        """Take the largest offset for items without events that costs at most this share of nDCG on [start, end).

        What new items gain shows only once they are listed, and events of a past without them hardly hold it; what the
        others lose can be measured. Events [0, start) were trained on and [start, end) were not.
        """
        self.grow(log)
        users, vectors = self.users_before(log, start, end), self.served().item_vectors(log.item_text)
        cold = ~self.trained[: log.items]
        base = vectors[cold, -1] - self.cold_offset
        found = []
        for offset in COLD_OFFSETS:
            vectors[cold, -1] = base + offset
            found.append(mean_ndcg(places(users, vectors, log, start, end)))
        least = (1 - allowed_loss) * max(found)
        chosen = max(offset for offset, ndcg in zip(COLD_OFFSETS, found, strict=True) if ndcg >= least)
        self.network.cold[-1] += chosen - self.cold_offset
        self.cold_offset = chosen
        return chosen

    def choose_passes(self, log: TrainingLog, start: int, end: int) -> None:
        """Take as many passes as pay off, by how the latest fit with looks foresaw events [start, end) after each look.

        By octaves, how often the place of what was chosen was halved: nDCG@10 is blind to nine choices in ten. Events
        [0, start) were trained on and [start, end) were not. What was found before counts as well (`PassEvidence`).
        """
        self.grow(log)
        served, found = self._average.tensors, {}
        # Of items that had events: what the others start from is settled after the passes.
        had = log.target[start:end] & self.trained[log.item[start:end]]
        if not had.any() or not self._looks:
            return
        try:
            for passes, tensors in self._looks.items():
                self._average.tensors = {name: with_rows(each, len(served[name])) for name, each in tensors.items()}
                self._add_foreseen(self._average.tensors, log, -1.0)
                users, vectors = self.users_before(log, start, end), self.served().item_vectors(log.item_text)
                found[passes] = np.log2(places(users, vectors, log, start, end)[had])
        finally:
            self._average.tensors, self._looks = served, {}
        self.evidence.add(found)

    def grow(self, log: TrainingLog) -> None:
        """Rows for items that joined the catalogue; they are what new items are until an event names them."""
        more = log.items - len(self.trained)
        if more <= 0:
            return
        former = dict(self.network.named_parameters())
        self.network.grow(log.items)
        self.trained = np.concatenate([self.trained, np.zeros(more, np.bool_)])
        self._average.grow()
        if self._online is not None:
            self._online = moved(self._online, former, dict(self.network.named_parameters()))

    def _meet(self, log: TrainingLog, start: int, end: int, popular: bool = False) -> None:
        """Items that events [start, end) name join the softmax.

        Args:
            popular: a new one starts at the logarithm of its events, level with the biases of the others; an optimiser
                that moves a number by at most its learning rate would need most of a fit. Else at a cold item's.
        """
        touches = np.bincount(log.item[start:end][log.item[start:end] >= 0], minlength=len(self.trained))
        new = np.flatnonzero((touches > 0) & ~self.trained)
        if not len(new):
            return
        cold = self.network.cold
        bias = np.full(len(new), float(cold[-1]))
        if popular:
            level, known = np.log1p(touches), self.trained & (touches > 0)
            by_text = self.network.text_biases(torch.as_tensor(log.item_text)).numpy()
            present = self.network.item_bias.detach().numpy() + by_text
            bias = level[new] + ((present - level)[known].mean() if known.any() else -level[new].mean()) - by_text[new]
        self.trained[new] = True
        with torch.no_grad():
            for tensors in (dict(self.network.named_parameters()), self._average.tensors):
                tensors["item_bias"][new] = torch.as_tensor(bias, dtype=torch.float32)
                tensors["item_id"][new] = cold[:-1]

    def _add_foreseen(self, tensors: dict[str, Tensor], log: TrainingLog, sign: float) -> None:
        """Add what the texts tell, times `sign`, to the items' own part among these tensors, in place."""
        told = sign * (torch.as_tensor(log.item_text) @ self.network.foreseen)  # [N, D]
        tensors["item_id"] += told[:, :-1]
        tensors["item_bias"] += told[:, -1]

    def _settle_cold(self, log: TrainingLog, end: int) -> None:
        """What an item without events starts from: the vector and bias that its text lets expect.

        Ridge regressions of the items' vectors and biases on the texts, from the mean of rare items on. Trained items
        keep what they have: what the text says of them is taken out of their own part.
        """
        touches = np.bincount(log.item[:end][log.item[:end] >= 0], minlength=log.items)
        known = np.flatnonzero(touches > 0)
        if not len(known):
            return
        network, parameters = self.network, dict(self.network.named_parameters())
        vectors = network.vectors_of(log.item_text, np.arange(log.items))[known]  # [n, D]
        text = log.item_text[known] - log.item_text[known].mean(0, dtype=np.float64)
        square, right = text.T @ text, text.T @ (vectors - vectors.mean(0))
        of_vector, of_bias = (np.linalg.solve(square + ridge * np.eye(len(square)), right) for ridge in RIDGES)
        rare = known[touches[known] < COLD_TOUCHES]
        with torch.no_grad():
            self._add_foreseen(parameters, log, 1.0)
            network.foreseen.copy_(torch.as_tensor(np.column_stack([of_vector[:, :-1], of_bias[:, -1]])))
            network.foreseen[:, :-1] -= network.projection.weight.T
            self._add_foreseen(parameters, log, -1.0)
            network.cold.copy_(network.own()[rare if len(rare) else known].mean(0))
            network.cold[-1] += self.cold_offset

    def _pass(
        self,
        log: TrainingLog,
        past: Histories,
        chunks: Chunks,
        size: int,
        optimiser: torch.optim.Optimizer,
        average: WeightAverage,
        share: Callable[[int], float],
    ) -> float:
        """One pass over the chunks. Returns: mean loss, nats."""
        config = self.config
        objective = Objective(self.network, config, self._rng, log, past, self.trained)
        losses = []
        self.network.train()
        for step, first in enumerate(range(0, len(chunks), size)):
            batch = batch_of(
                log,
                past,
                chunks.take(np.arange(first, min(first + size, len(chunks)))),
                context=config.context,
                horizon=config.horizon,
                discount=config.discount,
                items=log.items,
            )
            if not len(batch.point):
                continue
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * share(step)
            loss = objective.loss(batch)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
            optimiser.step()
            average.update()
            losses.append(float(loss.detach()))
        self.network.eval()
        return float(np.mean(losses)) if losses else math.nan

    def _optimiser(self, learning_rate: float) -> torch.optim.Optimizer:
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=learning_rate, weight_decay=self.config.weight_decay, foreach=True
        )
        for group in optimiser.param_groups:
            group["initial_lr"] = learning_rate
        return optimiser

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """torch's own generator, set from ours and put back."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._rng.integers(2**62)))
            yield

    def _load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(tensors[name])

    # keeping ----------------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write all that training goes on from; a trainer loaded from it gives the same weights as this one."""
        tensors = {f"raw.{name}": parameter.detach() for name, parameter in self.network.named_parameters()}
        tensors |= {f"average.{name}": tensor for name, tensor in self._average.tensors.items()}
        tensors["trained"] = torch.as_tensor(self.trained)
        tensors["evidence"] = torch.as_tensor(self.evidence.sums)
        tensors |= {"foreseen": self.network.foreseen, "cold": self.network.cold}
        if self._online is not None:
            for name, parameter in self.network.named_parameters():
                moments = self._online.state.get(parameter, {})
                tensors |= {f"online.{key}.{name}": moment for key, moment in moments.items()}
        state = {
            "seed": self.seed,
            "cold_offset": self.cold_offset,
            "online": self._online is not None,
            "generator": self._rng.bit_generator.state,
        }
        write_checkpoint(directory, tensors, state)

    def anew(self, seed: int) -> EncoderTrainer:
        """One for the same items and kinds that has learned nothing."""
        network = self.network
        items, dimension = len(self.trained), network.projection.weight.shape[1]
        fresh = EncoderTrainer(self.config, items=items, kinds=len(network.kind), text_dimension=dimension, seed=seed)
        fresh.cold_offset, fresh.evidence = self.cold_offset, PassEvidence(self.evidence.sums)
        return fresh

    @classmethod
    def of(
        cls,
        config: EncoderConfig,
        weights: EncoderWeights,
        trained: npt.NDArray[np.bool_],
        *,
        seed: int,
    ) -> EncoderTrainer:
        """A trainer as it stands when a fit has just ended with these served weights.

        Args:
            trained: bool[N], items that a training event named.
        """
        network = EncoderNetwork.of(weights)
        trainer = cls(
            replace(config, network=replace(network.config, dropout=config.network.dropout)),
            items=len(weights.item_id),
            kinds=len(weights.kind),
            text_dimension=len(weights.projection),
            seed=seed,
        )
        trainer._load({name: parameter.detach() for name, parameter in network.named_parameters()})
        trainer.network.foreseen.copy_(network.foreseen)
        trainer.network.cold.copy_(network.cold)
        trainer.network.eval()
        trainer.trained = trained.copy()
        trainer._average = WeightAverage(trainer.network, config.online_average, early=False)
        return trainer

    @classmethod
    def load(cls, directory: Path, config: EncoderConfig) -> EncoderTrainer:
        """The trainer that `save` wrote, under the configuration it had. Raises: CheckpointError."""
        tensors, state = read_checkpoint(directory)
        items, kinds = len(tensors["raw.item_id"]), len(tensors["raw.kind"])
        text_dimension = tensors["raw.projection.weight"].shape[1]
        network = replace(
            config.network,
            width=tensors["raw.kind"].shape[1],
            state=len(tensors["raw.recurrent"]),
            hidden=len(tensors["raw.hidden.bias"]),
        )
        config = replace(config, network=network)
        trainer = cls(config, items=items, kinds=kinds, text_dimension=text_dimension, seed=state["seed"])
        trainer._load({name.removeprefix("raw."): each for name, each in tensors.items() if name.startswith("raw.")})
        trainer.trained = tensors["trained"].numpy()
        trainer.network.foreseen.copy_(tensors["foreseen"])
        trainer.network.cold.copy_(tensors["cold"])
        trainer.cold_offset = state["cold_offset"]
        trainer.evidence = PassEvidence(tensors["evidence"].numpy())
        trainer._average = WeightAverage(trainer.network, config.online_average, early=False)
        for name in trainer._average.tensors:
            trainer._average.tensors[name] = tensors[f"average.{name}"]
        if state["online"]:
            trainer._online = trainer._optimiser(config.online_learning_rate)
            for name, parameter in trainer.network.named_parameters():
                kept = {key.split(".")[1]: each for key, each in tensors.items() if _is_moment(key, name)}
                if kept:
                    trainer._online.state[parameter] = kept
        trainer._rng.bit_generator.state = state["generator"]
        return trainer

    # reading ----------------------------------------------------------------------------------------------------------

    def served(self) -> EncoderWeights:
        """The averaged weights."""
        return to_weights(self.network, self._average.tensors, self.trained)

    @torch.no_grad()
    def users_before(self, log: TrainingLog, start: int, end: int) -> npt.NDArray[np.float32]:
        """User vectors just before each of the events [start, end), by the averaged weights.

        Returns: float32[end - start, D].
        """
        raw = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}
        self._load(self._average.tensors)
        was_training = self.network.training
        self.network.eval()
        try:
            past = histories(log, 0, end, None)
            vectors = torch.as_tensor(self.served().item_vectors(log.item_text)[:, :-1])
            chunks = cut_recent(past, start, 0, 4 * self.config.history)
            width = self.config.network.width
            users = np.ones((end - start, width + 1), np.float32)
            for first in range(0, len(chunks), 64):
                some = chunks.take(np.arange(first, min(first + 64, len(chunks))))
                self._fill(log, past, some, vectors, users, start)
            return users
        finally:
            self._load(raw)
            self.network.train(was_training)

    def _fill(
        self,
        log: TrainingLog,
        past: Histories,
        chunks: Chunks,
        vectors: Tensor,
        users: npt.NDArray[np.float32],
        start: int,
    ) -> None:
        batch = batch_of(log, past, chunks, context=self.config.history, horizon=1, discount=1.0, items=log.items)
        rows = len(chunks)
        begin = np.maximum(past.first[chunks.begin], chunks.begin - self.config.history)
        sizes = chunks.end - chunks.begin
        row = np.repeat(np.arange(rows), sizes)
        at = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes - chunks.begin, sizes)
        batch = batch._replace(point=(at - begin[row]) * rows + row)
        found = self.network.users(points(self.network, vectors, events_of(log, batch), batch)).numpy()
        event = past.event[at] - start
        users[event[event >= 0], :-1] = found[event >= 0]

    def ndcg(self, log: TrainingLog, start: int, end: int) -> float:
        """nDCG@10 of the targets among events [start, end) with frozen weights; all items, less those already had."""
        found = places(self.users_before(log, start, end), self.served().item_vectors(log.item_text), log, start, end)
        return mean_ndcg(found)


# An optimiser's first estimates of its gradients are poor.
WARM_UP_STEPS = 50
# Added to the square of the texts, which have length 1, where vectors and where biases are foreseen. New films are
# ranked best among each other with these; least error would ask for 2 of the biases (models/README.md).
RIDGES = 3.0, 0.5
# Items with fewer events than this stand for those that have none.
COLD_TOUCHES = 5
# Offsets tried for the bias of items without events, in logits: biases of a popular and a rare item are six apart.
# Two at most: where an encoder's scores mean little, no offset costs them anything.
COLD_OFFSETS = (0.0, 0.5, 1.0, 1.5, 2.0)


def _is_moment(key: str, name: str) -> bool:
    return key.startswith("online.") and key.split(".", 2)[2] == name
