"""Why an item stands in a list, in a few words a person can read."""

from __future__ import annotations

# A reason is a line under a title, not a paragraph.
MAX_TITLE = 80

_VERBS = {
    "view": "viewed",
    "click": "clicked",
    "play": "played",
    "follow": "followed",
    "comment": "commented on",
    "like": "liked",
    "bookmark": "bookmarked",
    "share": "shared",
    "add_to_cart": "put in your cart",
    "review": "reviewed",
    "rating": "rated",
    "purchase": "bought",
}
_BY_SOURCE = {
    "covisitation": "chosen together with what you looked at",
    "encoder": "close to what you like",
    "trending_10_events": "people are choosing it right now",
    "trending_100_events": "trending now",
    "popular_24_hours": "popular in the last 24 hours",
    "popular_10000_events": "popular with everybody",
    "new_and_rising": "new and rising",
    "latest": "somebody just chose it",
    "catalogue": "new in the catalogue",
}


def short_title(title: str) -> str:
    return title if len(title) <= MAX_TITLE else title[: MAX_TITLE - 1] + "…"


def because_of(title: str, kind: str, value: float | None) -> str:
    """A reason owed to one earlier interaction: "because you rated Heat (1995) 5"."""
    words = f"because you {_VERBS.get(kind, 'chose')} {short_title(title)}"
    return words if value is None or kind not in ("rating", "review") else f"{words} {value:g}"


def of_source(source: str) -> str:
    return _BY_SOURCE[source]
