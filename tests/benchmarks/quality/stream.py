"""One log of events as arrays in time order, with what every protocol asks of it. It knows no model and no data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# The parts of a log by count: weights and choices, choices only, the figures.
FIT_SHARE, TRAINED_SHARE = 0.72, 0.8


@dataclass(frozen=True, eq=False)
class Stream:
    """n events in time order over U users and N items.

    Args:
        users, items: int64[n], positions in `user_ids` and `item_ids`.
        times_ms: int64[n], never falling.
        declared: the catalogue is known from the start; else an item exists from its first event on.
    """

    name: str
    users: I64
    items: I64
    times_ms: I64
    event_ids: list[str]
    user_ids: list[str]
    item_ids: list[str]
    declared: bool

    @classmethod
    def of_records(cls, name: str, events: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]] | None) -> Stream:
        """Events and items as the lines of an events file and an items file."""
        user_at: dict[str, int] = {}
        item_at: dict[str, int] = {each["item_id"]: at for at, each in enumerate(items or ())}
        users = np.array([user_at.setdefault(each["user_id"], len(user_at)) for each in events], np.int64)
        chosen = np.array([item_at.setdefault(each["item_id"], len(item_at)) for each in events], np.int64)
        times = np.array([each["event_time_ms"] for each in events], np.int64)
        if (np.diff(times) < 0).any():
            raise ValueError(f"{name}: events out of time order")
        ids = [each["event_id"] for each in events]
        return cls(name, users, chosen, times, ids, list(user_at), list(item_at), declared=items is not None)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def catalogue_size(self) -> int:
        return len(self.item_ids)

    @property
    def fit_end(self) -> int:
        return int(FIT_SHARE * len(self))

    @property
    def trained_end(self) -> int:
        return int(TRAINED_SHARE * len(self))

    @cached_property
    def first(self) -> Bools:
        """bool[n]: the user's first event on that item."""
        pairs = self.users * self.catalogue_size + self.items
        mask = np.zeros(len(self), bool)
        mask[np.unique(pairs, return_index=True)[1]] = True
        return mask

    @cached_property
    def known_from(self) -> I64:
        """int64[N]: position of the first event at which the item can be recommended."""
        known = np.zeros(self.catalogue_size, np.int64)
        if not self.declared:
            known[:] = len(self)
            np.minimum.at(known, self.items, np.arange(len(self)) + 1)
        return known

    @cached_property
    def touches(self) -> list[I64]:
        """A user's first touches, int64[.] positions in the log each."""
        at = np.flatnonzero(self.first)
        order = np.argsort(self.users[at], kind="stable")
        ends = np.cumsum(np.bincount(self.users[at], minlength=len(self.user_ids)))[:-1]
        return list(np.split(at[order], ends))

    @cached_property
    def touched_items(self) -> list[I64]:
        """The items of `touches`."""
        return [self.items[at] for at in self.touches]

    @cached_property
    def touched(self) -> I64:
        """int64[n]: how many first touches of its user stand before the event."""
        return np.array([np.searchsorted(self.touches[u], k) for k, u in enumerate(self.users)], np.int64)

    @cached_property
    def touched_strictly(self) -> I64:
        """int64[n]: as `touched`, of strictly earlier time stamps only."""
        times = [self.times_ms[at] for at in self.touches]
        return np.array(
            [np.searchsorted(times[u], self.times_ms[k], side="left") for k, u in enumerate(self.users)], np.int64
        )

    @cached_property
    def user_events_before(self) -> I64:
        """int64[n]: how many events of its user stand before the event."""
        return _earlier(self.users)

    @cached_property
    def item_events_before(self) -> I64:
        """int64[n]: how many events on its item stand before the event."""
        return _earlier(self.items)

    def seen(self, position: int) -> I64:
        """Items on which the user has any earlier event."""
        return self.touched_items[self.users[position]][: self.touched[position]]


def _earlier(values: I64) -> I64:
    """int64[n]: how often the value stands before its place."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    within = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    out = np.empty(len(values), np.int64)
    out[order] = within
    return out


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in records))
