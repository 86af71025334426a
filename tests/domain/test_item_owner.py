"""The owner of items: what it encodes, and what it makes of embeddings that were kept."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest

from models.domain.catalogue import content_text
from models.domain.errors import ItemIndexError
from models.domain.events import EventContract, Item
from models.domain.ports import F32, ItemText
from streams.agents.items import ENCODE_BATCH, ItemOwner, ItemSide, encode_items
from streams.agents.retry import Retry
from streams.kafka.chunks import Chunk
from streams.metrics import Metrics
from streams.stores.exact import ExactItemIndex

DIMENSION, TEXT = 9, 48


class Words:
    """A `TextEncoder` that takes an embedding from a text's digest; zeros for a text without a word."""

    dimension = TEXT

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.known: set[str] = set()
        """Texts that it remembers."""

    def remembered(self, texts: Sequence[str]) -> list[F32 | None]:
        return [self._embedding(text) if text in self.known else None for text in texts]

    def encode_many(self, texts: Sequence[str]) -> F32:
        self.encoded += texts
        return np.stack([self._embedding(text) for text in texts])

    def _embedding(self, text: str) -> F32:
        if not text:
            return np.zeros(TEXT, np.float32)
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        row = np.random.default_rng(seed).standard_normal(TEXT)
        return (row / np.linalg.norm(row)).astype(np.float32)


class Tower:
    """An `ItemEncoder` that projects the text; another seed is another version."""

    dimension = DIMENSION

    def __init__(self, seed: int) -> None:
        self._weights = np.random.default_rng(seed).standard_normal((TEXT, DIMENSION)).astype(np.float32)

    def encode_many(self, item_ids: Sequence[str], text: F32) -> F32:
        projected: F32 = text @ self._weights
        return projected

    def placeholder(self, item_id: str) -> F32:
        return np.zeros(DIMENSION, np.float32)


class Dropped(ExactItemIndex):
    """A collection that another worker has dropped since this one opened it."""

    asked = 0

    async def texts(self, item_ids: Sequence[str]) -> list[ItemText | None]:
        self.asked += len(item_ids)
        raise ItemIndexError("collection items-v1 was closed or dropped", retryable=False)


class Record:
    """A record of `items` as a consumer hands it over."""

    partition, offset, headers = 0, 0, ()

    def __init__(self, item: Item) -> None:
        self.key, self.value = str(item.item_id).encode(), msgspec.json.encode(item)


class Parts:
    """An owner that serves a version, its metrics, and the text encoder that it shares with the next."""

    def __init__(self, executor: ThreadPoolExecutor, served: ExactItemIndex | None = None) -> None:
        self.words, self.metrics = Words(), Metrics()
        self.retry = Retry(self.metrics.count_retry)
        served = ExactItemIndex(DIMENSION, TEXT) if served is None else served
        unused: Any = None
        self.owner = ItemOwner(
            contract=EventContract(),
            side=self.side(1, served),
            publisher=unused,  # for dead letters, of which these tests have none
            metrics=self.metrics,
            retry=self.retry,
            executor=executor,
            dead_letters="dead-letters",
            dead_letter_bytes=1_000_000,
            on_vectors=lambda: None,
        )

    def side(self, seed: int, collection: ExactItemIndex | None = None, text: str = "words") -> ItemSide:
        collection = ExactItemIndex(DIMENSION, TEXT) if collection is None else collection
        return ItemSide(collection, self.words, Tower(seed), text)

    async def tell(self, items: Sequence[Item]) -> None:
        await self.owner.handle(Chunk("items", 0, [Record(item) for item in items], 0))

    async def fill(self, side: ItemSide, items: Sequence[Item]) -> None:
        filling = self.owner.begin(side)
        await self.owner.fill(filling, [Record(item) for item in items], self.retry)
        self.owner.end(filling)

    async def encoded_by(self, work: Any) -> int:
        """Texts that the text encoder was given meanwhile."""
        before = len(self.words.encoded)
        await work
        return len(self.words.encoded) - before

    def filled(self, outcome: str) -> float:
        found = self.metrics.registry.get_sample_value("streamrec_filled_items_total", {"outcome": outcome})
        assert found is not None
        return found


def catalogue() -> list[Item]:
    """Items of several batches: with a text, without one, and with a vector of the application's own."""
    items = [Item(item_id=f"i{n}", title=f"story {n}", categories=("film",)) for n in range(2 * ENCODE_BATCH + 5)]
    items += [Item(item_id="bare"), Item(item_id="own", title="a title", vector=tuple(range(1, DIMENSION)))]
    return [*items, Item(item_id="own and bare", vector=(0.0,) * (DIMENSION - 1))]


async def vectors_of(side: ItemSide, items: Sequence[Item]) -> bytes:
    found = await side.collection.get_many([str(item.item_id) for item in items])
    assert None not in found
    return b"".join(record.vector.tobytes() for record in found if record is not None)


def made_anew(side: ItemSide, items: Sequence[Item]) -> bytes:
    """The vectors as a worker makes them that has nothing but the texts, in the same batches."""
    batches = [items[start : start + ENCODE_BATCH] for start in range(0, len(items), ENCODE_BATCH)]
    rows = [row for batch in batches for row in encode_items(batch, Words(), side.item_encoder)]
    return b"".join(row.tobytes() for row in rows)


@pytest.fixture
async def executor() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_a_version_of_the_same_text_model_is_filled_without_it_and_gets_the_very_same_vectors(
    executor: ThreadPoolExecutor,
) -> None:
    parts, items = Parts(executor), catalogue()
    await parts.tell(items)
    assert await vectors_of(parts.owner.side, items) == made_anew(parts.owner.side, items)
    coming = parts.side(2)
    assert await parts.encoded_by(parts.fill(coming, items)) == 0
    assert (parts.filled("reused"), parts.filled("encoded")) == (len(items), 0)
    assert await vectors_of(coming, items) == made_anew(coming, items)
    # What was kept is handed on, so that the version after the next needs no text model either.
    parts.owner.use(coming)
    last = parts.side(3)
    assert await parts.encoded_by(parts.fill(last, items)) == 0
    assert await vectors_of(last, items) == made_anew(last, items)


async def test_a_version_of_another_text_model_encodes_every_item(executor: ThreadPoolExecutor) -> None:
    parts, items = Parts(executor), catalogue()
    await parts.tell(items)
    assert await parts.encoded_by(parts.fill(parts.side(2, text="other words"), items)) == len(items)
    assert (parts.filled("reused"), parts.filled("encoded")) == (0, len(items))


async def test_what_the_served_version_has_in_another_content_or_not_at_all_is_encoded(
    executor: ThreadPoolExecutor,
) -> None:
    parts, items = Parts(executor), catalogue()
    await parts.tell(items[3:])
    newer = [msgspec.structs.replace(items[5], title="renamed"), msgspec.structs.replace(items[-2], vector=None)]
    changed = [*items[:5], newer[0], *items[6:-2], newer[1], items[-1]]
    coming = parts.side(2)
    assert await parts.encoded_by(parts.fill(coming, changed)) == 5
    assert await vectors_of(coming, changed) == made_anew(coming, changed)


async def test_a_message_that_comes_meanwhile_is_encoded_once_for_both_versions(executor: ThreadPoolExecutor) -> None:
    parts, items = Parts(executor), catalogue()
    coming = parts.side(2)
    filling = parts.owner.begin(coming)
    assert await parts.encoded_by(parts.tell(items)) == len(items)
    parts.owner.end(filling)
    assert await vectors_of(coming, items) == made_anew(coming, items)


async def test_a_new_price_encodes_nothing_and_loses_no_embedding(executor: ThreadPoolExecutor) -> None:
    parts, items = Parts(executor), catalogue()
    await parts.tell(items)
    dearer = [msgspec.structs.replace(item, price=2.5, available=n % 2 == 0) for n, item in enumerate(items)]
    assert await parts.encoded_by(parts.tell(dearer)) == 0
    assert await parts.encoded_by(parts.tell(dearer)) == 0
    found = await parts.owner.side.collection.get_many([str(item.item_id) for item in items])
    told = [(record.price, record.available) for record in found if record is not None]
    assert told == [(2.5, n % 2 == 0) for n in range(len(items))]
    coming = parts.side(2)
    assert await parts.encoded_by(parts.fill(coming, dearer)) == 0
    assert await vectors_of(coming, dearer) == made_anew(coming, dearer)


async def test_a_collection_of_before_keeps_nothing_and_the_first_one_filled_from_it_does(
    executor: ThreadPoolExecutor,
) -> None:
    parts, items = Parts(executor, ExactItemIndex(DIMENSION)), catalogue()
    await parts.tell(items)
    coming = parts.side(2)
    assert await parts.encoded_by(parts.fill(coming, items)) == len(items)
    parts.owner.use(coming)
    assert await parts.encoded_by(parts.fill(parts.side(3), items)) == 0


async def test_a_served_collection_that_is_gone_costs_encoding_and_not_the_switch(executor: ThreadPoolExecutor) -> None:
    parts, items = Parts(executor, Dropped(DIMENSION, TEXT)), catalogue()
    await parts.tell(items)
    coming = parts.side(2)
    assert await parts.encoded_by(parts.fill(coming, items)) == len(items)
    assert await vectors_of(coming, items) == made_anew(coming, items)


async def test_what_the_text_model_remembers_is_not_read_from_the_store(executor: ThreadPoolExecutor) -> None:
    parts, items = Parts(executor, served := Dropped(DIMENSION, TEXT)), catalogue()
    await parts.tell(items)
    parts.words.known = {content_text(item) for item in items[:-3]}
    coming = parts.side(2)
    assert await parts.encoded_by(parts.fill(coming, items)) == served.asked == 3
    assert (parts.filled("reused"), parts.filled("encoded")) == (len(items) - 3, 3)
    assert await vectors_of(coming, items) == made_anew(coming, items)
