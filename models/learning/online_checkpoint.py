"""Keeps an online trainer on disk: a directory a save, written whole, then renamed, so that a kill leaves the last.

Past lists, by far the most of it, are written once, in a file a save, and read again from all files that still count.
No pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.domain.features import FEATURE_COUNT
from models.domain.feedback import FEEDBACK_VERSION
from models.learning.checkpoint import CheckpointError, OtherReleaseError, flush
from models.learning.contenders import Challenger
from models.learning.lists import ListBuffer, Lists
from models.learning.online_config import OnlineConfig
from models.learning.training_state import SCHEMA as STATE_SCHEMA
from models.learning.training_state import TrainingState, TrainingStateError

# Of a save's own files, and of what they hold: models, records, rankers and lists.
SCHEMA = [3, STATE_SCHEMA, FEEDBACK_VERSION, FEATURE_COUNT]
_STATE, _LOG, _CHALLENGER = "state.json", "log.safetensors", "challenger"
_ROUND, _LISTS = "round-", "lists-"


def newest(directory: Path) -> Path | None:
    """The directory of the last save, None where nothing was saved."""
    found = sorted(path for path in directory.glob(f"{_ROUND}*") if not path.name.endswith(".draft"))
    return found[-1] if found else None


def write_whole(directory: Path, save: int, fill: Callable[[Path], None], kept: Sequence[str]) -> None:
    """
    Args:
        save: number of this save; they grow.
        fill: writes the files into the directory it is given.
        kept: files beside the rounds that this save refers to; others are removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    whole = directory / f"{_ROUND}{save:012d}"
    draft = directory / f"{whole.name}.draft"
    for left in directory.glob("*.draft"):  # of a save that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    draft.mkdir()
    fill(draft)
    for path in draft.iterdir():
        flush(path)
    draft.rename(whole)
    flush(directory)
    for old in directory.glob(f"{_ROUND}*"):
        if old != whole:
            shutil.rmtree(old)
    for file in directory.glob(f"{_LISTS}*"):
        if file.name not in kept:
            file.unlink()


class SavedLists:
    """What of a list buffer is on disk: files of the newest lists, oldest first."""

    def __init__(self, files: Sequence[tuple[str, int]] = (), appended: int = 0) -> None:
        self.files = list(files)
        """(Name, lists in it)."""
        self.appended = appended
        """Lists ever written."""

    def write(self, directory: Path, lists: ListBuffer, save: int) -> None:
        """Write what was appended since the last time, and leave out files of lists that are not kept any more."""
        fresh = min(lists.appended - self.appended, len(lists))
        if fresh:
            directory.mkdir(parents=True, exist_ok=True)
            name, whole = f"{_LISTS}{save:012d}.safetensors", lists.lists
            draft = directory / f"{name}.draft"
            save_file(vars(whole.take(slice(len(lists) - fresh, len(lists)))), draft)
            flush(draft)
            draft.rename(directory / name)
            self.files.append((name, fresh))
            self.appended = lists.appended
        while self.files and sum(rows for _, rows in self.files[1:]) >= len(lists):
            del self.files[0]

    def read(self, directory: Path, lists: ListBuffer, count: int) -> None:
        """Fill the buffer with the newest `count` of the lists that were written."""
        skipped = max(0, sum(rows for _, rows in self.files) - count)
        for name, _ in self.files:
            lists.extend(Lists(**load_file(directory / name)).take(slice(skipped, None)))
            skipped = 0
        lists.appended = self.appended


def write_challenger(directory: Path, challenger: Challenger) -> dict[str, Any]:
    """Returns: what of it fits into JSON."""
    challenger.encoders.save(directory)
    challenger.rankers.save(directory)
    return {
        "kinds": challenger.kinds,
        "candidates": challenger.candidates,
        "reached": challenger.reached.tolist(),
        "reachable": challenger.reachable,
        "windows": challenger.windows,
        "events": challenger.events,
        "fitted_lists": challenger.fitted_lists,
        "until_ms": challenger.until_ms,
        "learned": challenger.learned,
    }


def read_challenger(directory: Path, state: dict[str, Any], lists: ListBuffer, config: OnlineConfig) -> Challenger:
    return Challenger.restored(directory, state, lists, config.encoder, config.ranker)


def write_round(
    directory: Path,
    state: dict[str, Any],
    log: dict[str, np.ndarray[Any, Any]],
    models: dict[str, TrainingState],
    challenger: Challenger | None,
) -> None:
    """The files of one save."""
    for name, model in models.items():
        (directory / f"{name}.safetensors").write_bytes(model.encode())
    save_file({name: np.ascontiguousarray(each) for name, each in log.items()}, directory / _LOG)
    own = None
    if challenger is not None:
        (directory / _CHALLENGER).mkdir()
        own = write_challenger(directory / _CHALLENGER, challenger)
        for path in (directory / _CHALLENGER).iterdir():
            flush(path)
    (directory / _STATE).write_text(json.dumps({"schema": SCHEMA, "challenger": own, **state}))


class SavedRound:
    """One save, opened. Raises: CheckpointError; OtherReleaseError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.state: dict[str, Any] = json.loads((directory / _STATE).read_text())
            if self.state["schema"] != SCHEMA:
                raise OtherReleaseError(f"{directory}: of schema {self.state['schema']}, this release reads {SCHEMA}")
            self.log = load_file(directory / _LOG)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{directory}: cannot be read: {error}") from error

    def model(self, name: str) -> TrainingState | None:
        path = self.directory / f"{name}.safetensors"
        try:
            return TrainingState.decode(path.read_bytes()) if path.exists() else None
        except (OSError, TrainingStateError) as error:
            raise CheckpointError(f"{path}: {error}") from error

    def challenger(self, lists: ListBuffer, config: OnlineConfig) -> Challenger | None:
        own = self.state["challenger"]
        return None if own is None else read_challenger(self.directory / _CHALLENGER, own, lists, config)
