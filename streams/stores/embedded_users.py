"""User states in a shard of the embedded engine. It knows the shard is its own: no other process writes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, cast

from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeVectorParams,
    HnswIndexConfig,
    Point,
    Record,
    ScrollRequest,
    UpdateOperation,
)

from models.domain.errors import UserStoreError
from models.domain.ports import UserRecord
from streams.stores.embedded_shard import PointId, Shard
from streams.stores.records import EMBEDDING, PACKED, REVISION, check_user, newest, pack_user, unpack_user

# 64 to 256 points an operation is Qdrant's advice; one entry of the write-ahead log stays below a megabyte.
UPSERT_CHUNK = 128

# Revisions remembered, so that a write need not read what it replaces (a tenth of its cost); about 20 MB, twice the
# worker's own cache of users. Forgotten all at once when full: the next write of each user reads it once.
REVISIONS_KEPT = 100_000


def users_config(dimension: int) -> EdgeConfig:
    """Vectors are read by id and never searched: no graph (m = 0), and one search thread."""
    return EdgeConfig(
        vectors={EMBEDDING: EdgeVectorParams(dimension, Distance.Dot)},
        hnsw_config=HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10_000),
        max_search_threads=1,
        wal_enabled=True,
    )


class EmbeddedUserStore:
    """User states of one generation. A write is compared and applied on the shard's only thread, hence atomic."""

    def __init__(self, shard: Shard, generation: str, state_size: int, dimension: int) -> None:
        self.generation = generation
        self.state_size = state_size
        self.dimension = dimension
        self._shard = shard
        self._revisions: dict[str, int] = {}

    async def load_many(self, user_keys: Sequence[str]) -> list[UserRecord | None]:
        return await self._shard.run(partial(self._load, list(user_keys)))

    async def save_many(self, records: Sequence[UserRecord]) -> None:
        for record in records:
            check_user(record, self.dimension, self.state_size)
        await self._shard.run(partial(self._save, newest(records)))

    async def scan(self, batch_size: int = 256) -> AsyncIterator[UserRecord]:
        offset: PointId | None = None
        while True:
            request = ScrollRequest(offset=offset, limit=batch_size, with_payload=True, with_vector=True)
            records, offset = await self._shard.run(partial(self._scroll, request))
            for record in records:
                yield record
            if offset is None:
                return

    async def count(self) -> int:
        return await self._shard.run(lambda: self._shard.engine.count(CountRequest(exact=True)))

    async def close(self) -> None:
        await self._shard.close()

    def _load(self, keys: list[str]) -> list[UserRecord | None]:
        points = self._shard.engine.retrieve([*keys], with_payload=True, with_vector=True)
        if len(points) == len(keys):  # all known, none asked twice: the engine answers in the order asked
            found = [_record(key, point) for key, point in zip(keys, points, strict=True)]
            self._remember({record.user_key: record.revision for record in found})
            return list(found)
        by_key = {(key := str(point.id)): _record(key, point) for point in points}
        self._remember({key: record.revision for key, record in by_key.items()})
        return [by_key.get(key) for key in keys]

    def _save(self, records: list[UserRecord]) -> None:
        for start in range(0, len(records), UPSERT_CHUNK):
            chunk = records[start : start + UPSERT_CHUNK]
            stored = self._stored_revisions([record.user_key for record in chunk])
            newer = [record for record in chunk if stored.get(record.user_key, -1) < record.revision]
            if not newer:
                continue
            points = [
                Point(
                    record.user_key,
                    {EMBEDDING: record.embedding.tolist()},
                    {REVISION: record.revision, PACKED: pack_user(record)},
                )
                for record in newer
            ]
            try:
                self._shard.engine.update(UpdateOperation.upsert_points(points))
            except BaseException:
                for record in newer:  # written or not: nobody knows
                    self._revisions.pop(record.user_key, None)
                raise
            self._remember({record.user_key: record.revision for record in newer})
            self._shard.wrote(len(newer))

    def _stored_revisions(self, keys: list[str]) -> dict[str, int]:
        known = self._revisions
        unknown = [key for key in keys if key not in known]
        read = {
            str(point.id): int((point.payload or {})[REVISION])
            for point in (self._shard.engine.retrieve([*unknown], [REVISION], False) if unknown else [])
        }
        return {key: revision for key in keys if (revision := known.get(key, read.get(key))) is not None}

    def _remember(self, revisions: dict[str, int]) -> None:
        if len(self._revisions) + len(revisions) > REVISIONS_KEPT:
            self._revisions.clear()
        self._revisions.update(revisions)

    def _scroll(self, request: ScrollRequest) -> tuple[list[UserRecord], PointId | None]:
        points, offset = self._shard.engine.scroll(request)
        return [_record(str(point.id), point) for point in points], offset


def _record(user_key: str, point: Record) -> UserRecord:
    try:
        payload, vectors = cast(dict[str, Any], point.payload), cast(dict[str, list[float]], point.vector)
        return unpack_user(user_key, int(payload[REVISION]), vectors[EMBEDDING], payload[PACKED])
    except (KeyError, TypeError) as error:
        raise UserStoreError(f"the point of user {user_key} cannot be read: {error!r}", retryable=False) from error
