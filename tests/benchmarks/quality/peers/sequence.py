"""Training SASRec and GRU4Rec on a log, scoring a part of it, and going on learning from what was scored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.quality.peers.sequence_network import SequenceConfig, SequenceNetwork
from tests.benchmarks.quality.protocol import Part
from tests.benchmarks.quality.stream import F32, I64, Stream

# Batch of histories scored at once.
SCORED_ROWS = 256
CLIP = 5.0
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class OnlineConfig:
    """Learning on: every so many events some passes over the new ones, mixed with replay, weights averaged."""

    every: int = 1_000
    rate: float = 1e-3
    passes: int = 3
    replay: float = 5.0
    average: float = 0.995
    batch: int = 16
    context: int = 10


class _Chunk(NamedTuple):
    """A run of one user's items: `items[0]` is his touch number `start`."""

    user: int
    start: int
    items: I64


class _Order(NamedTuple):
    """A pass's order: chunks, and places int32[U, N], which touch of the user an item is."""

    chunks: list[_Chunk]
    places: np.ndarray


def fit(
    stream: Stream,
    stop: int,
    config: SequenceConfig,
    seed: int,
    epochs: int,
    watch: Callable[[SequenceNetwork, int], bool] = lambda network, epoch: True,
) -> SequenceNetwork:
    """Train on events [0, stop). `watch` sees the network after each epoch and says whether to go on."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = SequenceNetwork(config, stream.catalogue_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    for epoch in range(1, epochs + 1):
        network.train()
        order = _shuffled(stream, stop, config, rng)
        for group in optimizer.param_groups:
            group["lr"] = config.rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / (config.epochs * 1.04)))
        _one_pass(network, optimizer, order, rng.permutation(len(order.chunks)), config.batch)
        if not watch(network, epoch):
            break
    return network


def score(network: SequenceNetwork, part: Part, positions: I64) -> Iterator[F32]:
    """Rows float32[B, N] for these events, each from the history that may be known at it."""
    window = network.config.window
    network.eval()
    for start in range(0, len(positions), SCORED_ROWS):
        asked = positions[start : start + SCORED_ROWS]
        histories = np.zeros((len(asked), window), np.int64)
        lengths = np.zeros(len(asked), np.int64)
        for row, k in enumerate(asked):
            items = part.history(k)[-window:]
            histories[row, : len(items)], lengths[row] = items, len(items)
        longest = max(1, int(lengths.max(initial=0)))
        with torch.no_grad():
            states = network(torch.as_tensor(histories[:, :longest]))
            yield network.scores(states[torch.arange(len(asked)), torch.as_tensor(lengths)]).numpy()


def stream_scores(network: SequenceNetwork, part: Part, online: OnlineConfig, seed: int) -> Iterator[F32]:
    """Rows for all of `part.scored`; under p2 the network learns on after each block, and its average is asked."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = copy.deepcopy(network)
    config = network.config
    served = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=online.rate, weight_decay=config.weight_decay)
    for before, positions in part.blocks(online.every):
        yield from score(served, part, positions)
        stop = min(before + online.every, part.stop)
        if not part.learns or stop == part.stop:
            continue
        network.train()
        for _ in range(online.passes):
            order, new = _recent(part.stream, before, stop, config, online, rng)
            replayed = rng.permutation(len(order.chunks) - new)[: int(online.replay * new)] + new
            mixed = rng.permutation(np.concatenate([np.arange(new), replayed]))
            _one_pass(network, optimizer, order, mixed, online.batch, served, online.average)


def _one_pass(
    network: SequenceNetwork,
    optimizer: torch.optim.Optimizer,
    order: _Order,
    chosen: I64,
    batch: int,
    served: SequenceNetwork | None = None,
    average: float = 0.0,
) -> None:
    for start in range(0, len(chosen), batch):
        loss = _loss(network, order, [order.chunks[at] for at in chosen[start : start + batch]])
        if loss is None:
            continue
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        if served is not None:
            with torch.no_grad():
                for kept, now in zip(served.parameters(), network.parameters(), strict=True):
                    kept.lerp_(now, 1 - average)


def _loss(network: SequenceNetwork, order: _Order, chunks: list[_Chunk]) -> Tensor | None:
    """The mean over all targets of these chunks; nothing where each is one old item without a next one."""
    longest = max(1, max(len(each.items) for each in chunks) - 1)
    histories = np.zeros((len(chunks), longest), np.int64)
    targets = np.full((len(chunks), longest + 1), -1, np.int64)  # targets[:, t] follows t items
    known = np.zeros((len(chunks), longest + 1), np.int64)  # touches of the user that the state may know
    for row, each in enumerate(chunks):
        m = len(each.items) - 1
        histories[row, :m] = each.items[:m]
        targets[row, 1 : m + 1] = each.items[1:]
        if each.start == 0:
            targets[row, 0] = each.items[0]
        known[row] = each.start + np.arange(longest + 1)
    states = network(torch.as_tensor(histories))  # B, T + 1, D
    rows, at = np.nonzero(targets >= 0)
    if not len(rows):
        return None
    wanted = torch.as_tensor(targets[rows, at])
    if network.config.seen_mask:
        users = np.array([each.user for each in chunks])
        seen = torch.as_tensor(order.places[users[rows]] < known[rows, at][:, None])  # M, N
    else:
        seen = torch.zeros((len(rows), network.items.num_embeddings), dtype=torch.bool)
    return network.loss(states[torch.as_tensor(rows), torch.as_tensor(at)], wanted, seen)


def _user_order(stream: Stream, user: int, stop: int, shuffle: bool, rng: np.random.Generator) -> tuple[I64, I64]:
    """(items, log positions) of a user's touches before `stop`; touches of one stamp in a fresh random order."""
    at = stream.touches[user]
    at = at[: np.searchsorted(at, stop)]
    if shuffle:
        at = at[np.lexsort((rng.random(len(at)), stream.times_ms[at]))]
    return stream.items[at], at


def _shuffled(stream: Stream, stop: int, config: SequenceConfig, rng: np.random.Generator) -> _Order:
    """All users' histories cut into windows at a random offset."""
    places = np.full((len(stream.user_ids), stream.catalogue_size), _NEVER, np.int32)
    chunks: list[_Chunk] = []
    for user in range(len(stream.user_ids)):
        items, _ = _user_order(stream, user, stop, config.shuffle_ties, rng)
        if not len(items):
            continue
        places[user, items] = np.arange(len(items))
        offset = int(rng.integers(0, config.window)) if len(items) > config.window else 0
        starts = sorted({0, *range(offset, len(items), config.window)})
        for start, end in zip(starts, [*starts[1:], len(items)], strict=True):
            chunks.append(_Chunk(user, start, items[start : end + 1]))
    return _Order(chunks, places)


def _recent(
    stream: Stream, start: int, stop: int, config: SequenceConfig, online: OnlineConfig, rng: np.random.Generator
) -> tuple[_Order, int]:
    """An order whose first chunks cover the events [start, stop), with a little context; and how many those are."""
    order = _shuffled(stream, stop, config, rng)
    new: list[_Chunk] = []
    for user in np.unique(stream.users[start:stop]):
        items, at = _user_order(stream, int(user), stop, False, rng)
        if not (at >= start).any():
            continue
        items = items[np.argsort(order.places[user, items], kind="stable")]
        begin = max(0, int(np.argmax(at >= start)) - online.context)
        new += [_Chunk(int(user), s, items[s : s + config.window + 1]) for s in range(begin, len(items), config.window)]
    return _Order(new + order.chunks, order.places), len(new)
