"""The newest rounds of a trainer, kept for an encoder that is fitted without them to learn from them as they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from msgspec import structs

from models.domain.feedback import Feedback
from models.learning.rounds import Scene


class Window(NamedTuple):
    """A round's records, without the features of their lists, and what was known when they came."""

    scene: Scene
    start: int
    """Number of the first record's event in the log."""
    end: int
    """Events of the log when they had come."""


class RecentRounds:
    """Oldest first; as few as hold so many records.

    Args:
        records: kept at least, once there are as many.
    """

    def __init__(self, records: int) -> None:
        self._records = records
        self._windows: deque[Window] = deque()
        self._held = 0

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows)

    @property
    def records(self) -> int:
        return self._held

    def newest(self, records: int) -> list[Window]:
        """As few of the newest as hold so many records, oldest first."""
        found: list[Window] = []
        held = 0
        for window in reversed(self._windows):
            if held >= records:
                break
            found.append(window)
            held += len(window.scene.records)
        return found[::-1]

    def add(self, window: Window) -> None:
        scene = window.scene
        window = window._replace(scene=scene._replace(records=[_without_features(each) for each in scene.records]))
        self._windows.append(window)
        self._held += len(scene.records)
        while self._held - (oldest := len(self._windows[0].scene.records)) >= self._records:
            self._windows.popleft()
            self._held -= oldest

    def clear(self) -> None:
        self._windows.clear()
        self._held = 0


def _without_features(record: Feedback) -> Feedback:
    """They are the largest part of a record, and the lists' arrays hold them."""
    if record.candidates is None or not record.candidates.features:
        return record
    return structs.replace(record, candidates=structs.replace(record.candidates, features=b""))
