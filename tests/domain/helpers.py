"""A small real encoder and ranker in numpy, and short ways to build catalogues, records and pipelines from them.

Every operation works row by row, so that a batch of n gives to the bit what n batches of one give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.domain.batch import BatchResult, Incoming, PipelineOptions
from models.domain.candidates import SOURCE_COUNT
from models.domain.catalogue import Catalogue
from models.domain.events import (
    INTERACTION_STRENGTHS,
    Event,
    Forget,
    Hide,
    Interaction,
    Item,
    Recommendation,
    Request,
    Search,
)
from models.domain.features import BASE_FEATURES, FEATURES
from models.domain.feedback import FEEDBACK_VERSION, Candidates, Feedback, Past
from models.domain.pipeline import Pipeline
from models.domain.ports import F32, EventInputs
from models.domain.ranking import bootstrap_weights
from models.domain.state import UserState, pack
from models.domain.statistics import PAIR_WINDOW, Statistics, Touches

WIDTH = 8
LOG = "events@1/0"
START_MS = 1_700_000_000_000
OPTIONS = PipelineOptions(strengths=INTERACTION_STRENGTHS)


class BankEncoder:
    """Two moving averages of strength times (item + text); the user vector is their mean, with a one for the bias."""

    dimension = WIDTH + 1
    text_dimension = WIDTH
    state_size = 2 * WIDTH
    kinds = ("", *INTERACTION_STRENGTHS, "search", "hide")

    def initial_state(self) -> F32:
        return np.zeros(self.state_size, np.float32)

    def initial_user(self) -> F32:
        return np.zeros(self.dimension, np.float32)

    def step(self, state: F32, inputs: EventInputs) -> tuple[F32, F32]:
        said = inputs.strength[:, None] * (inputs.item[:, :-1] + inputs.text)
        weight = np.abs(inputs.strength)[:, None]
        fast, slow = state[:, :WIDTH], state[:, WIDTH:]
        fast = fast + np.float32(0.2) * (said - weight * fast)
        slow = slow + np.float32(0.02) * (said - weight * slow)
        user = np.concatenate([(fast + slow) / 2, np.ones((len(state), 1), np.float32)], axis=1)
        return np.concatenate([fast, slow], axis=1).astype(np.float32), user.astype(np.float32)

    def sequence(self, state: F32, inputs: EventInputs, mask: npt.NDArray[np.bool_]) -> tuple[F32, F32]:
        user = np.zeros((len(state), self.dimension), np.float32)
        for t in range(mask.shape[1]):
            stepped, users = self.step(state, EventInputs(*(field[:, t] for field in inputs)))
            state, user = np.where(mask[:, t, None], stepped, state), np.where(mask[:, t, None], users, user)
        return state, user


class LogLinearRanker:
    """Weighted sum of the features, with the caller's weights or, where `own` are given, with those."""

    features = BASE_FEATURES
    candidates = 0
    source_weights: F32 | None = None

    def __init__(self, own: npt.ArrayLike | None = None) -> None:
        self._own = None if own is None else np.asarray(own, np.float32)

    @property
    def initial_weights(self) -> F32 | None:
        return None if self._own is not None else np.array(bootstrap_weights(), np.float32)

    def score(self, features: F32, weights: F32 | None) -> F32:
        used = self._own if weights is None else weights[:, None, :]
        return np.asarray((features * used).sum(axis=-1), np.float32)


class LearnedRanker(LogLinearRanker):
    """Reads every feature, as a trained one does; its weights are drawn once."""

    features = FEATURES
    candidates = 40
    source_weights: F32 | None = np.linspace(0.1, 1.0, SOURCE_COUNT).astype(np.float32)

    def __init__(self) -> None:
        super().__init__(np.random.default_rng(1).normal(size=len(FEATURES)) * 0.1)


def text_vector(text: str) -> F32:
    """A unit vector that only the text decides."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    vector = np.random.default_rng(seed).normal(size=WIDTH)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def declare(catalogue: Catalogue, item_id: str, *, vector: bool = True, **fields: Any) -> int:
    """Put an item into the catalogue, with a vector that its id decides."""
    at = catalogue.declare(Item(item_id=item_id, **fields))
    if vector:
        catalogue.set_vectors([at], np.append(text_vector(item_id), np.float32(0.0))[None])
    return at


def catalogue_of(items: int | Iterable[str], **fields: Any) -> Catalogue:
    """Declared items (i0, i1, ... where a number is given), each with a vector."""
    catalogue = Catalogue(BankEncoder.dimension)
    for item_id in [f"i{n}" for n in range(items)] if isinstance(items, int) else items:
        declare(catalogue, item_id, **fields)
    return catalogue


def make_pipeline(
    catalogue: Catalogue | None = None,
    *,
    options: PipelineOptions = OPTIONS,
    model_version: str = "m1",
    ranker: LogLinearRanker | None = None,
    statistics: Statistics | None = None,
) -> Pipeline:
    return Pipeline(
        encoder=BankEncoder(),
        ranker=ranker or LogLinearRanker(),
        model_version=model_version,
        options=options,
        catalogue=catalogue_of(30) if catalogue is None else catalogue,
        statistics=statistics,
    )


def click(
    user: str, item: str, at: int, *, event_id: str | None = None, kind: str = "click", **fields: Any
) -> Interaction:
    """`at` in seconds after START_MS."""
    return Interaction(
        type=kind,
        event_id=event_id or f"{user}-{item}-{at}",
        user_id=user,
        item_id=item,
        event_time_ms=START_MS + at * 1_000,
        **fields,
    )


def hide(user: str, item: str, at: int) -> Hide:
    return Hide(type="hide", event_id=f"hide-{user}-{item}-{at}", user_id=user, item_id=item, event_time_ms=ms(at))


def search(user: str, text: str, at: int) -> Search:
    return Search(type="search", event_id=f"search-{user}-{at}", user_id=user, text=text, event_time_ms=ms(at))


def forget(user: str, at: int) -> Forget:
    return Forget(type="forget", event_id=f"forget-{user}-{at}", user_id=user, event_time_ms=ms(at))


def request(user: str, at: int | None = None, *, request_id: str = "r1", **fields: Any) -> Request:
    return Request(request_id=request_id, user_id=user, event_time_ms=None if at is None else ms(at), **fields)


def ms(at: int) -> int:
    return START_MS + at * 1_000


def records(events: Sequence[Event | Request], *, start: int = 0, log: str = LOG) -> list[Incoming]:
    return [Incoming(event, log, offset) for offset, event in enumerate(events, start)]


def told_click(
    number: int, user: str, item: str, *, history: tuple[Past, ...] = (), candidates: Candidates | None = None
) -> Feedback:
    """What a trainer is told of a click on an item that is new to the user."""
    return Feedback(
        version=FEEDBACK_VERSION,
        model_version="m",
        event_id=f"e{number}",
        user_id=user,
        item_id=item,
        kind="click",
        value=None,
        event_time_ms=number,
        text=None,
        read_share=None,
        first=True,
        history=history,
        shown=None,
        candidates=candidates,
    )


def texts_of(incoming: Sequence[Incoming]) -> dict[str, F32]:
    return {text: text_vector(text) for one in incoming if (text := getattr(one.event, "text", None))}


def run(
    pipeline: Pipeline, incoming: Sequence[Incoming], states: Mapping[str, UserState] | None = None, **fields: Any
) -> BatchResult:
    """One batch with a fixed clock: a list is made the moment its event happens."""
    fields.setdefault("texts", texts_of(incoming))
    return pipeline.run(incoming, states or {}, generated_at_ms=int, **fields)


class Player:
    """A pipeline with a dictionary for a store; batches cut where the caller says."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.states: dict[str, UserState] = {}
        self.results: list[BatchResult] = []
        self.topic: dict[str, bytes | None] = {}
        """What a compacted `recommendations` topic holds."""

    def play(self, incoming: Sequence[Incoming], cuts: Sequence[int] = ()) -> Player:
        for start, end in zip([0, *cuts], [*cuts, len(incoming)], strict=True):
            if end > start:
                result = run(self.pipeline, incoming[start:end], self.states)
                self.states.update(result.states)
                self.results.append(result)
                self.topic.update(result.republish)
                self.topic.update(dict.fromkeys(result.forgotten))
                self.topic.update({made.user_id: made.data for made in result.published})
        return self

    @property
    def published(self) -> list[tuple[str, bytes]]:
        """All lists of users as of their latest forgetting: a batch that forgets does not publish what came before."""
        lists: list[tuple[str, bytes]] = []
        for result in self.results:
            lists = [one for one in lists if one[0] not in result.forgotten]
            lists += [(made.user_id, made.data) for made in result.published]
        return lists

    def fingerprint(self) -> dict[str, Any]:
        """Everything the pipeline knows and said, to compare two runs to the bit."""
        weights = self.pipeline.weights
        dumped = dump_bytes(self.pipeline.statistics)
        return {
            "states": {user: packed(state, self.pipeline.catalogue) for user, state in self.states.items()},
            "published": self.published,
            "outcomes": [outcome for result in self.results for outcome in result.outcomes],
            "scores": [score[1:] for result in self.results for score in result.scores],
            "weights": None if weights is None else (weights.weights.tobytes(), weights.squares.tobytes()),
            **dumped,
        }


def packed(state: UserState, catalogue: Catalogue) -> tuple[Any, ...]:
    record = pack(state, catalogue)
    return record.user_key, record.revision, record.embedding.tobytes(), record.state.tobytes(), record.body


def dump_bytes(statistics: Statistics) -> dict[str, Any]:
    """A dump and the top lists, comparable by ==."""
    arrays = statistics.arrays
    tops = [arrays.top[t, : arrays.top_size[t]].tolist() for t in range(len(arrays.top_size))]
    dumped = statistics.dump()
    return {"tops": tops, **{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in dumped.items()}}


def decode(data: bytes) -> Recommendation:
    return msgspec.json.decode(data, type=Recommendation)


def lists_of(result: BatchResult) -> list[list[str]]:
    """Item ids of each published list."""
    return [[item.item_id for item in decode(made.data).items] for made in result.published]


def touches_of(
    rows: Sequence[tuple[int, int, float, bool, bool, Sequence[int]]],
) -> Touches:
    """Rows of (item, event_time_ms, value, first, strong, recent); whose they are hangs on the time."""
    recent = np.full((len(rows), PAIR_WINDOW), -1, np.int32)
    for at, row in enumerate(rows):
        recent[at, : len(row[5])] = row[5]
    return Touches(
        item=np.array([r[0] for r in rows], np.int32),
        event_time_ms=np.array([r[1] for r in rows], np.int64),
        value=np.array([r[2] for r in rows], np.float32),
        first=np.array([r[3] for r in rows], np.bool_),
        strong=np.array([r[4] for r in rows], np.bool_),
        recent=recent,
        recent_gap_ms=np.array([r[1] % 7 for r in rows], np.int64)[:, None] * 10_000 * np.arange(PAIR_WINDOW),
        tag=np.array([1 + r[1] % 997 for r in rows], np.int32),
        chosen=np.array([r[1] % 5 for r in rows], np.int32),
        gap_ms=np.array([r[1] % 11 * 60_000 - 1 for r in rows], np.int64),
    )
