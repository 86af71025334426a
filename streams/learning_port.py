"""What the trainer process needs of whoever learns: implemented by the command line's composition, over torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from models.domain.feedback import Record

Decision = Literal["first", "promote", "keep", "discard", "rollback"]
FitNews = Literal["", "begun", "failed", "won", "lost"]
"""`won`: it took the challenger's place; `lost`: it was worse. One that is given up, since the records it was made of
were forgotten or dropped, begins anew."""


class Round(NamedTuple):
    """What a round led to."""

    decision: Decision
    """`first` = a first model was fitted, which the next rounds compare with what is served; `promote` and `rollback`
    wait for a release, and for `promoted` or `rolled_back`."""
    reason: str
    """For people, with the figures that decided."""
    figures: Mapping[str, float]
    fit: FitNews = ""
    """Of a whole fit, which goes on beside the rounds."""


class OnlineLearner(Protocol):
    """A champion that is served, a challenger that learns. Used by one thread at a time."""

    def adopt(self, bundle: Path) -> None:
        """The bundle in that directory is champion; one that is already changes nothing. Raises: BundleError."""
        ...

    def declare(self, item_ids: Sequence[str], texts: Sequence[str]) -> None:
        """Items joined the catalogue, or their text changed."""
        ...

    def append(self, records: Sequence[Record], offsets: Mapping[int, int]) -> None:
        """Take records over; durable after the next `flush`.

        Args:
            offsets: partition -> next offset after these records.
        """
        ...

    def flush(self) -> Mapping[str, int]:
        """Everything taken over is on disk when it returns.

        Returns: what became of the records since the last flush: `taken` to learn from, `known` already (a worker
            repeats after a crash), `refused` (beyond a user's share), `remembered` (of before the champion's fit).
        """
        ...

    @property
    def offsets(self) -> Mapping[int, int]:
        """Partition -> next offset after what is on disk."""
        ...

    @property
    def waiting(self) -> int:
        """Records on disk that wait for the next round."""
        ...

    @property
    def needed(self) -> int:
        """Records that make a round worth its time."""
        ...

    @property
    def buffered(self) -> tuple[int, int]:
        """Records in the replay buffer, and their bytes."""
        ...

    def round(self) -> Round:
        """Compare on the records since the last round, decide, then train on them. Durable when it returns."""
        ...

    def write(self, out: Path) -> Path:
        """The challenger as it was compared in the last round, as a bundle. Raises: BundleError, ParityError."""
        ...

    def promoted(self, bundle: Path) -> None:
        """What `write` wrote is champion, and lies in that directory from now on."""
        ...

    def rolled_back(self) -> None:
        """The champion before is champion again."""
        ...

    def close(self) -> None: ...
