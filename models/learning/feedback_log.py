"""The training log that grows from feedback records: what the user encoder learns from, with no other source.

A record tells one interaction and, in its history, those before it; what the log lacks of them is filled in. Knows no
topic, no file and no torch; embeddings of texts are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.domain.batch import PipelineOptions
from models.domain.feedback import Feedback, Past
from models.domain.ports import F32
from models.domain.state import event_hash
from models.learning.log import EventRows, TrainingLog

# What an online update looks back on at most (`EncoderConfig.replay_events`): older events are of no use to it.
CAPACITY = 500_000
# Texts of events are 1.5 KB each as embeddings: 77 MB. Events beyond them are learned from without their text.
TEXT_CAPACITY = 50_000
# Events that were turned away and must not come back with a later record's history, which reaches back 50 events.
REFUSED_CAPACITY = 100_000
_FILLED_IN = -1


class FeedbackLog:
    """Events of all users, bounded, numbered in order of arrival; what a history fills in comes before its record.

    Args:
        kinds: the served model's, the empty name first.
        options: strengths and value scale.
        text_dimension: E.
        item_ids: items that are numbered already, in the order of a model's item table.
        capacity: events kept after `trim`, the newest ones.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        options: PipelineOptions,
        text_dimension: int,
        item_ids: Sequence[str] = (),
        *,
        capacity: int = CAPACITY,
        text_capacity: int = TEXT_CAPACITY,
    ) -> None:
        self.kinds, self.capacity, self.text_capacity = tuple(kinds), capacity, text_capacity
        self._options = options
        self._rows = EventRows(kinds, options, item_ids)
        self._item_text = np.zeros((max(1_024, len(item_ids)), text_dimension), np.float32)
        self._item_mark = np.zeros(len(self._item_text), np.int64)
        self._texts: list[F32] = []
        self._event_text = np.zeros((0, text_dimension), np.float32)
        self._hashes: list[int] = []
        """Of each row's event id; a row that was filled in has none."""
        self._known: set[int] = set()
        self._place: dict[tuple[int, int, int], int] = {}
        """User, item, time -> row."""
        self._refused: dict[tuple[str, str, int], None] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def item_ids(self) -> list[str]:
        """By number."""
        return list(self._rows.items)

    @property
    def items(self) -> Mapping[str, int]:
        """Item id -> number."""
        return self._rows.items

    @property
    def log(self) -> TrainingLog:
        """Valid until the next event."""
        count = len(self._rows.items)
        self._reserve(count)
        if len(self._texts) > len(self._event_text):
            fresh = np.stack(self._texts[len(self._event_text) :])
            self._event_text = np.concatenate([self._event_text, fresh])
            self._texts = list(self._event_text)
        return self._rows.log(self._item_text[:count], self._event_text, self.kinds)

    def declare(self, item_ids: Sequence[str], item_text: F32, marks: Sequence[int] | None = None) -> None:
        """Take over catalogue entries; an item that is there already gets the new text.

        Args:
            item_text: float32[n, E], zero rows for items without text.
            marks: of what each embedding was made of, 64 bits, for `has_text`; None = nobody will ask.
        """
        numbers = [self._rows.number(item_id) for item_id in item_ids]
        self._reserve(len(self._rows.items))
        self._item_text[numbers] = item_text
        self._item_mark[numbers] = 0 if marks is None else np.asarray(marks, np.int64)

    def has_text(self, item_id: str, mark: int) -> bool:
        """Whether the item's embedding was declared with that mark."""
        at = self._rows.items.get(item_id, -1)
        return 0 <= at < len(self._item_mark) and int(self._item_mark[at]) == mark

    def number_items(self, item_ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """int32[n]; an item that is seen for the first time has no text until it is declared."""
        return np.array([self._rows.number(item_id) for item_id in item_ids], np.int32)

    def knows(self, record: Feedback) -> bool:
        """Whether the record was added before, or its event came in with another one's history."""
        if event_hash(record.event_id) in self._known:
            return True
        at = self._place.get(self._identity(record.user_id, record.item_id, record.event_time_ms))
        return at is not None and self._hashes[at] == _FILLED_IN

    def add(self, records: Sequence[Feedback], texts: Mapping[str, F32]) -> int:
        """Append records, and before all of them what their histories tell that is not here.

        Args:
            records: in the order they came; none that the log `knows`, none twice.
            texts: embedding of each text that they carry; without it an event counts without its text.
        Returns: number of the first record's event; the others follow.
        """
        own = {(record.user_id, record.item_id, record.event_time_ms) for record in records}
        for record in records:
            for past in record.history:
                self._fill_in(record.user_id, past, own)
        start = len(self._rows)
        for record in records:
            embedding = texts.get(record.text) if record.text else None
            self._rows.interaction(
                record.user_id,
                record.item_id,
                record.kind,
                record.value,
                record.event_time_ms,
                read=record.read_share,
                text=-1 if embedding is None else len(self._texts),
                # A record whose item nobody had touched is not called a first touch, since no list could foresee it;
                # the encoder, which is told of the item afterwards, can learn from it.
                first=record.first or record.item_id not in self._rows.items,
            )
            if embedding is not None:
                self._texts.append(embedding)
            hashed = event_hash(record.event_id)
            self._note(record.user_id, record.item_id, record.event_time_ms, hashed)
            self._known.add(hashed)
        return start

    def refuse(self, record: Feedback) -> None:
        """Keep the record's event out, also when later records' histories tell of it."""
        self._refused[record.user_id, record.item_id, record.event_time_ms] = None
        if len(self._refused) > REFUSED_CAPACITY:
            del self._refused[next(iter(self._refused))]

    def past_text(self, user_id: str, past: Past) -> F32 | None:
        """float32[E], what the user wrote with an event of before; None where that is not known."""
        at = self._place.get(self._identity(user_id, past[0], past[3]))
        row = -1 if at is None else int(self._rows.text[at])
        return None if row < 0 else self._texts[row]

    def forget(self, user_id: str, until_ms: int) -> int:
        """Remove the user's events dated at or before `until_ms`. Returns: how many they were."""
        for key in [key for key in self._refused if key[0] == user_id]:
            del self._refused[key]
        rows, count = self._rows, len(self._rows)
        gone = (rows.user[:count] == rows.user_number(user_id)) & (rows.time_ms[:count] <= until_ms)
        if gone.any():
            self._keep(~gone)
        return int(gone.sum())

    def trim(self) -> bool:
        """Drop the oldest events beyond the capacity, and the oldest texts beyond theirs.

        Returns: whether events have other numbers now.
        """
        count = len(self._rows)
        # A tenth more is let grow, so that the others are not moved at each call.
        if count > self.capacity + self.capacity // 10:
            kept = np.zeros(count, np.bool_)
            kept[-self.capacity :] = True
            self._keep(kept)
        if len(self._texts) > self.text_capacity + self.text_capacity // 10:
            text = self._rows.text[: len(self._rows)]
            text[text < len(self._texts) - self.text_capacity] = -1
            self._drop_texts()
        return len(self._rows) < count

    # keeping ----------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """All of it as (arrays, what fits into JSON)."""
        log, rows, count = self.log, self._rows, len(self._rows)
        arrays: dict[str, npt.NDArray[Any]] = {name: getattr(rows, name)[:count] for name in rows.COLUMNS}
        arrays |= {"hashes": np.array(self._hashes, np.int64)}
        arrays |= {"item_text": log.item_text, "event_text": self._event_text}
        arrays |= {"item_mark": self._item_mark[: len(log.item_text)]}
        refused = [list(key) for key in self._refused]
        return arrays, {"item_ids": self.item_ids, "user_ids": rows.user_ids, "refused": refused}

    @classmethod
    def restored(
        cls,
        kinds: Sequence[str],
        options: PipelineOptions,
        arrays: Mapping[str, npt.NDArray[Any]],
        names: Mapping[str, Any],
        *,
        capacity: int = CAPACITY,
        text_capacity: int = TEXT_CAPACITY,
    ) -> FeedbackLog:
        """The log that `state` described."""
        item_text = arrays["item_text"]
        log = cls(kinds, options, item_text.shape[1], capacity=capacity, text_capacity=text_capacity)
        log._rows = EventRows.restored(kinds, options, names["item_ids"], names["user_ids"], arrays)
        log._reserve(len(item_text))
        log._item_text[: len(item_text)] = item_text
        if "item_mark" in arrays:  # a former release's save has none: its texts are encoded once more
            log._item_mark[: len(item_text)] = arrays["item_mark"]
        log._event_text = np.array(arrays["event_text"])
        log._texts = list(log._event_text)
        log._hashes = arrays["hashes"].tolist()
        log._refused = dict.fromkeys((user_id, item_id, time_ms) for user_id, item_id, time_ms in names["refused"])
        log._index()
        return log

    # parts ------------------------------------------------------------------------------------------------------------

    def _fill_in(self, user_id: str, past: Past, own: set[tuple[str, str, int]]) -> None:
        item_id, kind, value, time_ms, read = past
        key = (user_id, item_id, time_ms)
        if key in own or key in self._refused or self._identity(*key) in self._place:
            return
        self._rows.interaction(user_id, item_id, kind, value, time_ms, read=read)
        self._note(user_id, item_id, time_ms, _FILLED_IN)

    def _note(self, user_id: str, item_id: str, time_ms: int, hashed: int) -> None:
        self._place[self._identity(user_id, item_id, time_ms)] = len(self._hashes)
        self._hashes.append(hashed)

    def _identity(self, user_id: str, item_id: str, time_ms: int) -> tuple[int, int, int]:
        return self._rows.user_number(user_id), self._rows.items.get(item_id, -1), time_ms

    def _keep(self, kept: npt.NDArray[np.bool_]) -> None:
        self._rows.keep(kept)
        self._hashes = np.array(self._hashes, np.int64)[kept].tolist()
        self._index()
        self._drop_texts()

    def _index(self) -> None:
        rows, count = self._rows, len(self._rows)
        columns = (rows.user[:count].tolist(), rows.item[:count].tolist(), rows.time_ms[:count].tolist())
        self._place = {key: at for at, key in enumerate(zip(*columns, strict=True))}
        self._known = set(self._hashes) - {_FILLED_IN}

    def _drop_texts(self) -> None:
        """Keep the texts that an event still names."""
        text = self._rows.text[: len(self._rows)]
        used = np.unique(text[text >= 0])
        place = np.full(len(self._texts) + 1, -1, np.int32)  # the last one is for -1
        place[used] = np.arange(len(used))
        self._rows.text[: len(self._rows)] = place[text]
        dimension = self._item_text.shape[1]
        whole = [self._texts[row] for row in used.tolist()]
        self._event_text = np.stack(whole) if whole else np.zeros((0, dimension), np.float32)
        self._texts = list(self._event_text)

    def _reserve(self, items: int) -> None:
        if items > len(self._item_text):
            more = max(items - len(self._item_text), len(self._item_text))
            self._item_text = np.pad(self._item_text, ((0, more), (0, 0)))
            self._item_mark = np.pad(self._item_mark, (0, more))
