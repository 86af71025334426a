"""What the past says about the next value: running means of users, items and their kin as one row of numbers.

Strictly past: `row` reads, `update` folds the event in afterwards. Knows no model; a row has `COLUMNS` numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.domain.events import Item

F32 = npt.NDArray[np.float32]

# Before the first value: the middle of the upper half, where people's values lie; worth five events.
START, START_WEIGHT = 0.8, 5.0
# Pseudo-counts of a residual's mean: three each, a linear model finds the right mixture. Its own fold uses the middle.
USER_SHRINKAGE, ITEM_SHRINKAGE = (1.0, 5.0, 20.0), (2.0, 8.0, 30.0)
# Marks of the scale: how often a user or an item passes each says more than a mean, since values crowd at the top.
# Worth 0.001 of five stars; spreads, recent residuals and what the texts were about were worth nothing.
MARKS = (0.5, 0.7, 0.9)
# Shares passing each mark before the first value, and the pseudo-counts a user's and an item's shares are drawn by.
START_PASSED = (0.95, 0.88, 0.7)
USER_MARK_SHRINKAGE, ITEM_MARK_SHRINKAGE = 3.0, 5.0
# What is said of an item's kin counts until its own values are many: like eight of them, drawn to 0 by thirty.
KIN_SHRINKAGE, KIN_WEIGHT = 30.0, 8.0
COLUMNS = 25
RECENT = 0.99
# Values sent with one time stamp that are remembered, until the next stamp.
MAX_SAME_TIME = 20
DAY_MS = 86_400_000
# Users and items remembered; the longest untouched are forgotten. Some 500 bytes each.
CAPACITY = 1_000_000


class Kin(NamedTuple):
    """What an item shares with others by what the catalogue declares; empty where it declares nothing."""

    categories: tuple[str, ...] = ()
    maker: str = ""
    """The title's first word: of what is sold mostly a brand, of what is not a word like any other."""

    @classmethod
    def of(cls, item: Item) -> Kin:
        return cls(item.categories, item.title.lower().partition(" ")[0])

    @property
    def groups(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those that it belongs to of each sort."""
        return self.categories, (self.maker,) if self.maker else ()


NO_KIN = Kin()


@dataclass(slots=True)
class _Record:
    """One user's or item's running sums; residuals are in shares of the value scale."""

    residuals: float = 0.0
    valued: int = 0
    texts: int = 0
    log_length: float = 0.0
    last_ms: int | None = None
    last_value: float | None = None
    lowest: float | None = None
    same_time: list[float] = field(default_factory=list)
    passed: list[int] = field(default_factory=lambda: [0] * len(MARKS))

    def mean(self, shrinkage: float) -> float:
        return self.residuals / (self.valued + shrinkage)


class PastValues:
    """Streaming means of values by user and item, overall, and of how a user writes."""

    def __init__(self, *, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._users: OrderedDict[str, _Record] = OrderedDict()
        self._items: OrderedDict[str, _Record] = OrderedDict()
        self._kin: tuple[OrderedDict[str, _Record], ...] = (OrderedDict(), OrderedDict())
        """By the sorts of `Kin.groups`."""
        self._sum, self._count, self._recent = START * START_WEIGHT, START_WEIGHT, START
        self._passed, self._marked = list(START_PASSED), 1

    def row(self, user_id: str, item_id: str, time_ms: int, kin: Kin = NO_KIN) -> F32:
        """float32[COLUMNS], what is known before the event; changes nothing."""
        user, item = self._users.get(user_id) or _Record(), self._items.get(item_id) or _Record()
        overall = self._sum / self._count
        together = user.same_time if user.last_ms == time_ms else []
        numbers = (
            overall,
            self._recent,
            *(user.mean(k) for k in USER_SHRINKAGE),
            *(item.mean(k) for k in ITEM_SHRINKAGE),
            math.log1p(user.valued),
            math.log1p(item.valued),
            user.log_length / (user.texts + 1),
            math.log1p(len(together)),
            -1.0 if user.last_ms is None else math.log2(1 + max(time_ms - user.last_ms, 0) / DAY_MS),
            _above(user.last_value, overall),
            sum(together) / len(together) - overall if together else 0.0,
            _above(user.lowest, overall),
            float(user.valued == 0),
            *self._marks(user, USER_MARK_SHRINKAGE),
            *self._marks(item, ITEM_MARK_SHRINKAGE),
            *self._of_kin(item, kin),
        )
        return np.array(numbers, np.float32)

    def update(
        self, user_id: str, item_id: str, time_ms: int, value: float | None, length: int, kin: Kin = NO_KIN
    ) -> None:
        """Fold one event in.

        Args:
            value: share of the value scale, 0 to 1; None where the event has none.
            length: of its text, in characters; 0 without one.
        """
        user, item = self._touch(self._users, user_id), self._touch(self._items, item_id)
        if user.last_ms != time_ms:
            user.same_time = []
        if length:
            user.texts += 1
            user.log_length += math.log1p(length)
        if value is not None:
            self._value(user, item, kin, value)
        user.last_ms = time_ms

    def _value(self, user: _Record, item: _Record, kin: Kin, value: float) -> None:
        centred = value - self._sum / self._count
        of_user, of_item = user.mean(USER_SHRINKAGE[1]), item.mean(ITEM_SHRINKAGE[1])
        # Each is credited with what the other does not explain.
        for record, residual in ((user, centred - of_item), (item, centred - of_user)):
            record.residuals += residual
            record.valued += 1
            for at, mark in enumerate(MARKS):
                record.passed[at] += value > mark
        for records, names in zip(self._kin, kin.groups, strict=True):
            for name in names:
                like = self._touch(records, name)
                like.residuals += centred - of_user
                like.valued += 1
        user.same_time = [*user.same_time, value][-MAX_SAME_TIME:]
        user.last_value = value
        user.lowest = value if user.lowest is None else min(user.lowest, value)
        self._passed = [passed + (value > mark) for passed, mark in zip(self._passed, MARKS, strict=True)]
        self._marked += 1
        self._sum, self._count = self._sum + value, self._count + 1
        self._recent = RECENT * self._recent + (1 - RECENT) * value

    def _marks(self, record: _Record, shrinkage: float) -> list[float]:
        """How far the record's share of values beyond each mark lies above everybody's, drawn to 0."""
        return [
            (own - passed / self._marked * record.valued) / (record.valued + shrinkage)
            for own, passed in zip(record.passed, self._passed, strict=True)
        ]

    def _of_kin(self, item: _Record, kin: Kin) -> list[float]:
        """What its categories and its maker say of an item, the less the more it was valued itself."""
        share, said = KIN_WEIGHT / (KIN_WEIGHT + item.valued), []
        for records, names in zip(self._kin, kin.groups, strict=True):
            known = [records[name].mean(KIN_SHRINKAGE) for name in names if name in records]
            said.append(share * sum(known) / max(1, len(known)))
        return said

    def _touch(self, records: OrderedDict[str, _Record], key: str) -> _Record:
        record = records.get(key)
        if record is None:
            record = records[key] = _Record()
            if len(records) > self._capacity:
                records.popitem(last=False)
        records.move_to_end(key)
        return record


def _above(value: float | None, overall: float) -> float:
    return 0.0 if value is None else value - overall
