"""Past lists that the ranker learns from: the newest ones, in a buffer that grows without copying what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from models.domain.batch import Examples


@dataclass
class Lists:
    """Past lists that hold what was chosen, in the order they were asked."""

    at: npt.NDArray[np.int64]
    """int64[E], position of the event in the log."""
    features: npt.NDArray[np.floating]
    """float16[E, K, F] where they are kept: half precision keeps three digits of a logarithm, at half the memory."""
    size: npt.NDArray[np.int32]
    chosen: npt.NDArray[np.int32]

    def until(self, row: int) -> Lists:
        """Views of the lists before that row."""
        return self.take(slice(row))

    def take(self, rows: npt.NDArray[np.int64] | slice) -> Lists:
        """Copies of those lists, views of a slice."""
        return Lists(self.at[rows], self.features[rows], self.size[rows], self.chosen[rows])

    def before(self, end: int) -> npt.NDArray[np.int64]:
        """Rows of the lists asked before event `end`."""
        return np.arange(int(np.searchsorted(self.at, end)))

    def draw(self, rows: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Of each list the chosen candidate and others, drawn evenly.

        Returns: int64[rows, count], places; those from the list's `size` on hold no candidate.
        """
        candidates = self.features.shape[1]
        keys = rng.random((len(rows), candidates), np.float32)
        keys[np.arange(candidates) >= self.size[rows][:, None]] = 2.0
        keys[np.arange(len(rows)), self.chosen[rows]] = -1.0
        return np.argpartition(keys, count - 1, axis=1)[:, :count]

    def widened(self, candidates: int) -> Lists:
        """The lists with room for so many candidates; of a longer list the last ones are dropped, never the chosen."""
        features, size, chosen = self.features, self.size, self.chosen
        narrow = candidates - features.shape[1]
        if narrow == 0:
            return self
        if narrow > 0:
            return Lists(self.at, np.pad(features, ((0, 0), (0, narrow), (0, 0))), size, chosen)
        features, last = features[:, :candidates].copy(), candidates - 1
        behind = np.flatnonzero(chosen > last)
        features[behind, last] = self.features[behind, chosen[behind]]
        return Lists(self.at, features, np.minimum(size, candidates), np.minimum(chosen, last))

    def places(self, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """1-based places of what was chosen, a tie counted half.

        Args:
            scores: float32[rows, K], anything where there is no candidate.
        """
        scores = np.where(np.arange(scores.shape[1]) < self.size[rows][:, None], scores, -np.inf)
        own = scores[np.arange(len(rows)), self.chosen[rows]][:, None]
        found: npt.NDArray[np.float64] = 1.0 + (scores > own).sum(1) + 0.5 * ((scores == own).sum(1) - 1)
        return found


class ListBuffer:
    """Keeps the newest `capacity` lists.

    The arrays have room for a quarter more, so that the oldest are dropped, and the others moved, only once in as many
    lists; pages of them that hold nothing yet take no memory.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._room = capacity + max(1, capacity // 4)
        self._count = 0
        self._arrays: Lists | None = None
        self.appended = 0
        """Lists ever."""

    def __len__(self) -> int:
        return self._count

    @property
    def lists(self) -> Lists:
        """Views of what is kept; the next `append` may move it."""
        arrays, count = self._arrays, self._count
        if arrays is None:
            raise ValueError("no list was appended yet")
        return arrays.until(count)

    def append(self, fresh: Examples) -> None:
        self.extend(Lists(fresh.position, fresh.features, fresh.size, fresh.chosen))

    def extend(self, fresh: Lists) -> None:
        """All lists of a buffer have room for as many candidates (`Lists.widened`)."""
        fresh_count = min(len(fresh.at), self.capacity)
        if not fresh_count:
            return
        if self._arrays is None:
            self._arrays = Lists(
                at=np.empty(self._room, np.int64),
                features=np.empty((self._room, *fresh.features.shape[1:]), np.float16),
                size=np.empty(self._room, np.int32),
                chosen=np.empty(self._room, np.int32),
            )
        if self._count + fresh_count > self._room:
            self._drop(self._count + fresh_count - self.capacity)
        rows = slice(self._count, self._count + fresh_count)
        self._arrays.at[rows] = fresh.at[-fresh_count:]
        self._arrays.features[rows] = fresh.features[-fresh_count:]
        self._arrays.size[rows] = fresh.size[-fresh_count:]
        self._arrays.chosen[rows] = fresh.chosen[-fresh_count:]
        self._count += fresh_count
        self.appended += fresh_count

    def _drop(self, oldest: int) -> None:
        """Move the others to the front, in stretches that do not overlap: numpy would copy all of them first."""
        arrays, kept = self._arrays, self._count - oldest
        assert arrays is not None
        for array in (arrays.at, arrays.features, arrays.size, arrays.chosen):
            for start in range(0, kept, oldest):
                stop = min(start + oldest, kept)
                array[start:stop] = array[start + oldest : stop + oldest]
        self._count = kept
