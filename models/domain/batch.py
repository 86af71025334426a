"""What goes into a micro-batch and what comes out of it, with the settings it is played under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.domain.events import DEFAULT_LIST_LENGTH, Event, Request
from models.domain.feedback import Record
from models.domain.ports import NO_VALUE
from models.domain.state import UserState
from models.domain.statistics import Touches

# Outcomes of a record. The first three leave their mark in the user's state; late and future ones become dead letters.
FOLDED, REPLAYED, DUPLICATE = "folded", "replayed", "duplicate"
FORGOTTEN, LATE, FUTURE = "dropped_forgotten", "late", "future"

# Values are read on a five-point scale unless the settings say otherwise.
DEFAULT_VALUE_SCALE = 5.0


class Incoming(NamedTuple):
    """One decoded record with where it stands in the user's log."""

    event: Event | Request
    log: str
    """Name of the log partition that numbers it (topic, incarnation, partition): its origin, when it was forwarded."""
    offset: int
    counted: bool = True
    """Whether the statistics still lack it (its offset is at or above their high water)."""
    record_time_ms: int = -1
    """Kafka's own stamp, -1 when there is none."""


class PipelineOptions(NamedTuple):
    strengths: Mapping[str, float]
    repeatable_kinds: frozenset[str] = frozenset()
    """Kinds after which an item may be recommended again."""
    list_length: int = DEFAULT_LIST_LENGTH
    allowed_lateness_ms: int = 86_400_000
    max_future_ms: int = 300_000
    asked_share: float = 1.0
    """Share of choices (by hash of the event id) before which a list is asked, scored and learned from."""
    value_scale: float = DEFAULT_VALUE_SCALE
    learn: bool = True
    counts: bool = True
    """False freezes the statistics (protocol P1)."""
    publish: bool = True
    """False folds with outputs muted (rebuild)."""
    examples: bool = False
    """True keeps what a ranker learns from."""
    feedback: bool = False
    """True tells of every interaction folded what led to it. What is served stays the same to the bit."""
    candidates_share: float = 1.0
    """Share of asked lists (by hash of the event id) whose candidates travel with the feedback. Above 0, every feature
    of those lists is computed and habits are kept, also where the served ranker reads none of that."""

    def share(self, value: float | None) -> float:
        """The value as a share of its scale, 0 to 1; NO_VALUE where there is none."""
        return NO_VALUE if value is None else min(max(value / self.value_scale, 0.0), 1.0)

    def liking(self, kind: str, value: float | None) -> float:
        """How much an interaction says that the user liked the item, 0 to 1."""
        if value is not None:
            return self.share(value)
        return min(self.strengths.get(kind, 1.0) / 3.0, 1.0)

    def strength(self, kind: str, value: float | None) -> float:
        """How far an interaction moves the state: a low rating still says what the user looks at, at a quarter."""
        return self.strengths.get(kind, 1.0) * (1.0 if value is None else 0.25 + 0.75 * self.liking(kind, value))


ScoredList = Literal["asked", "last_published", "shadow"]


class Score(NamedTuple):
    """The online metric at one event."""

    position: int
    list: ScoredList
    """Asked just before the event, published last before it, or asked before the batch of two models on trial."""
    model_version: str
    cold: bool
    place: int
    """1-based place of the chosen item, 0 = not in the list."""


class Published(NamedTuple):
    """A list made for the record at `position`."""

    position: int
    user_id: str
    data: bytes
    spread: float | None
    """Score of its first item less that of its last one; None for an empty list."""


class Examples(NamedTuple):
    """Lists asked just before a choice that hold what was chosen; E of them."""

    position: npt.NDArray[np.int64]
    """int64[E], of the record in the batch."""
    features: npt.NDArray[np.float32]
    """float32[E, K, F], zero rows behind `size`."""
    size: npt.NDArray[np.int32]
    chosen: npt.NDArray[np.int32]
    """int32[E], place of the chosen item among the candidates."""
    asked: npt.NDArray[np.int64]
    """int64[*], records before which a list was asked, whether it held the chosen item or not."""
    reached: npt.NDArray[np.int64]
    """int64[SOURCE_COUNT], in how many of `reachable` lists the source came to the chosen item."""
    reachable: int


class Told(NamedTuple):
    """What a trainer is told of the record at `position`."""

    position: int
    record: Record


class BatchResult:
    """What a batch leads to."""

    def __init__(self, records: int) -> None:
        self.outcomes: list[str] = [""] * records
        self.details: dict[int, str] = {}
        """Why a late or future record becomes a dead letter, by position."""
        self.states: dict[str, UserState] = {}
        """New states of all users the batch names, to be stored before anything is published."""
        self.published: list[Published] = []
        self.republish: dict[str, bytes] = {}
        """Newest stored lists of users of whom a record was replayed: the crash may have lost them."""
        self.forgotten: set[str] = set()
        self.scores: list[Score] = []
        self.asked: dict[int, tuple[str, ...]] = {}
        """Item ids of the list asked just before the record, by position."""
        self.last_published: dict[int, tuple[str, ...]] = {}
        self.touches: list[Touches] = []
        self.touch_positions: list[int] = []
        """The records that entered the statistics, in the order of `touches`."""
        self.examples: list[Examples] = []
        self.feedback: list[Told] = []
        """In the order of the records."""
        self.weights: npt.NDArray[np.float64] | None = None
        self.squares: npt.NDArray[np.float64] | None = None
        """How far the adaptive weights and their squared gradients moved; None for a ranker with weights of its own."""
