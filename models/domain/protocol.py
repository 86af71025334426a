"""Replaying a log through the pipeline under an evaluation protocol, without Kafka.

P2 scores before every event and then updates everything; P1 freezes statistics and weights at 80% and lets only the
user's state follow; P1 strict asks with nothing but strictly earlier time stamps in the user's state.
Source: research/ranker-and-protocol.md, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from models.domain.batch import Examples, Incoming
from models.domain.evaluation import hit, interval_by_user, ndcg
from models.domain.events import MAX_LIST_LENGTH, Event, Interaction, Recommendation, Request
from models.domain.pipeline import Pipeline
from models.domain.ports import F32
from models.domain.state import UserState

PROTOCOLS = ("p1", "p1-strict", "p2")
TRAINED_SHARE = 0.8
# Records a pipeline call: only bounds memory, a batch of n gives what n batches of one give.
_BATCH = 512
_LOG = "file"


class Learner(Protocol):
    """Whoever trains on the log as it is played: `fit` plays [0, end), `learn` is called after each scored block."""

    block: int

    def fit(self, player: Player, end: int) -> None: ...

    def learn(self, player: Player, start: int, end: int) -> None: ...


class ScoredEvent:
    """One scored event: what was asked at that moment, and what had been published last."""

    __slots__ = ("asked", "cold", "event", "last_published")

    def __init__(self, event: Interaction, asked: tuple[str, ...], last_published: tuple[str, ...], cold: bool) -> None:
        self.event, self.asked, self.last_published, self.cold = event, asked, last_published, cold

    def place(self, items: tuple[str, ...]) -> int:
        item_id = str(self.event.item_id)
        return items.index(item_id) + 1 if item_id in items else 0


def scored_from(events: Sequence[Event]) -> int:
    """Position of the first event of the last 20% of the interactions."""
    interactions = [at for at, event in enumerate(events) if isinstance(event, Interaction)]
    return interactions[int(TRAINED_SHARE * len(interactions))] if interactions else 0


def replay(
    pipeline: Pipeline,
    events: Sequence[Event],
    protocol: str,
    *,
    texts: Mapping[str, F32] | None = None,
    learner: Learner | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[ScoredEvent]:
    """Play events (in time order) and yield the scored ones of the last 20%.

    Args:
        texts: embedding of each text that the events carry.
        learner: trains on the first 80%, and under P2 on each block after it was scored.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    player = Player(pipeline, events, texts, progress)
    start = scored_from(events)
    if learner is not None:
        learner.fit(player, start)
    for _ in player.play_to(start):
        pass
    if protocol != "p2":
        player.options = player.options._replace(learn=False, counts=False)
    if protocol == "p1-strict":
        yield from _strict(player, start, progress)
        return
    if protocol == "p1" or learner is None:
        yield from player.play_to(len(events))
        return
    player.options = player.options._replace(examples=True)
    for at in range(start, len(events), learner.block):
        end = min(at + learner.block, len(events))
        yield from player.play_to(end)
        learner.learn(player, at, end)


class Player:
    """Plays a log through a pipeline, with a dictionary for a store."""

    def __init__(
        self,
        pipeline: Pipeline,
        events: Sequence[Event],
        texts: Mapping[str, F32] | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.pipeline, self.events, self.progress = pipeline, events, progress
        self.texts = texts or {}
        self.options = pipeline.options._replace(asked_share=1.0, feedback=False)
        self.states: dict[str, UserState] = {}
        self.played = 0
        """Events of the log played so far."""
        self.examples: list[Examples] = []
        """Of the batches played with `options.examples`; positions are the log's. Emptied by whoever learns from it."""
        self._offset = 0

    def play_to(self, end: int) -> Iterator[ScoredEvent]:
        """Play on up to event `end`."""
        while self.played < end:
            start, self.played = self.played, min(self.played + _BATCH, end)
            yield from self.play(self.events[start : self.played], start)
            self.progress(self.played)

    def play(self, events: Sequence[Event], start: int) -> list[ScoredEvent]:
        """Play `events`, which stand in the log from `start` on."""
        incoming = []
        for event in events:
            incoming.append(Incoming(event, _LOG, self._offset))
            self._offset += 1
        result = self.pipeline.run(
            incoming, self.states, generated_at_ms=lambda now: now, texts=self.texts, options=self.options
        )
        self.states.update(result.states)
        self.examples += [e._replace(position=e.position + start, asked=e.asked + start) for e in result.examples]
        cold = {score.position: score.cold for score in result.scores}
        return [
            ScoredEvent(event, asked, result.last_published[at], cold[at])
            for at, asked in sorted(result.asked.items())
            if isinstance(event := events[at], Interaction)
        ]

    def ask(self, user_id: str, now_ms: int, k: int) -> tuple[str, ...]:
        """The list a user would get now; leaves no trace."""
        request = Request(request_id="ask", user_id=user_id, k=k, event_time_ms=now_ms)
        result = self.pipeline.run(
            [Incoming(request, _LOG, self._offset)], self.states, generated_at_ms=lambda now: now, options=self.options
        )
        made = _decode(result.published[0].data)
        return tuple(item.item_id for item in made.items)


def _strict(player: Player, start: int, progress: Callable[[int], None]) -> Iterator[ScoredEvent]:
    """An event enters its user's state only when a later stamp of that user arrives."""
    waiting: dict[str, list[Event]] = {}
    catalogue = player.pipeline.catalogue
    touched = {user: set(state.seen) for user, state in player.states.items()}
    for at, event in enumerate(player.events[start:], start):
        user = str(event.user_id)
        held = waiting.setdefault(user, [])
        if held and held[0].event_time_ms < event.event_time_ms:
            player.play(held, start)
            held.clear()
        if isinstance(event, Interaction):
            item = catalogue.intern(str(event.item_id))
            seen = touched.setdefault(user, set())
            if catalogue.known[item] and catalogue.hashes[item] not in seen:
                same_page = {str(e.item_id) for e in held if isinstance(e, Interaction)}
                asked = player.ask(user, event.event_time_ms, min(MAX_LIST_LENGTH, 10 + len(same_page)))
                state = player.states.get(user)
                yield ScoredEvent(
                    event,
                    tuple(i for i in asked if i not in same_page)[:10],
                    state.last_items if state else (),
                    (state.events if state else 0) + len(held) < 5,
                )
            seen.add(catalogue.hashes[item])
            catalogue.touch(item)
        held.append(event)
        progress(at + 1)


def summary(scored: Sequence[ScoredEvent], catalogue_size: int) -> dict[str, Any]:
    """Figures of a replay: nDCG@10 and HR@10 of both lists with intervals by user, cold and warm, coverage."""
    users = [str(s.event.user_id) for s in scored]
    out: dict[str, Any] = {"scored_events": len(scored), "scored_users": len(set(users))}
    for name in ("asked", "last_published"):
        places = [s.place(getattr(s, name)) for s in scored]
        gains, hits = [ndcg(p) for p in places], [hit(p) for p in places]
        prefix = "" if name == "asked" else "last_published_"
        out[f"{prefix}ndcg_at_10"], out[f"{prefix}hr_at_10"] = _mean(gains), _mean(hits)
        out[f"{prefix}ndcg_at_10_interval"] = interval_by_user(gains, users)
        out[f"{prefix}hr_at_10_interval"] = interval_by_user(hits, users)
        if name == "asked":
            for group, wanted in (("cold", True), ("warm", False)):
                chosen = [at for at, s in enumerate(scored) if s.cold is wanted]
                out[f"{group}_events"] = len(chosen)
                out[f"{group}_ndcg_at_10"] = _mean([gains[at] for at in chosen])
                out[f"{group}_hr_at_10"] = _mean([hits[at] for at in chosen])
    out["coverage_at_10"] = len({i for s in scored for i in s.asked}) / catalogue_size if catalogue_size else 0.0
    return out


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _decode(data: bytes) -> Recommendation:
    import msgspec

    return msgspec.json.decode(data, type=Recommendation)
