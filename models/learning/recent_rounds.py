"""The newest rounds of a trainer, kept so that a challenger which is fitted later can meet them as if they came now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import structs
from safetensors.numpy import load_file, save_file

from models.domain.feedback import Feedback
from models.learning.checkpoint import flush
from models.learning.rescoring import Histories, ServedLists
from models.learning.rounds import Scene

F64 = npt.NDArray[np.float64]
WINDOWS = "window-"
_RANKER = "ranker."


class Window(NamedTuple):
    """A round's records, without the features of their lists, and what was known when they came."""

    number: int
    """Of the round."""
    scene: Scene
    start: int
    """Number of the first record's event in the log."""
    end: int
    """Events of the log when they had come."""
    asked: npt.NDArray[np.int64]
    """Records that are evidence."""
    champion: F64 | None
    """float64[len(asked)], the places that the champion gave; None where it has learned from them since."""
    ranker: Mapping[str, torch.Tensor]
    """The challenger's, before it learned from them."""

    @property
    def users(self) -> list[str]:
        """Of the records that are evidence."""
        return [self.scene.records[at].user_id for at in self.asked]


class RecentRounds:
    """Oldest first; as few as hold so many records.

    Args:
        records: kept at least, once there are as many.
    """

    def __init__(self, records: int) -> None:
        self._records = records
        self._windows: deque[Window] = deque()
        self._held = 0
        self._written: set[int] = set()
        """Rounds that this process knows to be on disk."""

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows)

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

    def seen(self) -> None:
        """The champion is another one, which has learned from these rounds: they are evidence no more."""
        self._windows = deque(window._replace(champion=None) for window in self._windows)

    # keeping ----------------------------------------------------------------------------------------------------------

    @property
    def files(self) -> list[str]:
        return [_name(window.number) for window in self._windows]

    def write(self, directory: Path) -> list[dict[str, Any]]:
        """Write the rounds that are not there yet, each into a file of its own.

        Returns: what finds them again, and fits into JSON.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for window in self._windows:
            if window.number not in self._written:
                draft = directory / f"{_name(window.number)}.draft"
                save_file(_arrays(window), draft)
                flush(draft)
                draft.rename(directory / _name(window.number))
                self._written.add(window.number)
        return [
            {"number": each.number, "start": each.start, "end": each.end, "seen": each.champion is None}
            for each in self._windows
        ]

    def read(
        self,
        directory: Path,
        state: Sequence[Mapping[str, Any]],
        histories: Callable[[Sequence[Feedback]], list[Histories]],
    ) -> None:
        """Fill with what `write` described. Raises: OSError, SafetensorError, KeyError, msgspec.DecodeError."""
        for each in state:
            arrays = load_file(directory / _name(each["number"]))
            records = msgspec.msgpack.decode(arrays["records"].tobytes(), type=list[Feedback])
            served = ServedLists(*(arrays[name] for name in ServedLists._fields))
            ranker = {
                name.removeprefix(_RANKER): torch.tensor(array)
                for name, array in arrays.items()
                if name.startswith(_RANKER)
            }
            self.add(
                Window(
                    each["number"],
                    Scene(records, served, histories(records)),
                    each["start"],
                    each["end"],
                    arrays["asked"],
                    None if each["seen"] else arrays["champion"],
                    ranker,
                )
            )
            self._written.add(each["number"])


def _name(number: int) -> str:
    return f"{WINDOWS}{number:012d}.safetensors"


def _arrays(window: Window) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = dict(window.scene.served._asdict())
    found["records"] = np.frombuffer(msgspec.msgpack.encode(window.scene.records), np.uint8)
    found["asked"] = window.asked
    if window.champion is not None:
        found["champion"] = window.champion
    return found | {f"{_RANKER}{name}": tensor.numpy() for name, tensor in window.ranker.items()}


def _without_features(record: Feedback) -> Feedback:
    """They are the largest part of a record, and the lists' arrays hold them."""
    if record.candidates is None or not record.candidates.features:
        return record
    return structs.replace(record, candidates=structs.replace(record.candidates, features=b""))
