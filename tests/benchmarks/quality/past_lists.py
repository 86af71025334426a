"""Past lists on disk, their parts by time, places in them: shared by rankers of two environments, hence numpy only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.learning.lists import Lists

K = 10
# The latest tenth is what is compared on; of the rest, the latest tenth is what everything is chosen on.
CHOSEN_FROM, TESTED_FROM = 0.81, 0.9
# Lists scored in one call, and lists that are timed.
SCORED_AT_ONCE, TIMED = 64, 1_024


@dataclass
class PastLists(Lists):
    """Lists asked before the events [0, end)."""

    asked: npt.NDArray[np.int64]
    """Events before which a list was asked, whether it held the chosen item or not."""
    end: int

    def rows(self, start: float, until: float) -> npt.NDArray[np.int64]:
        """Lists asked in a part of the events, told in shares of them."""
        first, last = np.searchsorted(self.at, [int(start * self.end), int(until * self.end)])
        return np.arange(first, last)

    def figures(self, places: npt.NDArray[np.float64], start: float, until: float) -> tuple[float, float]:
        """nDCG@10 and HR@10 over all that was asked in that part; a choice that is in no list is a miss."""
        first, last = int(start * self.end), int(until * self.end)
        asked = int(((self.asked >= first) & (self.asked < last)).sum())
        listed = places <= K
        return float((listed / np.log2(1 + places)).sum() / asked), float(listed.sum() / asked)


def spread(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """About `count` of the rows, spread evenly over them."""
    return rows[:: max(1, len(rows) // count)]


def batches(lists: PastLists, rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
    """float32[`SCORED_AT_ONCE`, K, F]."""
    for start in range(0, len(rows), SCORED_AT_ONCE):
        yield lists.features[rows[start : start + SCORED_AT_ONCE]].astype(np.float32)


def scored(
    score: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]], lists: PastLists, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    return np.concatenate([score(features) for features in batches(lists, rows)])


def microseconds_a_list(
    score: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]], lists: PastLists, rows: npt.NDArray[np.int64]
) -> float:
    """CPU time of scoring, reading not counted, over the first `TIMED` rows."""
    rows = rows[:TIMED]
    timed = list(batches(lists, rows))
    started = time.process_time()
    for features in timed:
        score(features)
    return (time.process_time() - started) / len(rows) * 1e6


def is_written(folder: Path) -> bool:
    return (folder / "lists.npz").exists()


def write_lists(folder: Path, lists: PastLists) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "features.npy", lists.features)
    others = {name: value for name, value in vars(lists).items() if name != "features"}
    np.savez(folder / "lists.npz", **others)  # last: it says that the folder is whole


def read_lists(folder: Path) -> PastLists:
    """The features stay on disk until they are read."""
    with np.load(folder / "lists.npz") as held:
        others = {name: held[name] for name in held.files}
    features = np.load(folder / "features.npy", mmap_mode="r")
    return PastLists(**{**others, "end": int(others["end"])}, features=features)
