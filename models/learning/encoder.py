"""The two-tower network: items from id and text, users from a gated recurrence over their events (torch).

For one event with item vector v, kind k, value, gap and own text:

    x      = sign(strength) * v[:W] + kind[k] + value[bucket] + gap[bucket] + text_scale[k] * (text P)
    r      = sigmoid(take(x)_r)
    z      = sigmoid(take(x)_z + s U_z)
    n      = tanh(take(x)_n + r * (s U_n + b))
    s     <- n + z * (s - n)                            unless the event says nothing: no item, no text, strength 0
    user   = skip(l) + out(relu(hidden(l))), 1          l = LayerNorm(s)

Item vector: (id + text P, bias + text q), so that retrieval is an inner product; q is not trained but settled after a
fit. A user without events is the head at state 0. An event against its item turns the item around.
Sizes of tensors stand on each line.
Source of the recurrence: Hidasi et al. 2016 (GRU4Rec); what was measured beside it: models/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.domain.ports import EventInputs
from models.learning.encoder_weights import GAP_BUCKETS, VALUE_BUCKETS, EncoderWeights, gap_bucket, value_bucket
from models.learning.gated_recurrence import GatedRecurrence

# Inputs start small beside the item's part (about 1): an event is first of all its item.
INPUT_SCALE = 0.02
# An event's text counts half an item of that text until its kind has been learned.
TEXT_SCALE = 0.5


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes; what was tried beside them stands in models/README.md."""

    width: int = 64
    # 64 is .003 nDCG behind; 128 is .001 better or none, and half a microsecond a step dearer.
    state: int = 96
    hidden: int = 128
    dropout: float = 0.2


class EventBatch(NamedTuple):
    """Histories side by side, time first: T events of B rows."""

    item: Tensor
    """int64[T, B], row of the item table; its last row (zeros) where no item is named."""
    kind: Tensor
    """int64[T, B]."""
    value: Tensor
    """int64[T, B], bucket."""
    gap: Tensor
    """int64[T, B], bucket."""
    sign: Tensor
    """float32[T, B], sign of the strength; 0 for an event that says nothing (padding too)."""
    text_place: Tensor
    """int64[P], places time * B + row of the events that have a text."""
    text: Tensor
    """float32[P, E], their embeddings."""


class Dropout(nn.Module):
    """Dropout from numpy's generator: torch's own draws a number thirty times as slowly, a tenth of a training step.

    The share dropped is rounded to 256ths, a byte an entry.
    """

    def __init__(self, share: float, rng: np.random.Generator) -> None:
        super().__init__()
        self.share = round(share * 256)
        self._rng = rng

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        drawn = np.frombuffer(self._rng.bytes(x.numel()), np.uint8)
        kept = torch.from_numpy(drawn >= self.share).view(x.shape)
        return x * kept * (256 / (256 - self.share))


class EncoderNetwork(nn.Module):
    """Weights and forward pass. Item ids and biases are given one row an item and grow with the catalogue."""

    def __init__(
        self, config: NetworkConfig, *, items: int, kinds: int, text_dimension: int, rng: np.random.Generator
    ) -> None:
        super().__init__()
        width, state = config.width, config.state
        self.config = config
        self.item_id = nn.Parameter(torch.zeros(items, width))
        self.item_bias = nn.Parameter(torch.zeros(items))
        # Chosen after a fit, so no parameters.
        self.register_buffer("foreseen", torch.zeros(text_dimension, width + 1))
        self.register_buffer("cold", torch.zeros(width + 1))
        self.projection = nn.Linear(text_dimension, width, bias=False)
        self.kind = nn.Parameter(torch.randn(kinds, width) * INPUT_SCALE)
        self.value = nn.Parameter(torch.randn(VALUE_BUCKETS, width) * INPUT_SCALE)
        self.gap = nn.Parameter(torch.randn(GAP_BUCKETS, width) * INPUT_SCALE)
        self.text_scale = nn.Parameter(torch.full((kinds, width), TEXT_SCALE))
        bound = state**-0.5  # as torch.nn.GRU starts
        self.take = nn.Linear(width, 3 * state)
        nn.init.uniform_(self.take.weight, -bound, bound)
        nn.init.uniform_(self.take.bias, -bound, bound)
        self.recurrent = nn.Parameter(torch.empty(state, 2 * state).uniform_(-bound, bound))
        self.recurrent_bias = nn.Parameter(torch.empty(state).uniform_(-bound, bound))
        self.norm = nn.LayerNorm(state)
        self.skip = nn.Linear(state, width)
        self.hidden = nn.Linear(state, config.hidden)
        self.out = nn.Linear(config.hidden, width)
        self.dropout = Dropout(config.dropout, rng)

    def item_vectors(self, item_text: Tensor, id_kept: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """
        Args:
            item_text: float32[n, E].
            id_kept: float32[n, 1], 0 where the item has to do with its text alone.
            rows: int64[n], items; None for all in order.
        Returns: float32[n, W].
        """
        own = self.item_id if rows is None else self.item_id[rows]  # [n, W]
        if id_kept is not None:
            own = own * id_kept
        told = self.projection.weight + self.foreseen[:, :-1].T  # [W, E]
        return own + functional.linear(item_text, told)

    def own(self) -> Tensor:
        """float32[N, D], of each item beyond what its text says, the bias last."""
        return torch.cat([self.item_id, self.item_bias[:, None]], dim=1)

    def text_biases(self, item_text: Tensor) -> Tensor:
        """float32[n], what the texts (float32[n, E]) say of the biases; the same throughout a fit."""
        return item_text @ self.foreseen[:, -1]

    def states(self, vectors: Tensor, events: EventBatch, start: Tensor | None = None) -> Tensor:
        """
        Args:
            vectors: float32[N, W].
            start: float32[B, S]; None for zeros.
        Returns: float32[T, B, S], after each event.
        """
        length, rows = events.item.shape
        table = functional.pad(vectors, (0, 0, 0, 1))  # [N + 1, W]
        named = events.item < len(vectors)  # [T, B]
        x = table[events.item] * events.sign.unsqueeze(-1)  # [T, B, W]
        x = x + self.kind[events.kind] + self.value[events.value] + self.gap[events.gap]
        moved = named
        if len(events.text_place):
            kind = events.kind.reshape(-1)[events.text_place]  # [P]
            own = self.projection(events.text) * self.text_scale[kind]  # [P, W]
            x = x.reshape(length * rows, -1).index_add(0, events.text_place, own).view(length, rows, -1)
            told = torch.zeros(length * rows, dtype=torch.bool)
            told[events.text_place] = True
            moved = named | told.view(length, rows)
        live = (moved & (events.sign != 0)).to(x.dtype)  # [T, B]
        taken = self.take(self.dropout(x))  # [T, B, 3 S]
        if start is None:
            start = x.new_zeros(rows, self.config.state)
        states: Tensor = GatedRecurrence.apply(start, taken, self.recurrent, self.recurrent_bias, live)
        return states

    def users(self, states: Tensor) -> Tensor:
        """
        Args:
            states: float32[n, S].
        Returns: float32[n, W], the bias input of 1 left out.
        """
        normed = self.norm(states)  # [n, S]
        inner = self.dropout(functional.relu(self.hidden(normed)))  # [n, H]
        users: Tensor = self.skip(normed) + self.out(inner)  # [n, W]
        return users

    @classmethod
    def of(cls, weights: EncoderWeights) -> EncoderNetwork:
        """A network with these weights, without dropout: to compare with, or to train on from a bundle."""
        config = NetworkConfig(
            width=weights.width,
            state=weights.state_size,
            hidden=len(weights.hidden_bias),
            dropout=0.0,
        )
        network = cls(
            config,
            items=len(weights.item_id),
            kinds=len(weights.kind),
            text_dimension=len(weights.projection),
            rng=np.random.default_rng(0),
        )
        values = {
            "item_id": weights.item_id,
            "item_bias": weights.item_bias,
            "foreseen": weights.foreseen,
            "cold": weights.cold,
            "projection.weight": weights.projection.T,
            "kind": weights.kind,
            "value": weights.value,
            "gap": weights.gap,
            "text_scale": weights.text_scale,
            "take.weight": weights.take_weight.T,
            "take.bias": weights.take_bias,
            "recurrent": weights.recurrent_weight,
            "recurrent_bias": weights.recurrent_bias,
            "norm.weight": weights.norm_weight,
            "norm.bias": weights.norm_bias,
            "skip.weight": weights.skip_weight.T,
            "skip.bias": weights.skip_bias,
            "hidden.weight": weights.hidden_weight.T,
            "hidden.bias": weights.hidden_bias,
            "out.weight": weights.out_weight.T,
            "out.bias": weights.out_bias,
        }
        network.load_state_dict({name: torch.as_tensor(value) for name, value in values.items()})
        return network.eval()

    @torch.no_grad()
    def vectors_of(self, item_text: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """`EncoderWeights.item_vectors` by the network. Returns: float32[n, D]."""
        known, text = torch.as_tensor(ids >= 0)[:, None], torch.as_tensor(item_text)
        own = self.own()[np.maximum(ids, 0)]  # [n, D]
        told = torch.cat([self.projection(text), torch.zeros(len(text), 1)], dim=1) + text @ self.foreseen  # [n, D]
        result: npt.NDArray[np.float32] = (torch.where(known, own, self.cold) + told).numpy()
        return result

    @torch.no_grad()
    def follow(
        self, inputs: EventInputs, mask: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """States and user vectors after each of T events of B users, from an empty state.

        Args:
            inputs: arrays [B, T, ...].
            mask: bool[B, T].
        Returns: (float32[B, T, S], float32[B, T, D]).
        """
        rows, length = mask.shape
        named = inputs.item.any(-1) & mask  # [B, T]
        told = inputs.text.any(-1) & mask
        table = torch.as_tensor(inputs.item[named][:, : self.config.width])  # [P, W]
        item = np.full((rows, length), len(table))
        item[named] = np.arange(len(table))
        across = told.T.reshape(-1)
        events = EventBatch(
            item=torch.as_tensor(item.T.copy()),
            kind=torch.as_tensor(inputs.kind.T.copy()),
            value=torch.as_tensor(value_bucket(inputs.value.T)),
            gap=torch.as_tensor(gap_bucket(inputs.log2_gap.T)),
            sign=torch.as_tensor(np.where(mask, np.sign(inputs.strength), 0).T.astype(np.float32)),
            text_place=torch.as_tensor(np.flatnonzero(across)),
            text=torch.as_tensor(inputs.text.transpose(1, 0, 2).reshape(rows * length, -1)[across]),
        )
        states = self.states(table, events).transpose(0, 1)  # [B, T, S]
        users = self.users(states.flatten(0, 1)).view(rows, length, -1)
        users = functional.pad(users, (0, 1), value=1.0)
        return states.numpy(), users.numpy()

    def grow(self, items: int) -> None:
        """More rows: id part and bias zero."""
        more = items - len(self.item_id)
        if more > 0:
            self.item_id = nn.Parameter(functional.pad(self.item_id.detach(), (0, 0, 0, more)))
            self.item_bias = nn.Parameter(functional.pad(self.item_bias.detach(), (0, more)))


def to_weights(network: EncoderNetwork, tensors: dict[str, Tensor], trained: npt.NDArray[np.bool_]) -> EncoderWeights:
    """numpy arrays of the network's parameters, or of their averages.

    Args:
        tensors: by parameter name.
        trained: bool[N]; the others have the own part of a cold item.
    """
    array = {name: tensor.detach().numpy().astype("float32", copy=True) for name, tensor in tensors.items()}
    cold = network.cold.numpy().copy()
    array["item_id"][~trained], array["item_bias"][~trained] = cold[:-1], cold[-1]
    return EncoderWeights(
        item_id=array["item_id"],
        item_bias=array["item_bias"],
        cold=cold,
        foreseen=network.foreseen.numpy().copy(),
        projection=array["projection.weight"].T.copy(),
        kind=array["kind"],
        value=array["value"],
        gap=array["gap"],
        text_scale=array["text_scale"],
        take_weight=array["take.weight"].T.copy(),
        take_bias=array["take.bias"],
        recurrent_weight=array["recurrent"],
        recurrent_bias=array["recurrent_bias"],
        norm_weight=array["norm.weight"],
        norm_bias=array["norm.bias"],
        skip_weight=array["skip.weight"].T.copy(),
        skip_bias=array["skip.bias"],
        hidden_weight=array["hidden.weight"].T.copy(),
        hidden_bias=array["hidden.bias"],
        out_weight=array["out.weight"].T.copy(),
        out_bias=array["out.bias"],
    )
