"""What a batch costs: towers run over it, then the full softmax, or beyond a set size a sampled one.

With the full softmax every item's vector is needed and computed; with the sampled one those of the batch alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.learning.batches import Batch, Histories
from models.learning.encoder import EncoderNetwork, EventBatch
from models.learning.encoder_config import EncoderConfig
from models.learning.log import TrainingLog
from models.learning.losses import BLOCK, SoftmaxLoss, sampled_softmax_loss

I64 = npt.NDArray[np.int64]


class Objective:
    """The loss over one order of the events.

    Args:
        trained: bool[N], the items among which the right ones are to be found.
    """

    def __init__(
        self,
        network: EncoderNetwork,
        config: EncoderConfig,
        rng: np.random.Generator,
        log: TrainingLog,
        past: Histories,
        trained: npt.NDArray[np.bool_],
    ) -> None:
        self._network, self._config, self._rng, self._log = network, config, rng, log
        self._active = np.flatnonzero(trained)
        self._text = torch.as_tensor(log.item_text)
        self._text_bias = network.text_biases(self._text)  # [N]
        self._sampled = len(self._active) > config.full_softmax_items
        self._column = np.full(log.items, -1, np.int64)
        self._column[self._active] = np.arange(len(self._active))
        if self._sampled:
            counts = np.bincount(past.target_item, minlength=log.items)[self._active]
            chance = (counts + 1.0) ** config.negative_power
            self._chance = chance / chance.sum()
            self._edges = np.cumsum(self._chance)

    def loss(self, batch: Batch) -> Tensor:
        """Returns: float32[], nats."""
        return self._sampled_loss(batch) if self._sampled else self._full_loss(batch)

    def _full_loss(self, batch: Batch) -> Tensor:
        vectors = self._vectors(None)  # [N, W]
        users = self._users(vectors, batch)  # [n, D]
        biases = self._network.item_bias + self._text_bias  # [N]
        items = torch.cat([vectors, biases[:, None]], dim=1)[torch.as_tensor(self._active)]  # [A, D]
        seen = batch.seen_row * len(self._active) + self._column[batch.seen_item]
        bounds = np.searchsorted(batch.seen_row, np.arange(0, len(users) + BLOCK, BLOCK)).tolist()
        # A place without a label names some item at weight 0, which need not be among the trained ones.
        label = torch.as_tensor(np.maximum(self._column[batch.label], 0))
        weight = torch.as_tensor(batch.weight)
        loss: Tensor = SoftmaxLoss.apply(users, items, torch.as_tensor(seen), bounds, label, weight)
        return loss

    def _sampled_loss(self, batch: Batch) -> Tensor:
        draws, log_count = self._draw()  # items
        named = batch.item[batch.item < self._log.items]
        needed = np.unique(np.concatenate([named, batch.label.reshape(-1), draws]))
        local = np.full(self._log.items + 1, -1, np.int64)
        local[needed] = np.arange(len(needed))
        local[-1] = len(needed)
        rows = torch.as_tensor(needed)
        vectors = self._vectors(rows)  # [R, W]
        users = self._users(vectors, batch._replace(item=local[batch.item]))  # [n, D]
        biases = self._network.item_bias[rows] + self._text_bias[rows]  # [R]
        items = torch.cat([vectors, biases[:, None]], dim=1)  # [R, D]

        place = np.full(self._log.items, -1, np.int64)
        place[draws] = np.arange(len(draws))
        seen, own = place[batch.seen_item], place[batch.label]  # [x], [n, H]
        point = np.broadcast_to(np.arange(len(own))[:, None], own.shape)
        is_own = (own >= 0) & (batch.weight > 0)
        excluded = np.concatenate(
            [batch.seen_row[seen >= 0] * len(draws) + seen[seen >= 0], point[is_own] * len(draws) + own[is_own]]
        )
        return sampled_softmax_loss(
            users,
            items[torch.as_tensor(local[batch.label])],
            torch.as_tensor(batch.weight),
            items[torch.as_tensor(local[draws])],
            torch.as_tensor(log_count),
            torch.as_tensor(excluded),
        )

    def _draw(self) -> tuple[I64, npt.NDArray[np.float32]]:
        """Distinct items, and the log of (times drawn / expected times) of each."""
        count = self._config.negatives
        at = np.searchsorted(self._edges, self._rng.random(count) * self._edges[-1]).clip(max=len(self._edges) - 1)
        drawn, times = np.unique(at, return_counts=True)
        return self._active[drawn], np.log(times / (count * self._chance[drawn])).astype(np.float32)

    def _vectors(self, rows: Tensor | None) -> Tensor:
        kept, text = None, self._text if rows is None else self._text[rows]
        if self._config.id_dropout:
            kept = torch.from_numpy((self._rng.random((len(text), 1)) >= self._config.id_dropout).astype(np.float32))
        return self._network.item_vectors(text, kept, rows)

    def _users(self, vectors: Tensor, batch: Batch) -> Tensor:
        """float32[n, D], the bias input included."""
        events = events_of(self._log, batch)
        if self._config.kind_dropout:
            hidden = torch.from_numpy(self._rng.random(batch.kind.shape) < self._config.kind_dropout)
            events = events._replace(kind=events.kind.masked_fill(hidden, 0))
        users = self._network.users(points(self._network, vectors, events, batch))  # [n, W]
        return torch.cat([users, users.new_ones(len(users), 1)], dim=1)


def events_of(log: TrainingLog, batch: Batch) -> EventBatch:
    return EventBatch(
        item=torch.as_tensor(batch.item),
        kind=torch.as_tensor(batch.kind),
        value=torch.as_tensor(batch.value),
        gap=torch.as_tensor(batch.gap),
        sign=torch.as_tensor(batch.sign),
        text_place=torch.as_tensor(batch.text_place),
        text=torch.as_tensor(log.event_text[batch.text_row]),
    )


def points(network: EncoderNetwork, vectors: Tensor, events: EventBatch, batch: Batch) -> Tensor:
    """float32[n, S], the states that the prediction points stand on."""
    after = network.states(vectors, events)  # [T, B, S]
    states = torch.cat([after.new_zeros(1, *after.shape[1:]), after])  # [T + 1, B, S]
    return states.flatten(0, 1)[torch.as_tensor(batch.point)]
