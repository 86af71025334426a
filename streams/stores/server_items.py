"""Item vectors in a collection of a Qdrant server, searched there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from qdrant_client import AsyncQdrantClient, models

from models.domain.errors import ItemIndexError
from models.domain.ports import F32, ItemRecord, ItemText
from streams.stores.names import item_point_id
from streams.stores.records import (
    EMBEDDING,
    TEXT,
    TEXT_FIELDS,
    check_item,
    check_queries,
    item_payload,
    item_vectors,
    unpack_item,
    unpack_text,
)
from streams.stores.server_errors import translated

UPSERT_CHUNK = 128
SEARCH_CHUNK = 64

# The server cuts a list before ties can be ordered by name: this many more are asked for, then ordered and cut.
TIE_SLACK = 32

_AVAILABLE = models.Filter(must=[models.FieldCondition(key="available", match=models.MatchValue(value=1))])


class ServerItemIndex:
    """Item vectors of one model version.

    Args:
        text_dimension: of the embeddings that the collection was made to keep; 0 for one that keeps none.
    """

    def __init__(
        self, client: AsyncQdrantClient, collection: str, version: str, dimension: int, text_dimension: int = 0
    ) -> None:
        self.version = version
        self.dimension = dimension
        self.text_dimension = text_dimension
        self._client = client
        self._collection = collection

    async def upsert_many(self, records: Sequence[ItemRecord]) -> None:
        for record in records:
            check_item(record, self.dimension, self.text_dimension)
        kept = list({record.item_id: record for record in records}.values())
        for start in range(0, len(kept), UPSERT_CHUNK):
            with translated(ItemIndexError, self._collection):
                points = [_point(record, self.text_dimension) for record in kept[start : start + UPSERT_CHUNK]]
                await self._client.upsert(self._collection, points, wait=True)

    async def remove_many(self, item_ids: Sequence[str]) -> None:
        if not item_ids:
            return
        selected = models.PointIdsList(points=[item_point_id(item_id) for item_id in item_ids])
        with translated(ItemIndexError, self._collection):
            await self._client.delete(self._collection, selected, wait=True)

    async def get_many(self, item_ids: Sequence[str]) -> list[ItemRecord | None]:
        if not item_ids:
            return []
        with translated(ItemIndexError, self._collection):
            points = await self._client.retrieve(
                self._collection,
                [item_point_id(item_id) for item_id in dict.fromkeys(item_ids)],
                with_payload=True,
                with_vectors=[EMBEDDING],
            )
        found = {record.item_id: record for record in map(_record, points)}
        return [found.get(item_id) for item_id in item_ids]

    async def texts(self, item_ids: Sequence[str]) -> list[ItemText | None]:
        if not item_ids or not self.text_dimension:
            return [None] * len(item_ids)
        with translated(ItemIndexError, self._collection):
            points = await self._client.retrieve(
                self._collection,
                [item_point_id(item_id) for item_id in dict.fromkeys(item_ids)],
                with_payload=TEXT_FIELDS,
                with_vectors=[TEXT],
            )
        kept = (unpack_text(point.payload or {}, cast(dict[str, Any], point.vector or {})) for point in points)
        found = dict(each for each in kept if each is not None)
        return [found.get(item_id) for item_id in item_ids]

    async def search_many(self, vectors: F32, k: int) -> list[list[tuple[str, float]]]:
        check_queries(vectors, self.dimension, k)
        lists: list[list[tuple[str, float]]] = []
        for start in range(0, len(vectors), SEARCH_CHUNK):
            requests = [
                models.QueryRequest(
                    query=vector, using=EMBEDDING, filter=_AVAILABLE, limit=k + TIE_SLACK, with_payload=["item_id"]
                )
                for vector in vectors[start : start + SEARCH_CHUNK].tolist()
            ]
            with translated(ItemIndexError, self._collection):
                answers = await self._client.query_batch_points(self._collection, requests)
            for answer in answers:
                scored = [((point.payload or {})["item_id"], float(point.score)) for point in answer.points]
                lists.append(sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k])
        return lists

    async def scan(self, batch_size: int = 256) -> AsyncIterator[ItemRecord]:
        offset: Any = None
        while True:
            with translated(ItemIndexError, self._collection):
                points, offset = await self._client.scroll(
                    self._collection, limit=batch_size, offset=offset, with_payload=True, with_vectors=[EMBEDDING]
                )
            for point in points:
                yield _record(point)
            if offset is None:
                return

    async def count(self) -> int:
        with translated(ItemIndexError, self._collection):
            return (await self._client.count(self._collection, exact=True)).count


def _point(record: ItemRecord, text_dimension: int) -> models.PointStruct:
    return models.PointStruct(
        id=item_point_id(record.item_id),
        vector=item_vectors(record, text_dimension),
        payload=item_payload(record),
    )


def _record(point: models.Record) -> ItemRecord:
    return unpack_item(point.payload or {}, cast(dict[str, list[float]], point.vector or {}).get(EMBEDDING, []))
