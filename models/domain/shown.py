"""What a user was shown lately, and which of it an interaction answers to.

A list published in a slice is known by name before its items are, so entries wait for them until the slice is ranked.
Knows nothing of ranking. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from models.domain.candidates import SOURCES
from models.domain.events import MAX_IMPRESSION_ITEMS, Impression, Interaction
from models.domain.feedback import Shown

if TYPE_CHECKING:
    from models.domain.state import UserState

# Who acts on a list has mostly got it as one of the latest few: each event of his makes another. Every further list
# is half a kilobyte more in each user's state.
SHOWN_LENGTH = 4

NamedBy = Literal["recommendation", "request", "latest"]


class ShownList(NamedTuple):
    """A list or impression as a user's state keeps it."""

    recommendation_id: str | None
    request_id: str | None
    model_version: str
    """Empty for an impression that the application composed."""
    items: tuple[str, ...]
    sources: bytes
    """Place in `SOURCES` of each item's source; empty where nobody knows."""
    impression: bool = False


class Entry:
    """A list or impression during a slice."""

    __slots__ = ("row", "shown")

    def __init__(self, shown: ShownList, row: int = -1) -> None:
        self.shown = shown
        self.row = row
        """Of the slice's list that has its items, -1 = they are there."""


class Exposures:
    """What the users of a slice were shown, as the slice goes on."""

    def __init__(self) -> None:
        self._rings: dict[str, tuple[UserState, list[Entry]]] = {}
        self._waiting: list[Entry] = []
        self._confirmed: list[tuple[Entry, Entry]] = []
        """Impressions of lists of ours, each with its list."""

    def publish(
        self, state: UserState, recommendation_id: str, request_id: str | None, model_version: str, row: int
    ) -> None:
        entry = Entry(ShownList(recommendation_id, request_id, model_version, (), b""), row)
        self._waiting.append(entry)
        self._add(state, entry)

    def show(self, state: UserState, impression: Impression) -> None:
        recommendation_id, request_id = _named(impression)
        found = _find(self._ring(state), recommendation_id, request_id)
        version = found[1].shown.model_version if found else ""
        if found and recommendation_id is None:
            recommendation_id = found[1].shown.recommendation_id
        items = tuple([str(item) for item in impression.item_ids])
        entry = Entry(ShownList(recommendation_id, request_id, version, items, b"", impression=True))
        if found:
            self._confirmed.append((entry, found[1]))
        self._add(state, entry)

    def answered_by(self, state: UserState, event: Interaction) -> tuple[NamedBy, Entry] | None:
        """What the interaction names, else the list published last; None where the user has had no list."""
        ring = self._ring(state)
        found = _find(ring, *_named(event))
        if found is None:
            latest = next((entry for entry in reversed(ring) if not entry.shown.impression), None)
            return None if latest is None else ("latest", latest)
        return found

    def settle(self, items: Sequence[tuple[str, ...]], sources: Sequence[bytes]) -> None:
        """The slice's lists are made: fill them in, and leave in the states what the next slice may ask for.

        Args:
            items: by row.
            sources: by row.
        """
        for entry in self._waiting:
            entry.shown = entry.shown._replace(items=items[entry.row], sources=sources[entry.row])
        for impression, of in self._confirmed:
            source = dict(zip(of.shown.items, of.shown.sources, strict=False))
            shown = impression.shown
            if all(item in source for item in shown.items):
                impression.shown = shown._replace(sources=bytes([source[item] for item in shown.items]))
        for state, ring in self._rings.values():
            state.shown = tuple([entry.shown for entry in ring])

    def _ring(self, state: UserState) -> list[Entry]:
        known = self._rings.get(state.user_id)
        if known is None:
            ring = [Entry(shown) for shown in state.shown]
            if state.last_items and all(entry.shown.impression for entry in ring):
                # Published before lists were kept: the state knows no more of it.
                ring.insert(0, Entry(ShownList(None, None, state.last_model, state.last_items, b"")))
            known = self._rings[state.user_id] = state, ring
        return known[1]

    def _add(self, state: UserState, entry: Entry) -> None:
        ring = self._ring(state)
        ring.append(entry)
        while len(ring) > SHOWN_LENGTH:
            _drop_oldest(ring)
        if entry.shown.impression:
            # Impressions of whole pages must not swell the state: of them as much as the largest single one may have.
            seen = [one for one in ring if one.shown.impression]
            surplus = sum(len(one.shown.items) for one in seen) - MAX_IMPRESSION_ITEMS
            while surplus > 0:
                oldest = seen.pop(0)
                surplus -= len(oldest.shown.items)
                ring.remove(oldest)


def told(named_by: NamedBy, shown: ShownList, item_id: str) -> Shown:
    """As a trainer is told."""
    return Shown(
        named_by=named_by,
        recommendation_id=shown.recommendation_id,
        model_version=shown.model_version,
        items=shown.items,
        sources=tuple([SOURCES[at] if at < len(SOURCES) else "" for at in shown.sources]),
        place=shown.items.index(item_id) + 1 if item_id in shown.items else 0,
    )


def _named(event: Interaction | Impression) -> tuple[str | None, str | None]:
    return (
        None if event.recommendation_id is None else str(event.recommendation_id),
        None if event.request_id is None else str(event.request_id),
    )


def _find(ring: list[Entry], recommendation_id: str | None, request_id: str | None) -> tuple[NamedBy, Entry] | None:
    """The newest entry of that name."""
    if recommendation_id is not None:
        for entry in reversed(ring):
            if entry.shown.recommendation_id == recommendation_id:
                return "recommendation", entry
    if request_id is not None:
        for entry in reversed(ring):
            if entry.shown.request_id == request_id:
                return "request", entry
    return None


def _drop_oldest(ring: list[Entry]) -> None:
    """Without the newest list, which an interaction that names nothing answers to."""
    newest = next((entry for entry in reversed(ring) if not entry.shown.impression), None)
    ring.remove(next(entry for entry in ring if entry is not newest))
