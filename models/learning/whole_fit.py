"""A whole fit: an encoder anew over the log, and a ranker on all past lists where these are many. Needs torch.

It takes minutes, so that it is a job that a process of its own can do, `python -m models.learning.whole_fit DIRECTORY`,
while rounds go on. The same job gives the same weights in either place.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.domain.errors import RecommenderError
from models.learning.checkpoint import CheckpointError
from models.learning.encoder_config import EncoderConfig
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.lists import Lists
from models.learning.log import TrainingLog
from models.learning.ranker_trainer import RankerConfig, RankerTrainer

# Behind the worker and the trainer's rounds, which are waited for.
NICENESS = 10
_JOB, _LOG, _LISTS = "job.json", "log.safetensors", "lists.safetensors"
_FITTED = "fitted"


class FitError(RecommenderError):
    """A whole fit that did not come to its end."""


class WholeFit(NamedTuple):
    """What is to be fitted."""

    log: TrainingLog
    end: int
    """Events [0, end) are learned from; those behind tell how many passes pay off."""
    encoders: EncoderTrainer
    """One that has learned nothing."""
    rankers: RankerTrainer | None
    """None: past lists are too few, and who asked goes on with the ranker there is."""
    lists: Lists | None
    """What the ranker learns from."""
    validation: float
    """Latest share of the lists, on which is chosen how long the ranker trains."""


class Fitted(NamedTuple):
    encoders: EncoderTrainer
    rankers: RankerTrainer | None


class Fits(Protocol):
    """Where whole fits are done: one at a time."""

    def begin(self, job: WholeFit) -> None:
        """The job's arrays may change once it returns. Raises: FitError."""
        ...

    @property
    def busy(self) -> bool:
        """Whether one was begun and neither taken nor abandoned."""
        ...

    def take(self) -> Fitted | None:
        """The fit that was begun, None while it goes on. Raises: FitError where it failed; none is begun then."""
        ...

    def abandon(self) -> None: ...


class FitsInline:
    """In the calling thread, at once: what is deterministic."""

    def __init__(self) -> None:
        self._fitted: Fitted | None = None

    def begin(self, job: WholeFit) -> None:
        self._fitted = fit_whole(job)

    @property
    def busy(self) -> bool:
        return self._fitted is not None

    def take(self) -> Fitted | None:
        found, self._fitted = self._fitted, None
        return found

    def abandon(self) -> None:
        self._fitted = None


def fit_whole(job: WholeFit) -> Fitted:
    encoders, rankers, lists = job.encoders, job.rankers, job.lists
    encoders.fit(job.log, job.end, epochs=encoders.config.passes, looks=True)
    encoders.choose_passes(job.log, job.end, len(job.log))
    if rankers is not None and lists is not None:
        rankers.fit_latest(lists, int((1.0 - job.validation) * len(lists.at)))
    return Fitted(encoders, rankers)


# a process of its own -------------------------------------------------------------------------------------------------


def write_job(directory: Path, job: WholeFit) -> None:
    """Raises: FitError."""
    log, lists, rankers = job.log, job.lists, job.rankers
    state: dict[str, Any] = {
        "kinds": log.kinds,
        "end": job.end,
        "encoder": job.encoders.config,
        "ranker": None if rankers is None else rankers.config,
        "ranker_seed": 0 if rankers is None else rankers.seed,
        "validation": job.validation,
    }
    try:
        directory.mkdir(parents=True)
        arrays = {name: np.ascontiguousarray(each) for name, each in vars(log).items() if name != "kinds"}
        save_file(arrays, directory / _LOG)
        if lists is not None:
            save_file(vars(lists), directory / _LISTS)
        job.encoders.save(directory)
        (directory / _JOB).write_bytes(msgspec.json.encode(state))
    except (OSError, SafetensorError) as error:
        raise FitError(f"a whole fit's job could not be written: {error}") from error


def read_job(directory: Path) -> WholeFit:
    """Raises: OSError, SafetensorError, CheckpointError."""
    state = json.loads((directory / _JOB).read_text())
    ranker = state["ranker"]
    rankers = None if ranker is None else RankerTrainer(RankerConfig(**ranker), state["ranker_seed"])
    return WholeFit(
        log=TrainingLog(**load_file(directory / _LOG), kinds=tuple(state["kinds"])),
        end=state["end"],
        encoders=EncoderTrainer.load(directory, msgspec.convert(state["encoder"], EncoderConfig)),
        rankers=rankers,
        lists=Lists(**load_file(directory / _LISTS)) if (directory / _LISTS).exists() else None,
        validation=state["validation"],
    )


def write_fitted(directory: Path, found: Fitted) -> None:
    """Whole, or not at all. Raises: OSError."""
    draft = directory / f"{_FITTED}.draft"
    found.encoders.save(draft)
    if found.rankers is not None:
        found.rankers.save(draft)
    draft.rename(directory / _FITTED)


def read_fitted(directory: Path, job: WholeFit) -> Fitted:
    """
    Args:
        job: what was fitted; its arrays are not looked at.
    Raises: FitError.
    """
    place = directory / _FITTED
    try:
        rankers = None if job.rankers is None else RankerTrainer.load(place, job.rankers.config)
        return Fitted(EncoderTrainer.load(place, job.encoders.config), rankers)
    except CheckpointError as error:
        raise FitError(f"a whole fit left nothing that can be read: {error}") from error


def _end_with_parent() -> None:
    """Whoever began the fit holds the other end of standard input: its end is this process's too."""

    def wait() -> None:
        # Not through `sys.stdin`, whose lock a daemon thread would still hold at the interpreter's end.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(directory: Path) -> None:
    _end_with_parent()
    os.nice(NICENESS)
    torch.set_num_threads(1)
    write_fitted(directory, fit_whole(read_job(directory)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
