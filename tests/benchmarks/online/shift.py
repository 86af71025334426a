"""A regime change: from one moment on, half of the users act as somebody else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def swap_tastes(events: Sequence[dict[str, Any]], at: int, seed: int) -> list[dict[str, Any]]:
    """From event `at` on, pairs of users, half of all in sum, exchange what they do; nobody else changes.

    Only users that act both before and after are paired, in an order drawn by `seed`. Items that a user had before are
    left out of what he takes over, since nobody chooses an item for the first time twice.
    """
    before = {event["user_id"] for event in events[:at]}
    after = {event["user_id"] for event in events[at:]}
    both = np.array(sorted(before & after))
    chosen = np.random.default_rng(seed).permutation(both)[: len(both) // 4 * 2]
    other = dict(zip(chosen[0::2], chosen[1::2], strict=True))
    other |= {second: first for first, second in other.items()}
    had = {(event["user_id"], event["item_id"]) for event in events[:at]}
    shifted = list(events[:at])
    for event in events[at:]:
        user_id = str(other.get(event["user_id"], event["user_id"]))
        if (user_id, event["item_id"]) in had:
            continue
        had.add((user_id, event["item_id"]))
        shifted.append({**event, "user_id": user_id})
    return shifted
