"""What the trainer process needs of whoever learns: implemented by the command line's composition, over torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from models.domain.feedback import Record
from models.domain.ports import F32

Decision = Literal["wait", "first", "promote", "keep", "discard", "rollback"]


class Round(NamedTuple):
    """What a round led to."""

    decision: Decision
    """`wait` = too little to go on; `first` = there was no learned model; `rollback` = back to the former champion."""
    reason: str
    """For people, with the figures that decided."""
    figures: Mapping[str, float]


class OnlineLearner(Protocol):
    """A champion that is served, a challenger that learns. One thread at a time."""

    def adopt(self, bundle: Path) -> None:
        """The bundle in that directory is champion now; the challenger starts from it. Raises: BundleError."""
        ...

    def declare(self, item_ids: Sequence[str], text: F32) -> None:
        """Items joined the catalogue, or their text changed. Args: text: float32[n, E], L2-normalised."""
        ...

    def append(self, records: Sequence[Record], texts: Mapping[str, F32]) -> int:
        """Take records over; durable after the next `flush`. One that was taken before is dropped.

        Args:
            texts: embedding of each text that the records carry.
        Returns: how many were new.
        """
        ...

    def flush(self) -> None:
        """Everything taken over is on disk when it returns."""
        ...

    @property
    def waiting(self) -> int:
        """Records since the last round."""
        ...

    @property
    def buffered(self) -> tuple[int, float]:
        """Records in the replay buffer, and seconds between its oldest and newest event."""
        ...

    def round(self) -> Round:
        """Compare on the records since the last round, decide, then train on them. Durable when it returns."""
        ...

    def write(self, out: Path) -> Path:
        """The challenger as it was compared in the last round, as a bundle. Raises: BundleError, ParityError."""
        ...

    def promoted(self, bundle: Path) -> None:
        """What `write` wrote is champion now; the challenger goes on learning. Durable when it returns."""
        ...
