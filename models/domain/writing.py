"""From scored candidates to what is said of a slice: messages with reasons, the lists in the states, online scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.domain.batch import BatchResult, Published, Score
from models.domain.candidates import COVISITATION, SOURCES, Lists
from models.domain.events import Event, Recommendation, RecommendedItem, Request
from models.domain.moments import Agenda, Row
from models.domain.ports import F32
from models.domain.reasons import because_of, of_source
from models.domain.state import Recent
from models.domain.telling import MadeLists

if TYPE_CHECKING:
    from models.domain.pipeline import Pipeline


class Writer:
    """
    Args:
        events: of the slice, by position.
        generated_at_ms: event time -> when the list is said to be made.
        result: takes what is written.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        events: Mapping[int, Event | Request],
        generated_at_ms: Callable[[int], int],
        result: BatchResult,
    ) -> None:
        self._pipeline, self._catalogue, self._events = pipeline, pipeline.catalogue, events
        self._generated_at_ms, self._result = generated_at_ms, result

    def write(self, agenda: Agenda, lists: Lists, scores: F32, places: npt.NDArray[np.int32]) -> MadeLists:
        """
        Args:
            scores: float32[L, K], of the candidates.
            places: int32[L, length], the best candidates' places, -1 behind the last.
        """
        ids, result, model = self._catalogue.ids, self._result, self._pipeline.model_version
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
        for at, row in enumerate(agenda.rows):
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
        self._score(agenda, chosen)
        shown_sources = [bytes(row[: len(shown)]) for row, shown in zip(sources, chosen, strict=True)]
        return MadeLists(lists, chosen, shown_sources)

    def _score(self, agenda: Agenda, chosen: Sequence[tuple[str, ...]]) -> None:
        result, model = self._result, self._pipeline.model_version
        for choice in agenda.choices:
            item_id = self._catalogue.ids[choice.item]
            shown = choice.stored_items if choice.published_row < 0 else chosen[choice.published_row]
            shown_by = choice.stored_model if choice.published_row < 0 else model
            result.last_published[choice.position] = shown
            result.scores.append(
                Score(choice.position, "last_published", shown_by or model, choice.cold, place_in(shown, item_id))
            )
            if choice.asked_row >= 0:
                asked = chosen[choice.asked_row]
                result.asked[choice.position] = asked
                result.scores.append(Score(choice.position, "asked", model, choice.cold, place_in(asked, item_id)))

    def _reasons(self, interactions: Sequence[Recent], sources: list[int], because: list[int]) -> list[str]:
        latest = {r.item_id: r for r in interactions}
        ids, titles = self._catalogue.ids, self._catalogue.titles
        reasons = []
        for source, owed in zip(sources, because, strict=False):
            cause = latest.get(ids[owed]) if source == COVISITATION and owed >= 0 else None
            reasons.append(
                of_source(SOURCES[source]) if cause is None else because_of(titles[owed], cause.kind, cause.value)
            )
        return reasons

    def _message(self, row: Row, items: tuple[RecommendedItem, ...]) -> bytes:
        event = self._events[row.position]
        request_id = str(event.request_id) if isinstance(event, Request) else None
        trigger = None if isinstance(event, Request) else str(event.event_id)
        return self._pipeline.json.encode(
            Recommendation(
                recommendation_id=row.recommendation_id,
                sequence=row.sequence,
                user_id=row.state.user_id,
                trigger_event_id=trigger,
                request_id=request_id,
                model_version=self._pipeline.model_version,
                event_time_ms=row.now_ms,
                generated_at_ms=self._generated_at_ms(row.now_ms),
                items=items,
            )
        )


def place_in(shown: Sequence[str], item_id: str) -> int:
    """1-based; 0 = not in the list."""
    return shown.index(item_id) + 1 if item_id in shown else 0
