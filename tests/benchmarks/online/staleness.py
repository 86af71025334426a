"""What staleness costs: weights refreshed and states updated at intervals of event time, on the last 20% of a log.

Every row starts from the same training on the first 80% and plays the same events; a row is a child process, so that
none inherits what another learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

from models.domain.evaluation import hit, ndcg
from models.domain.events import MAX_LIST_LENGTH, Event, EventContract, Interaction
from models.domain.protocol import Player, scored_from
from streams.cli.lines import BadLines
from streams.cli.replaying import prepare, read_events, read_items
from streams.cli.training import make_training
from streams.settings import Settings
from tests.benchmarks.online.children import in_children

MINUTE_MS = 60_000
HOUR_MS, DAY_MS = 60 * MINUTE_MS, 24 * 60 * MINUTE_MS
WEIGHTS = {"never": None, "daily": DAY_MS, "hourly": HOUR_MS, "per minute": MINUTE_MS}
STATES = {"per event": 0, "per minute": MINUTE_MS, "per hour": HOUR_MS}
LISTED = 10


def sweep(
    settings: Settings,
    events_path: Path,
    items_path: Path,
    *,
    seed: int,
    side_by_side: int,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row for each pair of intervals: nDCG@10, HR@10 and how often weights were refreshed.

    Args:
        side_by_side: rows played at a time.
    """
    contract = EventContract(settings.interaction_strengths)
    events = read_events(events_path, contract, BadLines(events_path))
    items, _ = read_items(items_path, contract)
    prepared = prepare(settings, contract, events, items)
    learner = make_training(events, prepared, seed=seed, report=report)
    player, start = Player(prepared.pipeline, events, prepared.texts), scored_from(events)
    learner.fit(player, start)
    for _ in player.play_to(start):
        pass
    pairs = {(weights, state): (WEIGHTS[weights], STATES[state]) for weights in WEIGHTS for state in STATES}
    works = {names: partial(_play, learner, player, start, *intervals) for names, intervals in pairs.items()}
    rows = {}
    for (weights, state), found in in_children(works, side_by_side):
        rows[weights, state] = {"weights_refresh": weights, "state_update": state, "seed": seed, **found}
        report(f"weights {weights}, states {state}: nDCG@10 {found['ndcg_at_10']:.4f}")
    return [rows[names] for names in pairs]


def _play(learner: Any, player: Player, start: int, weights_ms: int | None, state_ms: int) -> dict[str, Any]:
    # What nobody learns from would only pile up.
    player.options = player.options._replace(examples=weights_ms is not None)
    events, catalogue = player.events, player.pipeline.catalogue
    touched = {user: set(state.seen) for user, state in player.states.items()}
    waiting: dict[str, list[str]] = {}
    """Items of events that are not folded yet, by user: no list would hold them again."""
    folded = learned = start
    places: list[int] = []
    refreshes = 0
    for at in range(start, len(events)):
        event, now_ms = events[at], events[at].event_time_ms
        if _passed(events, folded, at, state_ms):
            player.play(events[folded:at], folded)
            folded = at
            waiting.clear()
        if weights_ms is not None and folded > learned and _passed(events, learned, at, weights_ms):
            learner.learn(player, learned, folded)
            learned = folded
            refreshes += 1
        if not isinstance(event, Interaction):
            continue
        user = str(event.user_id)
        item = catalogue.intern(str(event.item_id))
        seen, held = touched.setdefault(user, set()), waiting.setdefault(user, [])
        if catalogue.known[item] and catalogue.hashes[item] not in seen:
            asked = player.ask(user, now_ms, min(MAX_LIST_LENGTH, LISTED + len(held)))
            listed = [item_id for item_id in asked if item_id not in held][:LISTED]
            places.append(listed.index(str(event.item_id)) + 1 if str(event.item_id) in listed else 0)
        seen.add(catalogue.hashes[item])
        catalogue.touch(item)
        held.append(str(event.item_id))
    return {
        "ndcg_at_10": float(np.mean([ndcg(place) for place in places])),
        "hr_at_10": float(np.mean([hit(place) for place in places])),
        "scored": len(places),
        "refreshes": refreshes,
    }


def _passed(events: list[Event] | Any, since: int, at: int, interval_ms: int) -> bool:
    """Whether an interval of event time ended between events `since` and `at`; with none, every event ends one."""
    if since >= at:
        return False
    if not interval_ms:
        return True
    return bool(events[since].event_time_ms // interval_ms != events[at].event_time_ms // interval_ms)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, weights down, states across."""

    def cell(weights: str, state: str) -> str:
        return next(
            f"{r['ndcg_at_10']:.4f}" for r in rows if (r["weights_refresh"], r["state_update"]) == (weights, state)
        )

    lines = ["| weights refreshed | " + " | ".join(f"states {name}" for name in STATES) + " |", "|---" * 4 + "|"]
    return "\n".join([*lines, *(f"| {w} | " + " | ".join(cell(w, s) for s in STATES) + " |" for w in WEIGHTS)])


def write_plot(rows: list[dict[str, Any]], out: Path) -> None:
    """PNG: a line for each interval of states, over the intervals of weights."""
    figure, axis = pyplot.subplots(figsize=(6, 3.6))
    for state, values in _lines(rows):
        axis.plot(list(WEIGHTS), values, marker="o", label=f"states {state}")
        for place, value in enumerate(values):
            axis.annotate(f"{value:.4f}", (place, value), xytext=(0, 5), textcoords="offset points", fontsize=7)
    axis.set_xlabel("weights refreshed")
    axis.set_ylabel("nDCG@10")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def _lines(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[float]]]:
    for state in STATES:
        yield (
            state,
            [r["ndcg_at_10"] for w in WEIGHTS for r in rows if (r["weights_refresh"], r["state_update"]) == (w, state)],
        )
