"""The vector index as a candidate source: where a catalogue is too large for an exact pass, the pipeline asks here."""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt

from models.domain.catalogue import Catalogue
from models.domain.ports import F32, ItemIndex


class IndexSearch:
    """The item index as a candidate source for catalogues too large for an exact pass.

    Called from the computing thread; the search itself runs on the event loop, which is free meanwhile.
    """

    def __init__(self, index: ItemIndex, catalogue: Catalogue, loop: asyncio.AbstractEventLoop) -> None:
        self._index, self._catalogue, self._loop = index, catalogue, loop

    def nearest(
        self,
        users: F32,
        excluded: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        depth: int,
    ) -> npt.NDArray[np.int32]:
        # Asked for more than is needed, since what the user has seen is taken out here: a filter of hundreds of ids a
        # query costs an approximate index more than the surplus.
        asked = depth + min(int((ends - starts).max(initial=0)), 4 * depth)
        future = asyncio.run_coroutine_threadsafe(self._index.search_many(users, asked), self._loop)
        out = np.full((len(users), depth), -1, np.int32)
        for row, found in enumerate(future.result()):
            seen = set(excluded[starts[row] : ends[row]].tolist())
            known = (self._catalogue.index.get(item_id, -1) for item_id, _ in found)
            kept = [at for at in known if at >= 0 and at not in seen and self._catalogue.available[at]][:depth]
            out[row, : len(kept)] = kept
        out[~np.any(users[:, :-1] != 0.0, axis=1)] = -1
        return out
