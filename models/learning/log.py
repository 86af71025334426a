"""The training log: events as arrays in time order, the catalogue's texts beside them. Knows no file and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.domain.batch import PipelineOptions
from models.domain.events import Event, Hide, Interaction, Search, encoded_text
from models.domain.ports import F32, NO_VALUE
from models.domain.slices import HIDE_STRENGTH, SEARCH_STRENGTH


@dataclass(frozen=True)
class TrainingLog:
    """Events in time order; axis n is the event, N the item, M the event text, E the text embedding."""

    user: npt.NDArray[np.int32]
    """int32[n]."""
    item: npt.NDArray[np.int32]
    """int32[n], -1 for an event that names no item (search)."""
    kind: npt.NDArray[np.int32]
    """int32[n], index into `kinds`; 0 = a kind that is not declared."""
    strength: npt.NDArray[np.float32]
    """float32[n], how strongly the event speaks for the item; negative speaks against it (hide)."""
    value: npt.NDArray[np.float32]
    """float32[n], share of the value scale, 0 to 1, given or read from the text; -1 where there is neither."""
    time_ms: npt.NDArray[np.int64]
    """int64[n], never falling."""
    text: npt.NDArray[np.int32]
    """int32[n], row of `event_text`, -1 for an event without text."""
    target: npt.NDArray[np.bool_]
    """bool[n], a user's first touch of an item: what lists are made to foresee."""
    item_text: npt.NDArray[np.float32]
    """float32[N, E], L2-normalised; a zero row for an item without text."""
    event_text: npt.NDArray[np.float32]
    """float32[M, E], L2-normalised."""
    kinds: tuple[str, ...]
    """Names by index; the first is the empty name."""

    @property
    def items(self) -> int:
        return len(self.item_text)

    def __len__(self) -> int:  # events, not fields
        return len(self.user)

    def until(self, end: int) -> TrainingLog:
        """What was known before event `end`; items and texts stay."""
        return replace(self, **{name: getattr(self, name)[:end] for name in EventRows.COLUMNS})


class EventRows:
    """Events as columns that grow one event at a time; users and items are numbered in order of appearance.

    Args:
        kinds: the empty name first; a kind that is not among them is 0.
        options: strengths and value scale.
        item_ids: items that are numbered before any event.
    """

    COLUMNS = ("user", "item", "kind", "strength", "value", "time_ms", "text", "target")

    def __init__(self, kinds: Sequence[str], options: PipelineOptions, item_ids: Sequence[str] = ()) -> None:
        self.options = options
        self.items: dict[str, int] = {}
        """Item id -> number."""
        for item_id in item_ids:
            self.items.setdefault(item_id, len(self.items))
        self._kinds = {kind: at for at, kind in enumerate(kinds)}
        self._users: dict[str, int] = {}
        self._touched: set[tuple[int, int]] = set()
        self._count = 0
        room = 1_024
        self.user, self.item, self.kind = (np.empty(room, np.int32) for _ in range(3))
        self.strength, self.value = np.empty(room, np.float32), np.empty(room, np.float32)
        self.time_ms, self.text = np.empty(room, np.int64), np.empty(room, np.int32)
        self.target = np.empty(room, np.bool_)

    def __len__(self) -> int:
        return self._count

    def number(self, item_id: str) -> int:
        """The item's number, given out at the first sight of its id."""
        return self.items.setdefault(item_id, len(self.items))

    def interaction(
        self,
        user_id: str,
        item_id: str,
        kind: str,
        value: float | None,
        time_ms: int,
        *,
        read: float | None = None,
        text: int = -1,
        first: bool = True,
    ) -> None:
        """
        Args:
            read: share of the value scale, read from the text where the user gave none.
            text: row of the event's text.
            first: False where the user is known to have had the item, though no row says so.
        """
        options = self.options
        share = read if value is None and read is not None else options.share(value)
        user, item = self._user(user_id), self.number(item_id)
        pair = (user, item)
        target = first and pair not in self._touched
        self._touched.add(pair)
        self._append(user, item, kind, options.strength(kind, value), share, time_ms, text, target)

    def other(self, user_id: str, item_id: str | None, kind: str, strength: float, time_ms: int, text: int) -> None:
        """An event that is no interaction: nobody foresees it."""
        item = -1 if item_id is None else self.number(item_id)
        self._append(self._user(user_id), item, kind, strength, NO_VALUE, time_ms, text, False)

    def keep(self, kept: npt.NDArray[np.bool_]) -> None:
        """Drop the other rows, and what is known of users without a row; items keep their numbers."""
        rows = np.flatnonzero(kept)
        self._count = len(rows)
        for name in self.COLUMNS:
            setattr(self, name, getattr(self, name)[rows])
        present = set(self.user.tolist())
        # Renumbered: a number is never given out twice at a time, and the table of users stays as long as the log.
        names = [user_id for user_id, user in self._users.items() if user in present]
        renumbered = {self._users[user_id]: at for at, user_id in enumerate(names)}
        self.user = np.array([renumbered[user] for user in self.user.tolist()], np.int32)
        self._users = {user_id: at for at, user_id in enumerate(names)}
        self._touched = set(zip(self.user.tolist(), self.item.tolist(), strict=True))

    def user_number(self, user_id: str) -> int:
        """-1 for a user without a row."""
        return self._users.get(user_id, -1)

    @property
    def user_ids(self) -> list[str]:
        """By number."""
        return list(self._users)

    @classmethod
    def restored(
        cls,
        kinds: Sequence[str],
        options: PipelineOptions,
        item_ids: Sequence[str],
        user_ids: Sequence[str],
        columns: Mapping[str, npt.NDArray[Any]],
    ) -> EventRows:
        """The rows that these columns were read from."""
        rows = cls(kinds, options, item_ids)
        rows._users = {user_id: at for at, user_id in enumerate(user_ids)}
        for name in cls.COLUMNS:
            setattr(rows, name, np.array(columns[name], getattr(rows, name).dtype))
        rows._count = len(rows.user)
        rows._touched = set(zip(rows.user.tolist(), rows.item.tolist(), strict=True))
        return rows

    def log(self, item_text: F32, event_text: F32, kinds: Sequence[str]) -> TrainingLog:
        """Views of the columns: valid until the next event."""
        end = self._count
        return TrainingLog(
            user=self.user[:end],
            item=self.item[:end],
            kind=self.kind[:end],
            strength=self.strength[:end],
            value=self.value[:end],
            time_ms=self.time_ms[:end],
            text=self.text[:end],
            target=self.target[:end],
            item_text=item_text,
            event_text=event_text,
            kinds=tuple(kinds),
        )

    def _user(self, user_id: str) -> int:
        return self._users.setdefault(user_id, len(self._users))

    def _append(
        self, user: int, item: int, kind: str, strength: float, value: float, time_ms: int, text: int, target: bool
    ) -> None:
        at = self._count
        if at == len(self.user):
            for name in self.COLUMNS:
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.empty(max(1_024, at), column.dtype)]))
        self.user[at], self.item[at], self.kind[at] = user, item, self._kinds.get(kind, 0)
        self.strength[at], self.value[at], self.time_ms[at] = strength, value, time_ms
        self.text[at], self.target[at] = text, target
        self._count = at + 1


class LogBuilder:
    """Builds the log of a list of events; items are numbered as a catalogue numbers them: declared ones first.

    Args:
        item_ids: of the declared items, in order.
        item_text: float32[declared, E].
        texts: embedding of each text that the events carry.
    """

    def __init__(
        self,
        events: Sequence[Event],
        item_ids: Sequence[str],
        item_text: F32,
        texts: Mapping[str, F32],
        kinds: Sequence[str],
        options: PipelineOptions,
    ) -> None:
        self.kinds = tuple(kinds)
        self._declared = len(item_ids)
        rows = EventRows(kinds, options, item_ids)
        places = {text: at for at, text in enumerate(texts)}
        for event in events:
            words = encoded_text(event)
            text = places.get(words, -1) if words else -1
            user_id, time_ms = str(event.user_id), event.event_time_ms
            if isinstance(event, Interaction):
                rows.interaction(user_id, str(event.item_id), event.type, event.value, time_ms, text=text)
            elif isinstance(event, Hide):
                rows.other(user_id, str(event.item_id), event.type, HIDE_STRENGTH, time_ms, text)
            else:
                strength = SEARCH_STRENGTH if isinstance(event, Search) else 0.0
                rows.other(user_id, None, event.type, strength, time_ms, text)
        self.item_ids = list(rows.items)
        dimension = item_text.shape[1]
        all_items = np.zeros((len(rows.items), dimension), np.float32)
        all_items[: self._declared] = item_text
        event_text = np.stack(list(texts.values())) if texts else np.zeros((0, dimension), np.float32)
        self._log = log = rows.log(all_items, event_text, kinds)
        # Items there are before event k: the declared ones and those that an earlier event named.
        latest = np.maximum.accumulate(np.maximum(log.item, self._declared - 1)) if len(log) else log.item
        self._items_after = latest + 1

    def fill(self, read: Mapping[int, float]) -> None:
        """Take over values read from the texts of events that carry none: position -> share of the value scale."""
        self._log.value[list(read)] = list(read.values())

    def until(self, end: int) -> TrainingLog:
        """The log as it was before event `end`: nothing in it is from later."""
        log = self._log
        items = int(self._items_after[end - 1]) if end else self._declared
        events = {name: getattr(log, name)[:end] for name in EventRows.COLUMNS}
        return replace(log, **events, item_text=log.item_text[:items])
