"""One slice of a batch on its way through the pipeline: admit, fold, encode, play, rank, write.

Works on copies of the users' states and changes the pipeline's statistics and adaptive weights. No clock, no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from models.domain import ranking, waves
from models.domain.batch import (
    FOLDED,
    REPLAYED,
    BatchResult,
    Incoming,
    PipelineOptions,
    Published,
    Score,
)
from models.domain.candidates import COVISITATION, LEARNED_QUERY_WINDOW, QUERY_WINDOW, SOURCES, Lists, Query, new_lists
from models.domain.events import (
    Event,
    Forget,
    Hide,
    Impression,
    Interaction,
    Recommendation,
    RecommendedItem,
    Request,
    Search,
    encoded_text,
)
from models.domain.examples import AskedList, examples_of
from models.domain.features import BASE_COUNT, FEATURE_COUNT
from models.domain.gate import admit
from models.domain.habits import People, habits_of, people_of
from models.domain.ports import F32, NO_VALUE
from models.domain.ranking import AdaptiveWeights, Timeline
from models.domain.read_values import read_values
from models.domain.reasons import because_of, of_source
from models.domain.state import Recent, UserState, event_hash
from models.domain.statistics import PAIR_WINDOW, Touches
from models.domain.telling import MadeLists, Telling

if TYPE_CHECKING:
    from models.domain.pipeline import Pipeline

# A user counts as cold until this many events (research/ranker-and-protocol.md, section 4).
COLD_EVENTS = 5
# A search moves the state like a click; a hide pushes away like two.
SEARCH_STRENGTH = 1.0
HIDE_STRENGTH = -2.0
# "Strong" feedback is four stars of five, or a kind that says more than a click.
STRONG_LIKING = 0.6
# Items of the catalogue that may fill a short list; a user who has seen all of them is served by the other sources.
NEWEST = 256
_HASHES = float(2**63)


class _Row(NamedTuple):
    """One list to make."""

    position: int
    state: UserState
    after: bool
    """Whether the list is made of the user as the record left him, or as it found him."""
    now_ms: int
    last_ms: int
    recent: list[int]
    excluded: npt.NDArray[np.int32]
    history: int
    length: int
    sequence: int = 0
    recommendation_id: str = ""
    interactions: Sequence[Recent] = ()
    """What the user had done by then."""
    target: int = -1
    """What was chosen of the list, where it is asked just before a choice."""
    travels: bool = False
    """Whether its candidates go into the feedback."""


class _Choice(NamedTuple):
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


class _Moment(NamedTuple):
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
    recent: Sequence[int] = ()
    tag: int = 0
    chosen: int = 0
    since_ms: int = -1
    person: int = 0


class Slice:
    """Plays `records` (position in the batch, record) and adds what comes of them to `result`."""

    def __init__(
        self,
        pipeline: Pipeline,
        records: Sequence[tuple[int, Incoming]],
        stored: Mapping[str, UserState],
        result: BatchResult,
        options: PipelineOptions,
        generated_at_ms: Callable[[int], int],
        stream_now_ms: int,
        texts: Mapping[str, F32],
    ) -> None:
        self.pipeline, self.catalogue = pipeline, pipeline.catalogue
        self.records, self.stored, self.result, self.options = records, stored, result, options
        self._events = {position: record.event for position, record in records}
        self.generated_at_ms, self.stream_now_ms, self.texts = generated_at_ms, stream_now_ms, texts
        self.steps: list[waves.Step] = []
        self.rows: list[_Row] = []
        self.moments: list[_Moment] = []
        self.choices: list[_Choice] = []
        self.last_row: dict[str, int] = {}
        self.people: dict[str, int] = {}
        """Row of each user in the slice's `People`."""
        self.with_candidates = options.feedback and options.candidates_share > 0
        self.habits = pipeline.learned or self.with_candidates
        """Whether habits are kept, which are features beyond those that a log-linear ranker reads."""
        self.telling = Telling(self.catalogue.ids, pipeline.model_version, result.feedback)
        self.searched: list[int] = []
        """Which search of the vector index each list shares."""
        self.read: dict[int, float] = {}
        """Values read from the texts of those who gave none, by position. The encoder's alone: statistics, likings and
        reasons hold what users said, whichever model a worker serves."""

    def play(self) -> None:
        stage = self.pipeline.stage
        with stage("fold"):
            if (reader := self.pipeline.reader) is not None:
                self.read = read_values(reader, ((at, record.event) for at, record in self.records), self.texts)
            for position, record in self.records:
                self._one(position, record)
        with stage("user_encode"):
            before, after = waves.encode(self.pipeline.encoder, self.steps)
        made = self._make_lists(before, after) if self.moments else None
        if self.options.feedback:
            with stage("tell"):
                self.telling.finish(made)

    def _make_lists(self, before: Mapping[int, F32], after: Mapping[int, F32]) -> MadeLists | None:
        """Play the slice over the statistics and write its lists.

        Args:
            before: user vectors before each record, by position.
            after: user vectors after each record.
        """
        pipeline, stage = self.pipeline, self.pipeline.stage
        users = np.zeros((len(self.rows), pipeline.encoder.dimension), np.float32)
        known: dict[tuple[int, int], int] = {}
        for at, row in enumerate(self.rows):
            vector = (after if row.after else before)[row.position]
            users[at] = vector
            # A list asked just before an event has the vector and exclusions of the one published last: search once.
            self.searched.append(known.setdefault((id(vector), len(row.excluded)), len(known)))
        read = len(pipeline.ranker.features)
        lists = new_lists(len(self.rows), FEATURE_COUNT if self.habits else read, pipeline.candidates)
        weights = np.zeros((len(self.rows), BASE_COUNT), np.float32)
        pipeline.statistics.reserve(len(self.catalogue), len(self.moments))
        with stage("retrieve"):
            self._play(self._query(users), lists, weights)
        if not self.rows:
            return None
        with stage("rank"):
            features = lists.features
            if read < features.shape[2]:
                features = np.ascontiguousarray(features[:, :, :read])
            scores = pipeline.ranker.score(features, None if pipeline.weights is None else weights)
            length = min(max(row.length for row in self.rows), pipeline.candidates)
            places = np.empty((len(self.rows), length), np.int32)
            ranking.best_places(np.ascontiguousarray(scores, np.float32), lists.size, places)
            made = self._write(lists, scores, places)
        if self.options.examples:
            asked = [
                AskedList(c.position, c.asked_row, c.item, c.asked_fresh) for c in self.choices if c.asked_row >= 0
            ]
            self.result.examples.append(examples_of(lists, asked))
        return made

    # fold -------------------------------------------------------------------------------------------------------------

    def _one(self, position: int, record: Incoming) -> None:
        event, result = record.event, self.result
        user_id = str(event.user_id)
        state = result.states.get(user_id)
        if state is None:
            state = result.states[user_id] = self.pipeline.working_copy(user_id, self.stored.get(user_id))
        outcome, detail = admit(state, record, self.options)
        result.outcomes[position] = outcome
        if detail:
            result.details[position] = detail
        if outcome == REPLAYED:
            if state.last_list:
                result.republish[user_id] = state.last_list
            elif state.forgotten_ms >= 0:
                result.forgotten.add(user_id)  # the crash may have come before the topic was cleared
            return
        state.applied[record.log] = record.offset
        state.revision += 1
        if outcome != FOLDED:
            return
        if isinstance(event, Request):
            self._request(position, event, state)
            return
        state.remember_event(str(event.event_id))
        if isinstance(event, Interaction):
            self._interaction(position, event, record.counted, state)
        elif isinstance(event, Hide):
            self._hide(position, event, state)
        elif isinstance(event, Search):
            self._step(
                position, state, None, encoded_text(event), event.type, SEARCH_STRENGTH, NO_VALUE, event.event_time_ms
            )
            self._settle(state, event.event_time_ms)
            self._answer(position, state, event.event_time_ms)
        elif isinstance(event, Impression):
            if self.options.feedback:
                self.telling.exposures.show(state, event)
        elif isinstance(event, Forget):
            self._forget(position, event, state)

    def _interaction(self, position: int, event: Interaction, counted: bool, state: UserState) -> None:
        catalogue, options = self.catalogue, self.options
        now_ms, kind, value, read = event.event_time_ms, event.type, event.value, self.read.get(position)
        item = catalogue.intern(str(event.item_id))
        known = catalogue.touch(item)
        before = state.recent, state.recent_items(catalogue, LEARNED_QUERY_WINDOW), state.excluded_items(catalogue)
        recent, history, chosen, since_ms = before[1][:PAIR_WINDOW], state.events, len(state.seen), state.last_event_ms
        first = state.remember_item(catalogue, item, excluded=kind not in options.repeatable_kinds)
        ask_row, candidates_row, fresh = -1, -1, False
        if first and known:
            hashed, asked_below = event_hash(str(event.event_id)), options.asked_share * _HASHES
            if hashed < asked_below:
                travels = self.with_candidates and hashed < asked_below * options.candidates_share
                ask_row, fresh = self._ask(position, state, now_ms, item, travels, *before)
                candidates_row = ask_row if travels else -1
            published = self.last_row.get(state.user_id, -1)
            self.choices.append(
                _Choice(
                    position,
                    item,
                    history < COLD_EVENTS,
                    ask_row,
                    fresh,
                    published,
                    state.last_items,
                    state.last_model,
                )
            )
        if options.feedback:
            # Before this event's own list is published.
            self.telling.interaction(position, event, state, item, read, first and known, before[0], candidates_row)
        self._step(
            position,
            state,
            self._vector(item),
            encoded_text(event),
            kind,
            options.strength(kind, value),
            self.pipeline.encoded_value(value, read),
            now_ms,
        )
        state.remember_interaction(Recent(catalogue.ids[item], kind, value, now_ms, read))
        self._settle(state, now_ms)
        liking = options.liking(kind, value)
        if counted and options.counts:
            self.result.touch_positions.append(position)
        self.moments.append(
            _Moment(
                ask_row=ask_row,
                ask_fresh=fresh,
                target=item,
                counts=counted and options.counts,
                publish_row=self._publish(position, state, now_ms),
                item=item,
                event_time_ms=now_ms,
                value=liking,
                first=first,
                strong=liking > STRONG_LIKING,
                recent=recent,
                tag=state.tag,
                chosen=chosen,
                since_ms=since_ms,
                person=self._person(state),
            )
        )

    def _hide(self, position: int, event: Hide, state: UserState) -> None:
        item = self.catalogue.intern(str(event.item_id))
        state.remember_item(self.catalogue, item, excluded=True)
        self._step(position, state, self._vector(item), None, event.type, HIDE_STRENGTH, NO_VALUE, event.event_time_ms)
        self._settle(state, event.event_time_ms)
        self._answer(position, state, event.event_time_ms)

    def _request(self, position: int, request: Request, state: UserState) -> None:
        now_ms = (
            request.event_time_ms
            if request.event_time_ms is not None
            else max(self.stream_now_ms, state.last_event_ms, 0)
        )
        text = encoded_text(request)
        self._step(
            position, state, None, text, "search", SEARCH_STRENGTH if text else 0.0, NO_VALUE, now_ms, keep=False
        )
        self._answer(position, state, now_ms, length=request.k)

    def _forget(self, position: int, event: Forget, state: UserState) -> None:
        state.forget(event.event_time_ms, self.pipeline.encoder.initial_state(), np.zeros_like(state.user))
        result = self.result
        result.forgotten.add(state.user_id)
        result.republish.pop(state.user_id, None)
        result.published = [made for made in result.published if made.user_id != state.user_id]
        if self.options.feedback:
            self.telling.forgotten(position, event, state)

    def _settle(self, state: UserState, now_ms: int) -> None:
        state.events += 1
        state.last_event_ms = max(state.last_event_ms, now_ms)

    def _vector(self, item: int) -> F32 | None:
        vectors = self.pipeline.vectors
        return vectors.rows[item] if vectors.present[item] else None

    def _step(
        self,
        position: int,
        state: UserState,
        vector: F32 | None,
        text: str | None,
        kind: str,
        strength: float,
        value: float,
        now_ms: int,
        keep: bool = True,
    ) -> None:
        self.steps.append(
            waves.Step(
                position,
                state,
                vector,
                self.texts.get(text) if text else None,
                self.pipeline.kind_index(kind),
                strength,
                value,
                waves.log2_gap(state.last_event_ms, now_ms),
                keep,
            )
        )

    # lists ------------------------------------------------------------------------------------------------------------

    def _person(self, state: UserState) -> int:
        return self.people.setdefault(state.user_id, len(self.people))

    def _ask(
        self,
        position: int,
        state: UserState,
        now_ms: int,
        item: int,
        travels: bool,
        interactions: Sequence[Recent],
        recent: list[int],
        excluded: npt.NDArray[np.int32],
    ) -> tuple[int, bool]:
        """Row of the list as it would be just before the record, and whether it has to be made."""
        length = self.options.list_length
        if self.moments and self.moments[-1].publish_row >= 0:
            row = self.rows[self.moments[-1].publish_row]
            same = row.state is state and row.now_ms == now_ms and row.length == length
            if same and not isinstance(self._event(row.position), Request):
                # Nothing has changed since that list was published.
                at = self.moments[-1].publish_row
                self.rows[at] = row._replace(target=item, travels=travels)
                return at, False
        last_ms, history = state.last_event_ms, state.events
        self.rows.append(
            _Row(
                position,
                state,
                False,
                now_ms,
                last_ms,
                recent,
                excluded,
                history,
                length,
                interactions=interactions,
                target=item,
                travels=travels,
            )
        )
        return len(self.rows) - 1, True

    def _answer(self, position: int, state: UserState, now_ms: int, length: int | None = None) -> None:
        """A list for a record that counts nothing."""
        row = self._publish(position, state, now_ms, length)
        self.moments.append(_Moment(publish_row=row, person=self._person(state)))

    def _publish(self, position: int, state: UserState, now_ms: int, length: int | None = None) -> int:
        if not self.options.publish:
            return -1
        state.sequence += 1
        recent = state.recent_items(self.catalogue, LEARNED_QUERY_WINDOW)
        excluded = state.excluded_items(self.catalogue)
        length = self.options.list_length if length is None else length
        last_ms, history = state.last_event_ms, state.events
        event, at = self._event(position), len(self.rows)
        request_id = str(event.request_id) if isinstance(event, Request) else None
        cause = event.request_id if isinstance(event, Request) else event.event_id
        recommendation_id = _recommendation_id(state.user_id, state.sequence, str(cause))
        self.rows.append(
            _Row(
                position,
                state,
                True,
                now_ms,
                last_ms,
                recent,
                excluded,
                history,
                length,
                state.sequence,
                recommendation_id,
                state.recent,
            )
        )
        self.last_row[state.user_id] = at
        if self.options.feedback:
            self.telling.exposures.publish(state, recommendation_id, request_id, self.pipeline.model_version, at)
        else:
            state.shown = ()  # what nobody keeps up must not be joined to later
        return at

    def _query(self, users: F32) -> Query:
        rows = self.rows
        ends = np.cumsum([len(row.excluded) for row in rows], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(rows) else ends
        excluded = np.concatenate([row.excluded for row in rows]) if len(rows) else np.empty(0, np.int32)
        # A log-linear ranker is asked as far back as ever, also where more features are computed than it reads.
        window = LEARNED_QUERY_WINDOW if self.pipeline.learned else QUERY_WINDOW
        deep = np.array([self.pipeline.learned or row.travels for row in rows], np.bool_)
        return Query(
            user=users,
            now_ms=np.array([row.now_ms for row in rows], np.int64),
            last_ms=np.array([row.last_ms for row in rows], np.int64),
            recent=_padded([row.recent[:window] for row in rows], window),
            liked=self._liked(deep),
            history=np.array([row.history for row in rows], np.float32),
            person=np.array([self._person(row.state) for row in rows], np.int64),
            target=np.array([row.target for row in rows], np.int32),
            deep=deep,
            encoder_top=self._nearest(users, excluded, starts, ends),
            newest=self.catalogue.newest(NEWEST),
            excluded_from=starts,
            excluded_to=ends,
            excluded=excluded,
        )

    def _people(self) -> People:
        states = self.result.states
        if not self.habits:
            return people_of([])
        return people_of(states[user_id].habits for user_id in self.people)

    def _liked(self, deep: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """bool[L, LEARNED_QUERY_WINDOW]: the latest word on each recent item was a good one; only of deep lists.

        Args:
            deep: bool[L].
        """
        out = np.zeros((len(self.rows), LEARNED_QUERY_WINDOW), np.bool_)
        options = self.options
        good: dict[tuple[str, float | None], bool] = {}
        # The list asked before an event looks back on the same interactions as the one published before it.
        found: dict[int, list[bool]] = {}
        for at in np.flatnonzero(deep).tolist():
            interactions = self.rows[at].interactions
            liked = found.get(id(interactions))
            if liked is None:
                latest: dict[str, bool] = {}
                for one in reversed(interactions):
                    if one.item_id in latest:
                        continue
                    said = (one.kind, one.value)
                    if said not in good:
                        good[said] = options.liking(*said) > STRONG_LIKING
                    latest[one.item_id] = good[said]
                    if len(latest) == LEARNED_QUERY_WINDOW:
                        break
                liked = found[id(interactions)] = list(latest.values())
            out[at, : len(liked)] = liked
        return out

    def _nearest(
        self, users: F32, excluded: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        if not self.rows:
            return np.empty((0, 0), np.int32)
        _, first, place = np.unique(np.array(self.searched), return_index=True, return_inverse=True)
        return self.pipeline.nearest_to(users[first], excluded, starts[first], ends[first])[place]

    def _play(self, query: Query, lists: Lists, row_weights: F32) -> None:
        moments, pipeline = self.moments, self.pipeline
        learn = self.options.learn and pipeline.weights is not None
        timeline = Timeline(
            ask_row=np.array([m.ask_row for m in moments], np.int64),
            ask_fresh=np.array([m.ask_fresh for m in moments], np.bool_),
            target=np.array([m.target for m in moments], np.int32),
            learn=np.array([learn and m.counts for m in moments], np.bool_),
            counts=np.array([m.counts for m in moments], np.bool_),
            publish_row=np.array([m.publish_row for m in moments], np.int64),
            item=np.array([m.item for m in moments], np.int32),
            event_time_ms=np.array([m.event_time_ms for m in moments], np.int64),
            value=np.array([m.value for m in moments], np.float32),
            first=np.array([m.first for m in moments], np.bool_),
            strong=np.array([m.strong for m in moments], np.bool_),
            recent=_padded([m.recent for m in moments], PAIR_WINDOW),
            tag=np.array([m.tag for m in moments], np.int32),
            chosen=np.array([m.chosen for m in moments], np.int32),
            since_ms=np.array([m.since_ms for m in moments], np.int64),
            person=np.array([m.person for m in moments], np.int64),
        )
        weights = pipeline.weights or AdaptiveWeights(np.zeros(BASE_COUNT))
        people = self._people()
        ranking.play(
            pipeline.statistics.arrays,
            pipeline.scratch(),
            self.pipeline.vectors.rows,
            self.catalogue.available,
            query,
            people,
            pipeline.source_weights,
            lists,
            weights.weights,
            weights.squares,
            row_weights,
            timeline,
        )
        if self.habits:
            for user_id, row in self.people.items():
                self.result.states[user_id].habits = habits_of(people, row)
        kept = timeline.counts
        if kept.any():
            self.result.touches.append(
                Touches(
                    timeline.item[kept],
                    timeline.event_time_ms[kept],
                    timeline.value[kept],
                    timeline.first[kept],
                    timeline.strong[kept],
                    timeline.recent[kept],
                    timeline.tag[kept],
                    timeline.chosen[kept],
                )
            )

    def _write(self, lists: Lists, scores: F32, places: npt.NDArray[np.int32]) -> MadeLists:
        ids, result, model = self.catalogue.ids, self.result, self.pipeline.model_version
        taken = np.maximum(places, 0)
        # Plain lists: reading ten numpy scalars a list would cost more than the ranker.
        items, sources, because, score, filled = (
            array.tolist()
            for array in (
                np.take_along_axis(lists.item, taken, 1),
                np.take_along_axis(lists.source, taken, 1),
                np.take_along_axis(lists.because, taken, 1),
                np.take_along_axis(scores, taken, 1),
                (places >= 0).sum(axis=1),
            )
        )
        chosen: list[tuple[str, ...]] = []
        for at, row in enumerate(self.rows):
            length = min(row.length, filled[at])
            chosen.append(tuple([ids[item] for item in items[at][:length]]))
            if row.sequence == 0:
                continue
            reasons = self._reasons(row.interactions, sources[at][:length], because[at])
            made = tuple(
                [
                    RecommendedItem(item_id, rank, value, SOURCES[source], reason)
                    for rank, (item_id, value, source, reason) in enumerate(
                        zip(chosen[at], score[at], sources[at], reasons, strict=False), 1
                    )
                ]
            )
            data = self._message(row, made)
            result.published.append(
                Published(row.position, row.state.user_id, data, made[0].score - made[-1].score if made else None)
            )
            row.state.last_list, row.state.last_items, row.state.last_model = data, chosen[at], model
        for choice in self.choices:
            item_id = ids[choice.item]
            shown = choice.stored_items if choice.published_row < 0 else chosen[choice.published_row]
            shown_by = choice.stored_model if choice.published_row < 0 else model
            result.last_published[choice.position] = shown
            result.scores.append(
                Score(choice.position, "last_published", shown_by or model, choice.cold, _place(shown, item_id))
            )
            if choice.asked_row >= 0:
                asked = chosen[choice.asked_row]
                result.asked[choice.position] = asked
                result.scores.append(Score(choice.position, "asked", model, choice.cold, _place(asked, item_id)))
        shown_sources = [bytes(row[: len(shown)]) for row, shown in zip(sources, chosen, strict=True)]
        return MadeLists(lists, chosen, shown_sources)

    def _reasons(self, interactions: Sequence[Recent], sources: list[int], because: list[int]) -> list[str]:
        latest = {r.item_id: r for r in interactions}
        ids, titles = self.catalogue.ids, self.catalogue.titles
        reasons = []
        for source, owed in zip(sources, because, strict=False):
            cause = latest.get(ids[owed]) if source == COVISITATION and owed >= 0 else None
            reasons.append(
                of_source(SOURCES[source]) if cause is None else because_of(titles[owed], cause.kind, cause.value)
            )
        return reasons

    def _event(self, position: int) -> Event | Request:
        return self._events[position]

    def _message(self, row: _Row, items: tuple[RecommendedItem, ...]) -> bytes:
        event = self._event(row.position)
        request_id = str(event.request_id) if isinstance(event, Request) else None
        trigger = None if isinstance(event, Request) else str(event.event_id)
        return self.pipeline.json.encode(
            Recommendation(
                recommendation_id=row.recommendation_id,
                sequence=row.sequence,
                user_id=row.state.user_id,
                trigger_event_id=trigger,
                request_id=request_id,
                model_version=self.pipeline.model_version,
                event_time_ms=row.now_ms,
                generated_at_ms=self.generated_at_ms(row.now_ms),
                items=items,
            )
        )


def _place(shown: tuple[str, ...], item_id: str) -> int:
    return shown.index(item_id) + 1 if item_id in shown else 0


def _recommendation_id(user_id: str, sequence: int, cause: str) -> str:
    """The same list of the same user has the same id, whoever makes it again."""
    text = f"{user_id}\x00{sequence}\x00{cause}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def _padded(rows: Sequence[Sequence[int]], length: int) -> npt.NDArray[np.int32]:
    out = np.full((len(rows), length), -1, np.int32)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return out
