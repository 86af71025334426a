"""What a folded slice asks for: its lists, in the order of the log, with all that playing and writing them takes.

Filled by `slices` while it folds; `playing` and `writing` read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.domain.state import NO_ITEMS, Recent, RecentItems, UserState


class Row(NamedTuple):
    """One list to make."""

    position: int
    state: UserState
    after: bool
    """Whether the list is made of the user as the record left him, or as it found him."""
    now_ms: int
    last_ms: int
    recent: RecentItems
    excluded: npt.NDArray[np.int32]
    history: int
    """Events the user had had by then."""
    chosen: int
    """Distinct items he had chosen."""
    length: int
    sequence: int = 0
    recommendation_id: str = ""
    interactions: Sequence[Recent] = ()
    """What the user had done by then."""
    target: int = -1
    """What was chosen of the list, where it is asked just before a choice."""
    travels: bool = False
    """Whether its candidates go into the feedback."""


class Choice(NamedTuple):
    """A first choice of a known item, to be scored once the slice's lists are known."""

    position: int
    item: int
    cold: bool
    asked_row: int
    asked_fresh: bool
    published_row: int
    """Row of the user's list published earlier in this slice, -1 = the stored one."""
    stored_items: tuple[str, ...]
    stored_model: str


class Moment(NamedTuple):
    """One entry of the timeline."""

    ask_row: int = -1
    ask_fresh: bool = False
    target: int = -1
    counts: bool = False
    publish_row: int = -1
    item: int = -1
    event_time_ms: int = 0
    value: float = 0.0
    first: bool = False
    strong: bool = False
    recent: RecentItems = NO_ITEMS
    tag: int = 0
    chosen: int = 0
    since_ms: int = -1
    person: int = 0


class Agenda:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.moments: list[Moment] = []
        self.choices: list[Choice] = []
        self.people: dict[str, int] = {}
        """Row of each user in the slice's `People`."""
        self.last_row: dict[str, int] = {}
        """Row of each user's list published last."""

    def person(self, user_id: str) -> int:
        return self.people.setdefault(user_id, len(self.people))

    @property
    def published_just_before(self) -> int:
        """Row of the list that the last moment published, -1 = none."""
        return self.moments[-1].publish_row if self.moments else -1
