"""Vectors of a coming version, gathered beside the events: nothing that is still awaited is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from models.domain.ports import ItemRecord
from streams.agents.next_vectors import found_in
from streams.agents.retry import Retry
from streams.stores.exact import ExactItemIndex

SLOW_SECONDS = 0.02


class Slow(ExactItemIndex):
    """Takes a while to answer, so that a pause follows."""

    async def get_many(self, item_ids: Sequence[str]) -> list[ItemRecord | None]:
        await asyncio.sleep(SLOW_SECONDS)
        return await super().get_many(item_ids)


async def test_an_item_that_is_declared_anew_during_a_pause_is_awaited_anew() -> None:
    index, waiting, taken = Slow(2), {"a": "hash"}, asyncio.Event()
    await index.upsert_many([ItemRecord(item_id="a", vector=np.ones(2, np.float32), content_hash="hash")])

    async def gather() -> None:
        async for found in found_in(index, waiting, Retry(lambda _: None), pauses=6.0):
            assert list(found) == ["a"]
            taken.set()

    gathering = asyncio.create_task(gather())
    await taken.wait()
    assert not gathering.done()
    assert waiting == {}
    waiting["a"] = "hash"  # removed, which clears its row, and declared with the same content
    await gathering
    assert waiting == {"a": "hash"}
