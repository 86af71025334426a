"""The owner of catalogue items: encodes an item's text once and keeps its vector in the index.

Items are shared out among workers like events; what this one owns, it encodes. Every worker learns of all items through
`streams.agents.catalogue`, which waits for the vectors written here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from models.domain.catalogue import content_hash, content_text
from models.domain.errors import EventDecodeError
from models.domain.events import EventContract, Item
from models.domain.ports import F32, ItemEncoder, ItemIndex, ItemRecord, TextEncoder
from streams.agents.retry import Retry
from streams.kafka.chunks import Chunk
from streams.kafka.dead_letters import dead_letter_message
from streams.kafka.publisher import Message, Publisher
from streams.metrics import Metrics

# Items encoded in one go off the event loop: 32 titles take about 150 ms, and another worker's query waits no longer.
ENCODE_BATCH = 32


class ItemOwner:
    """Processes chunks of `items`.

    Args:
        on_vectors: called with the ids whose vectors are in the index now.
    """

    def __init__(
        self,
        *,
        contract: EventContract,
        index: ItemIndex,
        text_encoder: TextEncoder,
        item_encoder: ItemEncoder,
        publisher: Publisher,
        metrics: Metrics,
        retry: Retry,
        executor: Executor,
        dead_letters: str,
        dead_letter_bytes: int,
        on_vectors: Callable[[], None],
    ) -> None:
        self.contract, self.index, self.text_encoder, self.item_encoder = contract, index, text_encoder, item_encoder
        self.publisher, self.metrics, self.retry, self.executor = publisher, metrics, retry, executor
        self.dead_letters, self.dead_letter_bytes, self.on_vectors = dead_letters, dead_letter_bytes, on_vectors

    async def handle(self, chunk: Chunk) -> None:
        """Raises: ItemIndexError, PublishError, EncoderError; then nothing of the chunk may be acknowledged."""
        latest: dict[str, Item | None] = {}
        dead: list[Message] = []
        for record in chunk.records:
            try:
                item_id, item = decode_item(self.contract, record, self.item_encoder.dimension - 1)
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
        removed = [item_id for item_id, item in latest.items() if item is None]
        if removed:
            await self.retry.call("item_remove", lambda: self.index.remove_many(removed))
            self.metrics.count_items("removed", len(removed))
        kept = [item for item in latest.values() if item is not None]
        for start in range(0, len(kept), ENCODE_BATCH):
            await self._keep(kept[start : start + ENCODE_BATCH])
        self.on_vectors()

    async def _keep(self, items: list[Item]) -> None:
        hashes = [content_hash(item) for item in items]
        ids = [str(item.item_id) for item in items]
        stored = await self.retry.call("item_load", lambda: self.index.get_many(ids))
        vectors: list[F32 | None] = [
            record.vector if record is not None and record.content_hash == wanted else None
            for record, wanted in zip(stored, hashes, strict=True)
        ]
        new = [at for at, vector in enumerate(vectors) if vector is None]
        if new:
            with self.metrics.stage("text_encode"):
                encoded = await asyncio.get_running_loop().run_in_executor(
                    self.executor, self._encode, [items[at] for at in new]
                )
            for at, vector in zip(new, encoded, strict=True):
                vectors[at] = vector
        self.metrics.count_items("encoded", len(new))
        self.metrics.count_items("unchanged", len(items) - len(new))
        records = [
            ItemRecord(
                item_id=item_id,
                vector=vector,
                content_hash=hashed,
                available=item.available,
                categories=item.categories,
                price=item.price,
            )
            for item_id, vector, hashed, item in zip(ids, vectors, hashes, items, strict=True)
            if vector is not None
        ]
        await self.retry.call("item_upsert", lambda: self.index.upsert_many(records))

    def _encode(self, items: list[Item]) -> list[F32]:
        return encode_items(items, self.text_encoder, self.item_encoder)


def encode_items(items: Iterable[Item], text_encoder: TextEncoder, item_encoder: ItemEncoder) -> list[F32]:
    """Item vectors, float32[D] each: the application's own where it sent one, else from title, categories and text."""
    items = list(items)
    return item_vectors(items, text_encoder.encode_many([content_text(item) for item in items]), item_encoder)


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
