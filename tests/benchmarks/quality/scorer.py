"""Figures of lists and of places, computed from the log alone: no code of the product and none of the peers.

Definitions:
- nDCG@10, HR@10, MRR@10 of one relevant item; `mrr` without the cut where the whole catalogue was ranked.
- coverage@10: share of the catalogue that stands in any list.
- novelty: mean self-information of the listed items in bits, -log2 of (past touches + 1) / (all past touches + N).
- long tail: share of listed items outside the head; the head is the fewest items, most touched first, that hold 80% of
  all past touches, counted anew every 100 events.
- cold user, new item: fewer than five earlier events of the user, of the chosen item.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.benchmarks.quality.intervals import interval_by_user
from tests.benchmarks.quality.protocol import K, Part, Ranked, gains
from tests.benchmarks.quality.stream import F64, I64, Bools, Stream

HEAD_SHARE, HEAD_EVERY = 0.8, 100
FEW_EVENTS = 5


class ListsError(ValueError):
    """A file of lists does not fit the log."""


def read_lists(path: Path, part: Part) -> tuple[Ranked, dict[str, int]]:
    """A file of {"event_id", "items", ...} as places (infinite: not in the list), and what is wrong with it.

    Every scored event without a list is a miss. Raises: ListsError for an event named twice.
    """
    stream = part.stream
    item_at = {item: at for at, item in enumerate(stream.item_ids)}
    found: dict[str, list[str]] = {}
    with path.open("rb") as file:
        for line in file:
            record = msgspec.json.decode(line)
            if record["event_id"] in found:
                raise ListsError(f"{path}: two lists for {record['event_id']}")
            found[record["event_id"]] = record["items"]
    lists = np.full((len(part.scored), K), -1, np.int64)
    ranks = np.full(len(part.scored), np.inf)
    wrong = {"missing_lists": 0, "unknown_items": 0, "seen_items": 0, "repeated_items": 0}
    for row, k in enumerate(part.scored):
        items = found.get(stream.event_ids[k])
        if items is None:
            wrong["missing_lists"] += 1
            continue
        at = [item_at.get(item, -1) for item in items[:K]]
        wrong["unknown_items"] += sum(each < 0 or bool(stream.known_from[each] > k) for each in at)
        wrong["repeated_items"] += len(at) - len(set(at))
        wrong["seen_items"] += int(np.isin(at, stream.seen(k)).sum())
        lists[row, : len(at)] = at
        if stream.items[k] in at:
            ranks[row] = at.index(stream.items[k]) + 1
    return Ranked(part.scored, ranks, lists), wrong


def figures(stream: Stream, answers: Ranked, *, whole_catalogue: bool) -> dict[str, Any]:
    """`whole_catalogue`: the ranks go beyond the lists, so that MRR has a meaning without a cut."""
    positions, ranks = answers.positions, answers.ranks
    users = stream.users[positions]
    gained, hits = gains(ranks), (ranks <= K).astype(np.float64)
    listed = answers.lists >= 0
    bits, tail = _past(stream, answers)
    out: dict[str, Any] = {
        "scored_events": len(positions),
        "scored_users": len(np.unique(users)),
        "ndcg_at_10": float(gained.mean()),
        "ndcg_at_10_interval": interval_by_user(gained, users),
        "hr_at_10": float(hits.mean()),
        "hr_at_10_interval": interval_by_user(hits, users),
        "mrr_at_10": float((hits / ranks).mean()),
        "coverage_at_10": len(np.unique(answers.lists[listed])) / stream.catalogue_size,
        "novelty_bits": float(bits[listed].mean()),
        "long_tail_share": float(tail[listed].mean()),
    }
    if whole_catalogue:
        out["mrr"] = float((1 / ranks).mean())
    cold = stream.user_events_before[positions] < FEW_EVENTS
    new = stream.item_events_before[positions] < FEW_EVENTS
    for name, chosen in (("cold", cold), ("warm", ~cold), ("new_item", new)):
        out[f"{name}_events"] = int(chosen.sum())
        out[f"{name}_ndcg_at_10"] = _mean(gained, chosen)
        out[f"{name}_hr_at_10"] = _mean(hits, chosen)
    return out


def _mean(values: F64, chosen: Bools) -> float | None:
    return float(values[chosen].mean()) if chosen.any() else None


def _past(stream: Stream, answers: Ranked) -> tuple[F64, Bools]:
    """float64[S, 10] bits and bool[S, 10] outside the head, of every listed item at its moment."""
    bits = np.zeros(answers.lists.shape)
    tail = np.zeros(answers.lists.shape, bool)
    touches = np.zeros(stream.catalogue_size, np.int64)
    done, head = 0, np.zeros(stream.catalogue_size, bool)
    head_at = -1
    for row, k in enumerate(answers.positions):
        np.add.at(touches, stream.items[done:k], 1)
        done = int(k)
        if k // HEAD_EVERY != head_at:
            head_at, head = k // HEAD_EVERY, _head(touches)
        listed = answers.lists[row]
        bits[row] = np.log2((k + stream.catalogue_size) / (touches[listed] + 1))
        tail[row] = ~head[listed]
    return bits, tail


def _head(touches: I64) -> Bools:
    """bool[N]: the fewest items that hold `HEAD_SHARE` of all touches."""
    order = np.argsort(-touches, kind="stable")
    before = np.cumsum(touches[order]) - touches[order]
    head = np.zeros(len(touches), bool)
    head[order[before < HEAD_SHARE * touches.sum()]] = True
    return head
