"""One slice of a batch on its way through the pipeline: admit, fold, encode, play, rank, write.

Folds here, on copies of the users' states; plays and writes by `playing` and `writing`, which change the pipeline's
statistics and adaptive weights. No clock, no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.domain import playing, ranking, waves
from models.domain.batch import FOLDED, REPLAYED, BatchResult, Incoming, PipelineOptions
from models.domain.candidates import LEARNED_QUERY_WINDOW
from models.domain.events import Forget, Hide, Impression, Interaction, Request, Search, encoded_text
from models.domain.examples import AskedList, examples_of
from models.domain.gate import admit
from models.domain.moments import Agenda, Choice, Moment, Row
from models.domain.ports import F32, NO_VALUE
from models.domain.read_values import read_values
from models.domain.state import Recent, RecentItems, UserState, event_hash
from models.domain.telling import MadeLists, Telling
from models.domain.writing import Writer

if TYPE_CHECKING:
    from models.domain.pipeline import Pipeline

# A user counts as cold until this many events (research/ranker-and-protocol.md, section 4).
COLD_EVENTS = 5
# A search moves the state like a click; a hide pushes away like two.
SEARCH_STRENGTH = 1.0
HIDE_STRENGTH = -2.0
_HASHES = float(2**63)


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
        self.agenda = Agenda()
        self.with_candidates = options.feedback and options.candidates_share > 0
        self.habits = pipeline.learned or self.with_candidates
        """Whether habits are kept, which are features beyond those that a log-linear ranker reads."""
        self.telling = Telling(self.catalogue.ids, pipeline.model_version, result.feedback)
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
        made = self._make_lists(before, after) if self.agenda.moments else None
        if self.options.feedback:
            with stage("tell"):
                self.telling.finish(made)

    def _make_lists(self, before: Mapping[int, F32], after: Mapping[int, F32]) -> MadeLists | None:
        """Play the slice over the statistics and write its lists.

        Args:
            before: user vectors before each record, by position.
            after: user vectors after each record.
        """
        pipeline, stage, agenda = self.pipeline, self.pipeline.stage, self.agenda
        vectors = [(after if row.after else before)[row.position] for row in agenda.rows]
        with stage("retrieve"):
            lists, weights = playing.play(pipeline, agenda, vectors, self.options, self.habits, self.result)
        if not agenda.rows:
            return None
        with stage("rank"):
            features, read = lists.features, len(pipeline.ranker.features)
            if read < features.shape[2]:
                features = np.ascontiguousarray(features[:, :, :read])
            scores = pipeline.ranker.score(features, None if pipeline.weights is None else weights)
            length = min(max(row.length for row in agenda.rows), pipeline.candidates)
            places = np.empty((len(agenda.rows), length), np.int32)
            ranking.best_places(np.ascontiguousarray(scores, np.float32), lists.size, places)
            made = Writer(pipeline, self._events, self.generated_at_ms, self.result).write(
                agenda, lists, scores, places
            )
        if self.options.examples:
            asked = [
                AskedList(c.position, c.asked_row, c.item, c.asked_fresh) for c in agenda.choices if c.asked_row >= 0
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
        recent, history, chosen, since_ms = before[1], state.events, len(state.seen), state.last_event_ms
        first = state.remember_item(catalogue, item, excluded=kind not in options.repeatable_kinds)
        ask_row, candidates_row, fresh = -1, -1, False
        if first and known:
            hashed, asked_below = event_hash(str(event.event_id)), options.asked_share * _HASHES
            if hashed < asked_below:
                travels = self.with_candidates and hashed < asked_below * options.candidates_share
                ask_row, fresh = self._ask(position, state, now_ms, item, chosen, travels, *before)
                candidates_row = ask_row if travels else -1
            published = self.agenda.last_row.get(state.user_id, -1)
            self.agenda.choices.append(
                Choice(
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
        self.agenda.moments.append(
            Moment(
                ask_row=ask_row,
                ask_fresh=fresh,
                target=item,
                counts=counted and options.counts,
                publish_row=self._publish(position, state, now_ms),
                item=item,
                event_time_ms=now_ms,
                value=liking,
                first=first,
                strong=liking > playing.STRONG_LIKING,
                recent=recent,
                tag=state.tag,
                chosen=chosen,
                since_ms=since_ms,
                person=self.agenda.person(state.user_id),
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

    def _ask(
        self,
        position: int,
        state: UserState,
        now_ms: int,
        item: int,
        chosen: int,
        travels: bool,
        interactions: Sequence[Recent],
        recent: RecentItems,
        excluded: npt.NDArray[np.int32],
    ) -> tuple[int, bool]:
        """Row of the list as it would be just before the record, and whether it has to be made."""
        length = self.options.list_length
        at = self.agenda.published_just_before
        if at >= 0:
            row = self.agenda.rows[at]
            same = row.state is state and row.now_ms == now_ms and row.length == length
            if same and not isinstance(self._events[row.position], Request):
                # Nothing has changed since that list was published.
                self.agenda.rows[at] = row._replace(target=item, travels=travels)
                return at, False
        last_ms, history = state.last_event_ms, state.events
        self.agenda.rows.append(
            Row(
                position,
                state,
                False,
                now_ms,
                last_ms,
                recent,
                excluded,
                history,
                chosen,
                length,
                interactions=interactions,
                target=item,
                travels=travels,
            )
        )
        return len(self.agenda.rows) - 1, True

    def _answer(self, position: int, state: UserState, now_ms: int, length: int | None = None) -> None:
        """A list for a record that counts nothing."""
        row = self._publish(position, state, now_ms, length)
        self.agenda.moments.append(Moment(publish_row=row, person=self.agenda.person(state.user_id)))

    def _publish(self, position: int, state: UserState, now_ms: int, length: int | None = None) -> int:
        if not self.options.publish:
            return -1
        state.sequence += 1
        recent = state.recent_items(self.catalogue, LEARNED_QUERY_WINDOW)
        excluded = state.excluded_items(self.catalogue)
        length = self.options.list_length if length is None else length
        last_ms, history = state.last_event_ms, state.events
        event, at = self._events[position], len(self.agenda.rows)
        request_id = str(event.request_id) if isinstance(event, Request) else None
        cause = event.request_id if isinstance(event, Request) else event.event_id
        recommendation_id = _recommendation_id(state.user_id, state.sequence, str(cause))
        self.agenda.rows.append(
            Row(
                position,
                state,
                True,
                now_ms,
                last_ms,
                recent,
                excluded,
                history,
                len(state.seen),
                length,
                state.sequence,
                recommendation_id,
                state.recent,
            )
        )
        self.agenda.last_row[state.user_id] = at
        if self.options.feedback:
            self.telling.exposures.publish(state, recommendation_id, request_id, self.pipeline.model_version, at)
        else:
            state.shown = ()  # what nobody keeps up must not be joined to later
        return at


def _recommendation_id(user_id: str, sequence: int, cause: str) -> str:
    """The same list of the same user has the same id, whoever makes it again."""
    text = f"{user_id}\x00{sequence}\x00{cause}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=12).hexdigest()
