"""Whole fits that go on for some rounds, as those in a process of their own do, and are deterministic. Needs torch."""

from __future__ import annotations

from models.learning.whole_fit import FitsInline, Fitted


class SlowFits(FitsInline):
    """
    Args:
        rounds: in which a fit that was begun goes on.
    """

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._rounds, self._waited = rounds, 0

    def take(self) -> Fitted | None:
        self._waited += 1
        if self._waited <= self._rounds:
            return None
        self._waited = 0
        return super().take()
