"""The training log: events as arrays in time order, the catalogue's texts beside them. Knows no file and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.domain.batch import PipelineOptions
from models.domain.events import Event, Hide, Interaction, Search, encoded_text
from models.domain.ports import F32
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
        self.item_ids, self.kinds = list(item_ids), tuple(kinds)
        self._declared = len(item_ids)
        kind_index = {kind: at for at, kind in enumerate(kinds)}
        items = {item_id: at for at, item_id in enumerate(item_ids)}
        users: dict[str, int] = {}
        places = {text: at for at, text in enumerate(texts)}
        touched: set[tuple[int, int]] = set()
        n = len(events)
        user, item, kind = np.zeros(n, np.int32), np.full(n, -1, np.int32), np.zeros(n, np.int32)
        strength, value, text = np.zeros(n, np.float32), np.zeros(n, np.float32), np.full(n, -1, np.int32)
        time_ms, target = np.zeros(n, np.int64), np.zeros(n, np.bool_)
        for at, event in enumerate(events):
            user[at] = users.setdefault(str(event.user_id), len(users))
            time_ms[at], value[at], kind[at] = event.event_time_ms, -1.0, kind_index.get(event.type, 0)
            words = encoded_text(event)
            text[at] = places.get(words, -1) if words else -1
            if isinstance(event, Interaction | Hide):
                item[at] = items.setdefault(str(event.item_id), len(items))
            if isinstance(event, Interaction):
                strength[at], value[at] = options.strength(event.type, event.value), options.share(event.value)
                pair = (int(user[at]), int(item[at]))
                target[at] = pair not in touched
                touched.add(pair)
            elif isinstance(event, Hide):
                strength[at] = HIDE_STRENGTH
            elif isinstance(event, Search):
                strength[at] = SEARCH_STRENGTH
        self.item_ids += list(items)[self._declared :]
        dimension = item_text.shape[1]
        all_items = np.zeros((len(items), dimension), np.float32)
        all_items[: self._declared] = item_text
        event_text = np.stack(list(texts.values())) if texts else np.zeros((0, dimension), np.float32)
        self._log = TrainingLog(
            user, item, kind, strength, value, time_ms, text, target, all_items, event_text, tuple(kinds)
        )
        # Items there are before event k: the declared ones and those that an earlier event named.
        latest = np.maximum.accumulate(np.maximum(item, self._declared - 1)) if n else item
        self._items_after = latest + 1

    def fill(self, read: Mapping[int, float]) -> None:
        """Take over values read from the texts of events that carry none: position -> share of the value scale."""
        self._log.value[list(read)] = list(read.values())

    def until(self, end: int) -> TrainingLog:
        """The log as it was before event `end`: nothing in it is from later."""
        log = self._log
        items = int(self._items_after[end - 1]) if end else self._declared
        return replace(
            log,
            user=log.user[:end],
            item=log.item[:end],
            kind=log.kind[:end],
            strength=log.strength[:end],
            value=log.value[:end],
            time_ms=log.time_ms[:end],
            text=log.text[:end],
            target=log.target[:end],
            item_text=log.item_text[:items],
        )
