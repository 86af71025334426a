"""The owner of catalogue items: encodes an item's text once and keeps its vector in the index.

Items are shared out among workers like events; what this one owns, it encodes. Every worker learns of all items through
`streams.agents.catalogue`, which waits for the vectors written here. While another model version is prepared, every
message goes into its collection too. The embedding of a text is kept with the vector that was made from it, so that a
version of the same text model makes its own vectors without the text model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import msgspec
import numpy as np

from models.domain.catalogue import content_hash, content_text
from models.domain.errors import EncoderError, EventDecodeError, ItemIndexError
from models.domain.events import EventContract, Item
from models.domain.ports import F32, ItemEncoder, ItemIndex, ItemRecord, TextEncoder
from streams.agents.retry import Retry
from streams.kafka.chunks import Chunk
from streams.kafka.dead_letters import dead_letter_message
from streams.kafka.publisher import Message, Publisher
from streams.metrics import Metrics

log = logging.getLogger(__name__)

# Items encoded in one go off the event loop: 32 titles take about 150 ms, and another worker's query waits no longer.
ENCODE_BATCH = 32


class ItemSide(NamedTuple):
    """The part of a model version that makes items' vectors, and the collection that keeps them."""

    collection: ItemIndex
    text_encoder: TextEncoder
    item_encoder: ItemEncoder
    text_version: str
    """Of the text encoder: sides of one text version encode a text alike."""


class Filling:
    """A collection into which older messages are being brought, while newer ones reach it as they come."""

    def __init__(self, side: ItemSide) -> None:
        self.side = side
        self.newer: set[str] = set()
        """Items handled since it began: what an older message says of them is out of date."""
        self.failure: EncoderError | None = None
        """Why this side encodes nothing any more."""


class ItemOwner:
    """Processes chunks of `items`.

    Args:
        side: that of the served version.
        on_vectors: called when vectors were written.
    """

    def __init__(
        self,
        *,
        contract: EventContract,
        side: ItemSide,
        publisher: Publisher,
        metrics: Metrics,
        retry: Retry,
        executor: Executor,
        dead_letters: str,
        dead_letter_bytes: int,
        on_vectors: Callable[[], None],
    ) -> None:
        self.contract, self.side = contract, side
        self.publisher, self.metrics, self.retry, self.executor = publisher, metrics, retry, executor
        self.dead_letters, self.dead_letter_bytes, self.on_vectors = dead_letters, dead_letter_bytes, on_vectors
        self._fillings: list[Filling] = []
        # An older message must not be written over a newer one: whoever writes has looked what is newer, in one turn.
        self._turn = asyncio.Lock()

    def use(self, side: ItemSide) -> None:
        """Serve another version's side from the next batch on."""
        self.side = side

    def begin(self, side: ItemSide) -> Filling:
        """From now on messages reach this side's collection too, until `end`."""
        self._fillings.append(filling := Filling(side))
        return filling

    def end(self, filling: Filling) -> None:
        self._fillings.remove(filling)

    async def fill(self, filling: Filling, records: Sequence[Any], retry: Retry) -> None:
        """Bring older messages into the collection of a filling; those of one item in their order.

        Raises: ItemIndexError, EncoderError.
        """
        latest: dict[str, Item | None] = {}
        for record in records:
            try:
                item_id, item = decode_item(self.contract, record, filling.side.item_encoder.dimension - 1)
            except EventDecodeError:
                continue  # made a dead letter when it was handled
            latest[item_id] = item
        for start in range(0, len(latest), ENCODE_BATCH):
            async with self._turn:
                ids = [
                    item_id for item_id in list(latest)[start : start + ENCODE_BATCH] if item_id not in filling.newer
                ]
                await self._put({item_id: latest[item_id] for item_id in ids}, filling.side, retry)

    async def handle(self, chunk: Chunk) -> None:
        """Raises: ItemIndexError, PublishError, EncoderError; then nothing of the chunk may be acknowledged."""
        latest: dict[str, Item | None] = {}
        dead: list[Message] = []
        for record in chunk.records:
            try:
                item_id, item = decode_item(self.contract, record, self.side.item_encoder.dimension - 1)
                latest[item_id] = item
            except EventDecodeError as error:
                self.metrics.count_dead_letters(error.reason)
                dead.append(
                    dead_letter_message(
                        record, self.dead_letters, error.reason, error.detail, max_bytes=self.dead_letter_bytes
                    )
                )
        if dead:
            await self.publisher.send_many(dead)
        for filling in self._fillings:
            filling.newer.update(latest)
        for start in range(0, len(latest), ENCODE_BATCH):
            batch = {item_id: latest[item_id] for item_id in list(latest)[start : start + ENCODE_BATCH]}
            async with self._turn:
                served = self.side
                encoded = await self._put(batch, served, self.retry)
                kept = sum(item is not None for item in batch.values())
                self.metrics.count_items("removed", len(batch) - kept)
                self.metrics.count_items("unchanged", kept - encoded)
                for filling in list(self._fillings):
                    if filling.side.collection is not served.collection and filling.failure is None:
                        try:
                            await self._put(batch, filling.side, self.retry)
                        except EncoderError as error:
                            filling.failure = error  # whoever prepares that version gives it up; this one is served on
        self.on_vectors()

    async def _put(self, items: Mapping[str, Item | None], side: ItemSide, retry: Retry) -> int:
        """Returns: how many vectors were made."""
        removed = [item_id for item_id, item in items.items() if item is None]
        if removed:
            await retry.call("item_remove", lambda: side.collection.remove_many(removed))
        kept = [item for item in items.values() if item is not None]
        return await self._keep(kept, side, retry) if kept else 0

    async def _keep(self, items: list[Item], side: ItemSide, retry: Retry) -> int:
        """Returns: how many vectors were made."""
        hashes = [content_hash(item) for item in items]
        ids = [str(item.item_id) for item in items]
        stored = await retry.call("item_load", lambda: side.collection.get_many(ids))
        new: list[int] = []
        changed: dict[int, ItemRecord] = {}
        for at, (item, hashed, record) in enumerate(zip(items, hashes, stored, strict=True)):
            if record is None or record.content_hash != hashed:
                new.append(at)
            elif (item.available, item.categories, item.price) != (record.available, record.categories, record.price):
                changed[at] = _record(item, hashed, record.vector, None)
        records: list[ItemRecord] = []
        if changed:
            # A point is written whole: what it keeps of its text with it.
            kept = await _kept_texts(side.collection, [(ids[at], hashes[at]) for at in changed], retry)
            texts_of = zip(changed.values(), kept, strict=True)
            records += [msgspec.structs.replace(record, text=text) for record, text in texts_of]
        if new:
            texts, vectors = await self._made(new, items, hashes, side, retry)
            made = zip(new, texts, vectors, strict=True)
            records += [_record(items[at], hashes[at], vector, text) for at, text, vector in made]
        if records:
            await retry.call("item_upsert", lambda: side.collection.upsert_many(records))
        return len(new)

    async def _made(
        self, new: Sequence[int], items: Sequence[Item], hashes: Sequence[str], side: ItemSide, retry: Retry
    ) -> tuple[F32, list[F32]]:
        """Embeddings and vectors of the items at the places `new`.

        Returns: (float32[n, E], n times float32[D]).
        """
        of_them = [items[at] for at in new]
        served = self.side
        filling = side.collection is not served.collection
        kept: list[F32 | None] = [None] * len(new)
        if filling:
            kept = side.text_encoder.remembered([content_text(item) for item in of_them])
        unread = [place for place, text in enumerate(kept) if text is None]
        if filling and unread and side.text_version == served.text_version:
            asked = [(str(of_them[place].item_id), hashes[new[place]]) for place in unread]
            try:
                for place, text in zip(unread, await _kept_texts(served.collection, asked, retry), strict=True):
                    kept[place] = text
            except ItemIndexError as error:
                # Another worker, two versions ahead of this one, has dropped it: no reason to refuse the coming one.
                if error.retryable:
                    raise
                log.warning("no embedding of the served version can be read, texts are encoded anew: %s", error)
        with self.metrics.stage("text_encode"):
            texts, vectors = await asyncio.get_running_loop().run_in_executor(
                self.executor, _encoded, of_them, kept, side.text_encoder, side.item_encoder
            )
        reused = sum(text is not None for text in kept)
        if filling:
            self.metrics.count_filled_items("reused", reused)
            self.metrics.count_filled_items("encoded", len(new) - reused)
        else:
            self.metrics.count_items("encoded", len(new))
        return texts, vectors


async def _kept_texts(collection: ItemIndex, asked: Sequence[tuple[str, str]], retry: Retry) -> list[F32 | None]:
    """The embeddings, float32[E], that the collection keeps of those contents; None where it has none.

    Args:
        asked: (item id, content hash).
    """
    ids = [item_id for item_id, _ in asked]
    found = await retry.call("item_load", lambda: collection.texts(ids))
    return [
        text.embedding if text is not None and text.content_hash == hashed else None
        for text, (_, hashed) in zip(found, asked, strict=True)
    ]


def _record(item: Item, hashed: str, vector: F32, text: F32 | None) -> ItemRecord:
    return ItemRecord(
        item_id=str(item.item_id),
        vector=vector,
        content_hash=hashed,
        available=item.available,
        categories=item.categories,
        price=item.price,
        text=text,
    )


def _encoded(
    items: Sequence[Item], kept: Sequence[F32 | None], text_encoder: TextEncoder, item_encoder: ItemEncoder
) -> tuple[F32, list[F32]]:
    """What `encode_items` makes, where some embeddings are kept already.

    Returns: (float32[N, E] embeddings, N vectors of float32[D]).
    """
    missing = [at for at, text in enumerate(kept) if text is None]
    texts = np.zeros((len(items), text_encoder.dimension), np.float32)
    if missing:
        texts[missing] = text_encoder.encode_many([content_text(items[at]) for at in missing])
    for at, text in enumerate(kept):
        if text is not None:
            texts[at] = text
    return texts, item_vectors(items, texts, item_encoder)


def encode_items(items: Iterable[Item], text_encoder: TextEncoder, item_encoder: ItemEncoder) -> list[F32]:
    """Item vectors, float32[D] each: the application's own where it sent one, else from title, categories and text."""
    items = list(items)
    return _encoded(items, [None] * len(items), text_encoder, item_encoder)[1]


def item_vectors(items: Sequence[Item], texts: F32, item_encoder: ItemEncoder) -> list[F32]:
    """`encode_items` where the embeddings (float32[N, E]) are there already."""
    vectors = item_encoder.encode_many([str(item.item_id) for item in items], texts)
    for at, item in enumerate(items):
        if item.vector is not None:
            own = np.asarray(item.vector, np.float32)
            # The same length as the vectors of the text, so that scores of both kinds can be compared.
            vectors[at, :-1] = own / max(float(np.linalg.norm(own)), 1e-12)
    return list(vectors)


def decode_item(contract: EventContract, record: Any, vector_length: int) -> tuple[str, Item | None]:
    """The item of a record, None where it is removed. Raises: EventDecodeError."""
    if record.value is None:
        try:
            return (record.key or b"").decode(), None
        except UnicodeDecodeError as error:
            raise EventDecodeError("invalid_key", "the key of a removal is no UTF-8 text") from error
    item = contract.decode_item(record.value)
    if item.vector is not None and len(item.vector) != vector_length:
        raise EventDecodeError(
            "invalid_field", f"`vector` has {len(item.vector)} numbers; the bundle's items have {vector_length}"
        )
    return str(item.item_id), item
