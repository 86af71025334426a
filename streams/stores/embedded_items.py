"""Item vectors in a shard of the embedded engine, with their image in memory for the search of small catalogues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, cast

from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeOptimizersConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HnswIndexConfig,
    MatchValue,
    Memory,
    PayloadSchemaType,
    Point,
    Query,
    QueryBatchRequest,
    QueryRequest,
    Record,
    ScrollRequest,
    UpdateOperation,
)

from models.domain.ports import F32, ItemRecord, ItemText
from streams.stores.embedded_shard import PointId, Shard, breathe
from streams.stores.matrix import ItemMatrix
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

UPSERT_CHUNK = 128
LOAD_CHUNK = 1024

# Up to here a search is a product with the array in memory: exact, and 5 to 20 times faster than the engine in batches
# (README). Above it a single query's product takes more than the 6 ms of the engine's graph.
EXACT_SEARCH_LIMIT = 100_000

# From this size on a segment gets a graph; below it the engine compares with every vector. Above EXACT_SEARCH_LIMIT
# (26 MB of 65 dimensions) there is always one.
INDEXING_THRESHOLD_KB = 10_000

# The engine cuts a list before ties can be ordered by name: this many more are asked for, then ordered and cut.
TIE_SLACK = 32

_PAYLOAD_INDEXES = {
    "item_id": PayloadSchemaType.Keyword,
    "available": PayloadSchemaType.Integer,
    "categories": PayloadSchemaType.Keyword,
    "price": PayloadSchemaType.Float,
}
_AVAILABLE = Filter(must=[FieldCondition("available", match=MatchValue(1))])


def items_config(dimension: int, text_dimension: int) -> EdgeConfig:
    vectors = {EMBEDDING: EdgeVectorParams(dimension, Distance.Dot)}
    if text_dimension:
        # Read by id when another version is filled, and never searched: no graph (m = 0), and nothing held in memory.
        # A vector and no string of the payload, since the engine reads a payload whole: searches took a fifth longer.
        vectors[TEXT] = EdgeVectorParams(
            text_dimension,
            Distance.Dot,
            hnsw_config=HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10_000),
            memory=Memory.Cold,
        )
    return EdgeConfig(
        vectors=vectors,
        optimizers=EdgeOptimizersConfig(indexing_threshold=INDEXING_THRESHOLD_KB),
        wal_enabled=True,
    )


def create_payload_indexes(engine: EdgeShard) -> None:
    """Before the first point: an index made later is built over the whole collection."""
    for field, schema in _PAYLOAD_INDEXES.items():
        breathe()
        engine.update(UpdateOperation.create_field_index(field, schema))


class EmbeddedItemIndex:
    """Item vectors of one model version.

    Args:
        exact_search_limit: largest catalogue that is searched in memory; beyond it the engine searches.
        text_dimension: of the embeddings that the shard was made to keep; 0 for one that keeps none.
    """

    def __init__(
        self, shard: Shard, version: str, dimension: int, exact_search_limit: int, text_dimension: int = 0
    ) -> None:
        self.version = version
        self.dimension = dimension
        self.text_dimension = text_dimension
        self._shard = shard
        self._exact_search_limit = exact_search_limit
        self._matrix = ItemMatrix(dimension)

    async def load(self) -> None:
        """Fill the image in memory from the shard; once, before anything else."""
        async for record in self.scan(LOAD_CHUNK):
            self._matrix.set(record.item_id, record.vector, record.available)

    async def upsert_many(self, records: Sequence[ItemRecord]) -> None:
        for record in records:
            check_item(record, self.dimension, self.text_dimension)
        await self._shard.run(partial(self._upsert, list({record.item_id: record for record in records}.values())))

    async def remove_many(self, item_ids: Sequence[str]) -> None:
        await self._shard.run(partial(self._remove, list(item_ids)))

    async def get_many(self, item_ids: Sequence[str]) -> list[ItemRecord | None]:
        return await self._shard.run(partial(self._get, list(item_ids)))

    async def texts(self, item_ids: Sequence[str]) -> list[ItemText | None]:
        if not self.text_dimension:
            return [None] * len(item_ids)
        return await self._shard.run(partial(self._texts, list(item_ids)))

    async def search_many(self, vectors: F32, k: int) -> list[list[tuple[str, float]]]:
        check_queries(vectors, self.dimension, k)
        return await self._shard.run(partial(self._search, vectors, k))

    async def scan(self, batch_size: int = 256) -> AsyncIterator[ItemRecord]:
        offset: PointId | None = None
        while True:
            request = ScrollRequest(offset=offset, limit=batch_size, with_payload=True, with_vector=[EMBEDDING])
            records, offset = await self._shard.run(partial(self._scroll, request))
            for record in records:
                yield record
            if offset is None:
                return

    async def count(self) -> int:
        return await self._shard.run(lambda: self._shard.engine.count(CountRequest(exact=True)))

    async def close(self) -> None:
        await self._shard.close()

    def _upsert(self, records: list[ItemRecord]) -> None:
        for start in range(0, len(records), UPSERT_CHUNK):
            chunk = records[start : start + UPSERT_CHUNK]
            points = [
                Point(item_point_id(record.item_id), item_vectors(record, self.text_dimension), item_payload(record))
                for record in chunk
            ]
            self._shard.engine.update(UpdateOperation.upsert_points(points))
            for record in chunk:
                self._matrix.set(record.item_id, record.vector, record.available)
            self._shard.wrote(len(chunk), optimize=self._engine_searches())

    def _remove(self, item_ids: list[str]) -> None:
        if not item_ids:
            return
        self._shard.engine.update(UpdateOperation.delete_points([item_point_id(item_id) for item_id in item_ids]))
        for item_id in item_ids:
            self._matrix.remove(item_id)
        self._shard.wrote(len(item_ids))

    def _get(self, item_ids: list[str]) -> list[ItemRecord | None]:
        points = self._shard.engine.retrieve(
            [item_point_id(item_id) for item_id in item_ids], with_payload=True, with_vector=[EMBEDDING]
        )
        found = {record.item_id: record for record in map(_record, points)}
        return [found.get(item_id) for item_id in item_ids]

    def _texts(self, item_ids: list[str]) -> list[ItemText | None]:
        points = self._shard.engine.retrieve(
            [item_point_id(item_id) for item_id in item_ids], with_payload=TEXT_FIELDS, with_vector=[TEXT]
        )
        kept = (unpack_text(point.payload or {}, cast(dict[str, Any], point.vector)) for point in points)
        found = dict(each for each in kept if each is not None)
        return [found.get(item_id) for item_id in item_ids]

    def _search(self, vectors: F32, k: int) -> list[list[tuple[str, float]]]:
        if not self._engine_searches():
            return self._matrix.search(vectors, k)
        requests = [
            QueryRequest(
                k + TIE_SLACK, query=Query.Nearest(vector, EMBEDDING), filter=_AVAILABLE, with_payload=["item_id"]
            )
            for vector in vectors.tolist()
        ]
        lists = []
        for points in self._shard.engine.query_batch(QueryBatchRequest(requests)):
            scored = [(cast(dict[str, Any], point.payload)["item_id"], point.score) for point in points]
            lists.append(sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k])
        return lists

    def _engine_searches(self) -> bool:
        return len(self._matrix) > self._exact_search_limit

    def _scroll(self, request: ScrollRequest) -> tuple[list[ItemRecord], PointId | None]:
        points, offset = self._shard.engine.scroll(request)
        return [_record(point) for point in points], offset


def _record(point: Record) -> ItemRecord:
    vectors = cast(dict[str, list[float]], point.vector)
    return unpack_item(point.payload or {}, vectors[EMBEDDING])
