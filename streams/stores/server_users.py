"""User states in a collection of a Qdrant server. It knows that other workers write to it too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from qdrant_client import AsyncQdrantClient, models

from models.domain.errors import UserStoreError
from models.domain.ports import UserRecord
from streams.stores.names import point_id
from streams.stores.records import EMBEDDING, PACKED, REVISION, check_user, newest, pack_user, unpack_user
from streams.stores.server_errors import translated

# 64 to 256 points a request is Qdrant's advice; the condition of an upsert grows by a clause a point.
UPSERT_CHUNK = 128


class ServerUserStore:
    """User states of one generation; writes are compared by the server, in the order in which it applies them."""

    def __init__(
        self, client: AsyncQdrantClient, collection: str, generation: str, state_size: int, dimension: int
    ) -> None:
        self.generation = generation
        self.state_size = state_size
        self.dimension = dimension
        self._client = client
        self._collection = collection

    async def load_many(self, user_keys: Sequence[str]) -> list[UserRecord | None]:
        if not user_keys:
            return []
        with translated(UserStoreError, self._collection):
            points = await self._client.retrieve(
                self._collection,
                [point_id(key) for key in dict.fromkeys(user_keys)],
                with_payload=True,
                with_vectors=[EMBEDDING],
                # A new owner of a partition must see the former one's last write, whichever replica answers.
                consistency=models.ReadConsistencyType.MAJORITY,
            )
        found = {str(point.id): _record(point) for point in points}
        return [found.get(key) for key in user_keys]

    async def save_many(self, records: Sequence[UserRecord]) -> None:
        for record in records:
            check_user(record, self.dimension, self.state_size)
            point_id(record.user_key)
        kept = newest(records)
        for start in range(0, len(kept), UPSERT_CHUNK):
            chunk = kept[start : start + UPSERT_CHUNK]
            with translated(UserStoreError, self._collection):
                await self._client.upsert(
                    self._collection,
                    [_point(record) for record in chunk],
                    wait=True,
                    # Applied through one replica, so that a zombie's write and its successor's meet in one order.
                    ordering=models.WriteOrdering.MEDIUM,
                    update_filter=_older_than(chunk),
                )

    async def scan(self, batch_size: int = 256) -> AsyncIterator[UserRecord]:
        offset: Any = None
        while True:
            with translated(UserStoreError, self._collection):
                points, offset = await self._client.scroll(
                    self._collection, limit=batch_size, offset=offset, with_payload=True, with_vectors=[EMBEDDING]
                )
            for point in points:
                yield _record(point)
            if offset is None:
                return

    async def count(self) -> int:
        with translated(UserStoreError, self._collection):
            return (await self._client.count(self._collection, exact=True)).count


def _older_than(records: Sequence[UserRecord]) -> models.Filter:
    """Matches a stored point whose record here is newer; a clause a point, as one filter holds for a whole upsert.

    A point that is absent is inserted whatever the filter says.
    """
    return models.Filter(
        should=[
            models.Filter(
                must=[
                    models.HasIdCondition(has_id=[record.user_key]),
                    models.FieldCondition(key=REVISION, range=models.Range(lt=record.revision)),
                ]
            )
            for record in records
        ]
    )


def _point(record: UserRecord) -> models.PointStruct:
    return models.PointStruct(
        id=record.user_key,
        vector={EMBEDDING: record.embedding.tolist()},
        payload={REVISION: record.revision, PACKED: pack_user(record)},
    )


def _record(point: models.Record) -> UserRecord:
    key = str(point.id)
    try:
        payload, vectors = point.payload or {}, cast(dict[str, list[float]], point.vector)
        return unpack_user(key, int(payload[REVISION]), vectors[EMBEDDING], payload[PACKED])
    except (KeyError, TypeError) as error:
        raise UserStoreError(f"the point of user {key} cannot be read: {error!r}", retryable=False) from error
