"""Made-up streams of events, the same in every run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

START_MS = 1_700_000_000_000
KINDS = ("view", "click", "play", "like", "bookmark", "add_to_cart", "purchase")
QUERIES = ("a quiet film", "boots for the rain", "cheap coffee", "a book about stars")


def make_events(
    count: int, *, users: int = 300, items: int = 400, seed: int = 1, first: int = 0, prefix: str = ""
) -> list[dict[str, Any]]:
    """Mixed events in time order: users with tastes choose popular items; some searches, hides and impressions."""
    rng = random.Random(seed)
    out: list[dict[str, Any]] = []
    time_ms = START_MS
    for number in range(first, first + count):
        time_ms += rng.randrange(1, 4_000)
        user = int(users * rng.random() ** 1.5)
        # A user's taste is a stretch of the catalogue; low numbers in it are popular.
        item = (user * 37 + int(items * rng.random() ** 3)) % items
        event: dict[str, Any] = {
            "event_id": f"{prefix}e{number}",
            "user_id": f"{prefix}u{user}",
            "event_time_ms": time_ms,
        }
        chance = rng.random()
        if chance < 0.01:
            event |= {"type": "search", "text": rng.choice(QUERIES)}
        elif chance < 0.02:
            event |= {"type": "hide", "item_id": f"i{item}"}
        elif chance < 0.03:
            event |= {"type": "impression", "item_ids": [f"i{item}", f"i{(item + 1) % items}"]}
        elif chance < 0.5:
            event |= {"type": "rating", "item_id": f"i{item}", "value": rng.randrange(1, 11) / 2}
        else:
            event |= {"type": rng.choice(KINDS), "item_id": f"i{item}"}
        out.append(event)
    return out


def make_items(count: int = 400) -> list[dict[str, Any]]:
    """Titles of two words, so that neighbours in number are neighbours in meaning."""
    subjects = ("river", "engine", "garden", "planet", "kitchen", "harbour", "violin", "desert", "winter", "castle")
    return [
        {"item_id": f"i{n}", "title": f"{subjects[n * 10 // count]} story {n}", "categories": [subjects[n % 10]]}
        for n in range(count)
    ]


def expected_touches(events: Sequence[dict[str, Any]]) -> Counter[str]:
    """Item -> interactions with it: what the item statistics must have counted."""
    return Counter(
        event["item_id"] for event in events if event["type"] not in ("search", "hide", "impression", "forget")
    )
