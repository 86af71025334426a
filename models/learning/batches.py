"""From a log to batches: histories by user, ties shuffled, cut into chunks of prediction points.

A point is a place before an event: what the user did until then is the input, the next few targets are the label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.learning.encoder_weights import gap_bucket, value_bucket
from models.learning.log import TrainingLog

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Histories(NamedTuple):
    """Events of a stretch of the log, user by user; axis m is the place in that order, q a target in it."""

    event: I64
    """int64[m], number in the log."""
    first: I64
    """int64[m], place of the user's first event."""
    user_start: I64
    """int64[users + 1], places where users begin, and m."""
    gap: I64
    """int64[m], bucket of the time since the user's previous event."""
    targets_before: I64
    """int64[m + 1], targets at smaller places, all users counted."""
    target_item: I64
    """int64[q], items of the targets in order."""


def histories(log: TrainingLog, begin: int, end: int, rng: np.random.Generator | None) -> Histories:
    """Sort events [begin, end) by user and time.

    Args:
        rng: shuffles a user's events of one time stamp, of which no order is known; None keeps the log's order.
    """
    user, time = log.user[begin:end], log.time_ms[begin:end]
    # Stable sorts of what is nearly in order already: a tenth of the time of one `lexsort` by both.
    order = np.argsort(time, kind="stable")
    order = order[np.argsort(user[order], kind="stable")]
    user, time = user[order], time[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = user[1:] != user[:-1]
    starts = np.flatnonzero(new)
    if rng is not None:
        later = new.copy()
        later[1:] |= time[1:] != time[:-1]
        # Stamp by stamp, within one as drawn: a single number for both, since numbers sort faster than pairs.
        order = order[np.argsort(np.cumsum(later) * len(order) + rng.permutation(len(order))[order])]
    seconds = np.diff(time, prepend=time[:1]).astype(np.float64) / 1_000.0
    log2_gap = np.log2(1.0 + np.maximum(seconds, 0.0))
    event = (order + begin).astype(np.int64)
    is_target = log.target[event] & (log.item[event] >= 0)
    return Histories(
        event=event,
        first=np.repeat(starts, np.diff(np.append(starts, len(order)))),
        user_start=np.append(starts, len(order)),
        gap=gap_bucket(np.where(new, -1.0, log2_gap).astype(np.float32)),
        targets_before=np.concatenate([[0], np.cumsum(is_target)]).astype(np.int64),
        target_item=log.item[event[is_target]].astype(np.int64),
    )


class Chunks(NamedTuple):
    """Stretches of prediction points of one user each."""

    begin: I64
    """int64[c], place of the first event to foresee."""
    end: I64
    """int64[c], place after the last one."""

    def __len__(self) -> int:  # chunks, not fields
        return len(self.begin)

    def take(self, rows: I64) -> Chunks:
        return Chunks(self.begin[rows], self.end[rows])


def cut(past: Histories, length: int, rng: np.random.Generator) -> Chunks:
    """All points of all users in chunks of at most `length`, the cuts elsewhere each time."""
    starts, ends = past.user_start[:-1], past.user_start[1:]
    sizes = ends - starts
    return _pieces(starts, np.where(sizes > length, rng.integers(1, length + 1, len(sizes)), sizes), ends, length)


def cut_recent(past: Histories, since: int, context: int, length: int) -> Chunks:
    """The points of events numbered `since` and later, and `context` points before each user's first one of them."""
    new = np.flatnonzero(past.event >= since)
    starts, at = np.unique(past.first[new], return_index=True)  # of the users who have some
    begins = np.maximum(starts, new[at] - context)
    ends = past.user_start[np.searchsorted(past.user_start, starts, side="right")]
    return _pieces(begins, np.full(len(begins), length), ends, length)


def _pieces(begins: I64, first: I64, ends: I64, length: int) -> Chunks:
    """Stretches in pieces: the first one `first` long, the others `length`, and the last as long as is left."""
    pieces = 1 + -(-np.maximum(ends - begins - first, 0) // length)
    row = np.repeat(np.arange(len(begins)), pieces)
    number = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = begins[row] + np.where(number == 0, 0, first[row] + (number - 1) * length)
    return Chunks(begin, np.minimum(begins[row] + first[row] + number * length, ends[row]))


class Batch(NamedTuple):
    """Arrays of some chunks: T input events of B rows (time first), and n prediction points."""

    item: I64
    """int64[T, B], item or the number of items where there is none."""
    kind: I64
    value: I64
    gap: I64
    sign: F32
    """float32[T, B], sign of the strength; 0 in padding."""
    text_place: I64
    """int64[P], time * B + row."""
    text_row: I64
    """int64[P], row of the log's `event_text`."""
    point: I64
    """int64[n], place (time * B + row) in the states, state 0 being the one before the first event."""
    label: I64
    """int64[n, H], items."""
    weight: F32
    """float32[n, H], a row sums to one."""
    seen_row: I64
    """int64[x], prediction point; ascending."""
    seen_item: I64
    """int64[x], an item that the user had at that point."""


def batch_of(
    log: TrainingLog, past: Histories, chunks: Chunks, *, context: int, horizon: int, discount: float, items: int
) -> Batch:
    """
    Args:
        context: events read before a chunk's first point, at least one.
        horizon: targets that a label holds, each weighing `discount` times the one before.
        items: number of items in the table.
    """
    rows = len(chunks)
    begin = np.maximum(past.first[chunks.begin], chunks.begin - context)  # place of the first input event
    inputs = chunks.end - 1 - begin  # the last point's own event is never an input
    steps = int(inputs.max(initial=0))
    time = np.arange(max(steps, 1))[:, None]  # [T, 1]
    live = time < inputs  # [T, B]
    place = np.minimum(begin + time, len(past.event) - 1)  # [T, B]
    event = past.event[place]
    item = np.where(live & (log.item[event] >= 0), log.item[event], items).astype(np.int64)
    text = np.where(live, log.text[event], -1).reshape(-1)
    told = np.flatnonzero(text >= 0)

    sizes = chunks.end - chunks.begin
    row = np.repeat(np.arange(rows), sizes)
    at = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes - chunks.begin, sizes)  # place of each point
    next_target = past.targets_before[at]
    stop = np.searchsorted(past.user_start, at, side="right")
    last_target = past.targets_before[past.user_start[stop]]
    some = next_target < last_target
    row, at, next_target, last_target = row[some], at[some], next_target[some], last_target[some]
    ahead = next_target[:, None] + np.arange(horizon)  # [n, H]
    there = ahead < last_target[:, None]
    weight = np.where(there, discount ** np.arange(horizon), 0.0)
    label = past.target_item[np.where(there, ahead, 0)] if len(past.target_item) else np.zeros_like(ahead)

    first_target = past.targets_before[past.first[at]]
    known = next_target - first_target
    seen_row = np.repeat(np.arange(len(at)), known)
    seen = np.arange(len(seen_row)) - np.repeat(np.cumsum(known) - known - first_target, known)
    return Batch(
        item=item,
        kind=log.kind[event].astype(np.int64),
        value=value_bucket(log.value[event]),
        gap=past.gap[place],
        sign=np.where(live, np.sign(log.strength[event]), 0).astype(np.float32),
        text_place=told,
        text_row=text[told].astype(np.int64),
        point=(at - begin[row]) * rows + row,
        label=np.where(there, label, 0),
        weight=(weight / weight.sum(1, keepdims=True)).astype(np.float32),
        seen_row=seen_row,
        seen_item=past.target_item[seen],
    )
