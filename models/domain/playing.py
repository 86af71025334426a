"""Plays a folded slice over the statistics, moment by moment: candidates and features of its lists, touches, habits.

Turns the agenda into arrays for one compiled pass (`ranking.play`) and takes over what that leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.domain import ranking
from models.domain.batch import BatchResult, PipelineOptions
from models.domain.candidates import LEARNED_QUERY_WINDOW, QUERY_WINDOW, Lists, Query, new_lists
from models.domain.circumstances import FIRST_EVENT
from models.domain.features import BASE_COUNT, FEATURE_COUNT
from models.domain.habits import habits_of, people_of
from models.domain.moments import Agenda, Row
from models.domain.ports import F32
from models.domain.ranking import AdaptiveWeights, Timeline
from models.domain.state import RecentItems
from models.domain.statistics import PAIR_WINDOW, Touches

if TYPE_CHECKING:
    from models.domain.pipeline import Pipeline

# "Strong" feedback is four stars of five, or a kind that says more than a click.
STRONG_LIKING = 0.6
# Items of the catalogue that may fill a short list; a user who has seen all of them is served by the other sources.
NEWEST = 256


def play(
    pipeline: Pipeline,
    agenda: Agenda,
    vectors: Sequence[F32],
    options: PipelineOptions,
    with_habits: bool,
    result: BatchResult,
) -> tuple[Lists, F32]:
    """Changes the pipeline's statistics and adaptive weights, and the habits in the result's states.

    Args:
        vectors: of each row's user, float32[D].
        with_habits: whether habits are kept, which are features beyond those that a log-linear ranker reads.
    Returns: the lists, and the adaptive weights of each at its moment, float32[L, BASE_COUNT].
    """
    rows = agenda.rows
    features = FEATURE_COUNT if with_habits else len(pipeline.ranker.features)
    lists = new_lists(len(rows), features, pipeline.candidates)
    weights_then = np.zeros((len(rows), BASE_COUNT), np.float32)
    timeline = _timeline(agenda, options.learn and pipeline.weights is not None)
    query = _query(pipeline, agenda, vectors, options)
    weights = pipeline.weights or AdaptiveWeights(np.zeros(BASE_COUNT))
    people = people_of(result.states[user_id].habits for user_id in agenda.people) if with_habits else people_of([])
    pipeline.statistics.reserve(len(pipeline.catalogue), len(agenda.moments))
    ranking.play(
        pipeline.statistics.arrays,
        pipeline.scratch(),
        pipeline.vectors.rows,
        pipeline.catalogue.available,
        query,
        people,
        pipeline.turns,
        lists,
        weights.weights,
        weights.squares,
        weights_then,
        timeline,
    )
    if with_habits:
        for user_id, at in agenda.people.items():
            result.states[user_id].habits = habits_of(people, at)
    if timeline.counts.any():
        result.touches.append(_touches(timeline))
    return lists, weights_then


def _timeline(agenda: Agenda, learn: bool) -> Timeline:
    moments = agenda.moments
    event_time_ms = np.array([m.event_time_ms for m in moments], np.int64)
    since_ms = np.array([m.since_ms for m in moments], np.int64)
    recent, recent_ms = _recent([m.recent for m in moments], PAIR_WINDOW)
    return Timeline(
        ask_row=np.array([m.ask_row for m in moments], np.int64),
        ask_fresh=np.array([m.ask_fresh for m in moments], np.bool_),
        target=np.array([m.target for m in moments], np.int32),
        learn=np.array([learn and m.counts for m in moments], np.bool_),
        counts=np.array([m.counts for m in moments], np.bool_),
        publish_row=np.array([m.publish_row for m in moments], np.int64),
        item=np.array([m.item for m in moments], np.int32),
        event_time_ms=event_time_ms,
        value=np.array([m.value for m in moments], np.float32),
        first=np.array([m.first for m in moments], np.bool_),
        strong=np.array([m.strong for m in moments], np.bool_),
        recent=recent,
        recent_gap_ms=np.maximum(event_time_ms[:, None] - recent_ms, 0),
        tag=np.array([m.tag for m in moments], np.int32),
        chosen=np.array([m.chosen for m in moments], np.int32),
        since_ms=since_ms,
        gap_ms=np.where(since_ms >= 0, np.maximum(event_time_ms - since_ms, 0), FIRST_EVENT),
        person=np.array([m.person for m in moments], np.int64),
    )


def _touches(timeline: Timeline) -> Touches:
    kept = timeline.counts
    return Touches(
        timeline.item[kept],
        timeline.event_time_ms[kept],
        timeline.value[kept],
        timeline.first[kept],
        timeline.strong[kept],
        timeline.recent[kept],
        timeline.recent_gap_ms[kept],
        timeline.tag[kept],
        timeline.chosen[kept],
        timeline.gap_ms[kept],
    )


def _query(pipeline: Pipeline, agenda: Agenda, vectors: Sequence[F32], options: PipelineOptions) -> Query:
    rows = agenda.rows
    users = np.zeros((len(rows), pipeline.encoder.dimension), np.float32)
    for at, vector in enumerate(vectors):
        users[at] = vector
    ends = np.cumsum([len(row.excluded) for row in rows], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(rows) else ends
    excluded = np.concatenate([row.excluded for row in rows]) if len(rows) else np.empty(0, np.int32)
    # A log-linear ranker is asked as far back as ever, also where more features are computed than it reads.
    window = LEARNED_QUERY_WINDOW if pipeline.learned else QUERY_WINDOW
    recent, recent_ms = _recent([row.recent for row in rows], window)
    deep = np.array([pipeline.learned or row.travels for row in rows], np.bool_)
    return Query(
        user=users,
        now_ms=np.array([row.now_ms for row in rows], np.int64),
        last_ms=np.array([row.last_ms for row in rows], np.int64),
        recent=recent,
        recent_ms=recent_ms,
        liked=_liked(rows, deep, options),
        history=np.array([row.history for row in rows], np.float32),
        chosen=np.array([row.chosen for row in rows], np.float32),
        person=np.array([agenda.person(row.state.user_id) for row in rows], np.int64),
        target=np.array([row.target for row in rows], np.int32),
        deep=deep,
        encoder_top=_nearest(pipeline, rows, vectors, users, excluded, starts, ends),
        newest=pipeline.catalogue.newest(NEWEST),
        excluded_from=starts,
        excluded_to=ends,
        excluded=excluded,
    )


def _nearest(
    pipeline: Pipeline,
    rows: Sequence[Row],
    vectors: Sequence[F32],
    users: F32,
    excluded: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    """int32[L, E]. A list asked just before an event has the vector and exclusions of the one published last: one
    search for both."""
    if not rows:
        return np.empty((0, 0), np.int32)
    known: dict[tuple[int, int], int] = {}
    searched = [
        known.setdefault((id(vector), len(row.excluded)), len(known)) for row, vector in zip(rows, vectors, strict=True)
    ]
    _, first, place = np.unique(np.array(searched), return_index=True, return_inverse=True)
    return pipeline.nearest_to(users[first], excluded, starts[first], ends[first])[place]


def _liked(rows: Sequence[Row], deep: npt.NDArray[np.bool_], options: PipelineOptions) -> npt.NDArray[np.bool_]:
    """bool[L, LEARNED_QUERY_WINDOW]: the latest word on each recent item was a good one; only of deep lists.

    Args:
        deep: bool[L].
    """
    out = np.zeros((len(rows), LEARNED_QUERY_WINDOW), np.bool_)
    good: dict[tuple[str, float | None], bool] = {}
    # The list asked before an event looks back on the same interactions as the one published before it.
    found: dict[int, list[bool]] = {}
    for at in np.flatnonzero(deep).tolist():
        interactions = rows[at].interactions
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


def _recent(rows: Sequence[RecentItems], length: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """int32[rows, length] and int64[rows, length], the latest items and their times, -1 where there are fewer."""
    item, time_ms = np.full((len(rows), length), -1, np.int32), np.full((len(rows), length), -1, np.int64)
    for at, row in enumerate(rows):
        known = min(len(row.item), length)
        item[at, :known], time_ms[at, :known] = row.item[:length], row.time_ms[:length]
    return item, time_ms
