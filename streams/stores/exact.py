"""The stores in memory: the reference that the others are compared with. Nothing in them is durable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import numpy as np

from models.domain.errors import ItemIndexError, UserStoreError
from models.domain.ports import F32, ItemRecord, ItemText, UserRecord
from streams.stores.matrix import ItemMatrix
from streams.stores.names import FIRST_GENERATION, collection_name, point_id
from streams.stores.records import check_item, check_queries, check_text_dimension, check_user


class ExactUserStore:
    """User states in a dictionary."""

    def __init__(self, generation: str, state_size: int, dimension: int) -> None:
        self.generation = generation
        self.state_size = state_size
        self.dimension = dimension
        self.dropped = False
        self._records: dict[str, UserRecord] = {}

    def __len__(self) -> int:
        return len(self._records)

    async def load_many(self, user_keys: Sequence[str]) -> list[UserRecord | None]:
        self._check_open()
        return [self._records.get(key) for key in user_keys]

    async def save_many(self, records: Sequence[UserRecord]) -> None:
        self._check_open()
        for record in records:
            check_user(record, self.dimension, self.state_size)
            point_id(record.user_key)
        for record in records:
            stored = self._records.get(record.user_key)
            if stored is None or stored.revision < record.revision:
                self._records[record.user_key] = _copied(record)

    async def scan(self, batch_size: int = 256) -> AsyncIterator[UserRecord]:
        self._check_open()
        for record in list(self._records.values()):
            yield record

    async def count(self) -> int:
        self._check_open()
        return len(self._records)

    def _check_open(self) -> None:
        if self.dropped:
            raise UserStoreError(f"user generation {self.generation!r} was dropped", retryable=False)


class ExactItemIndex:
    """Item records in a dictionary, their vectors in one array."""

    def __init__(self, dimension: int, text_dimension: int = 0) -> None:
        self.dimension = dimension
        self.text_dimension = text_dimension
        self._records: dict[str, ItemRecord] = {}
        self._texts: dict[str, ItemText] = {}
        self._matrix = ItemMatrix(dimension)

    def __len__(self) -> int:
        return len(self._records)

    async def upsert_many(self, records: Sequence[ItemRecord]) -> None:
        for record in records:
            check_item(record, self.dimension, self.text_dimension)
        for record in records:
            self._texts.pop(record.item_id, None)
            if self.text_dimension and record.text is not None:
                self._texts[record.item_id] = ItemText(content_hash=record.content_hash, embedding=record.text)
            self._records[record.item_id] = msgspec.structs.replace(record, text=None)
            self._matrix.set(record.item_id, record.vector, record.available)

    async def remove_many(self, item_ids: Sequence[str]) -> None:
        for item_id in item_ids:
            self._records.pop(item_id, None)
            self._texts.pop(item_id, None)
            self._matrix.remove(item_id)

    async def get_many(self, item_ids: Sequence[str]) -> list[ItemRecord | None]:
        return [self._records.get(item_id) for item_id in item_ids]

    async def texts(self, item_ids: Sequence[str]) -> list[ItemText | None]:
        return [self._texts.get(item_id) for item_id in item_ids]

    async def search_many(self, vectors: F32, k: int) -> list[list[tuple[str, float]]]:
        check_queries(vectors, self.dimension, k)
        return self._matrix.search(vectors, k)

    async def scan(self, batch_size: int = 256) -> AsyncIterator[ItemRecord]:
        for record in list(self._records.values()):
            yield record

    async def count(self) -> int:
        return len(self._records)


class ExactStores:
    """The collections of one deployment in memory."""

    def __init__(self) -> None:
        self._live = FIRST_GENERATION
        self._users: dict[str, ExactUserStore] = {}
        self._items: dict[str, ExactItemIndex] = {}

    async def users(self, *, state_size: int, dimension: int, generation: str | None = None) -> ExactUserStore:
        generation = self._live if generation is None else generation
        collection_name("", "users", generation)
        store = self._users.setdefault(generation, ExactUserStore(generation, state_size, dimension))
        if (store.state_size, store.dimension) != (state_size, dimension):
            raise UserStoreError(
                f"user generation {generation!r} holds states of {store.state_size} and vectors of {store.dimension}, "
                f"not {state_size} and {dimension}",
                retryable=False,
            )
        return store

    async def user_generation(self) -> str:
        return self._live

    async def switch_users(self, generation: str) -> None:
        if generation == self._live:
            return
        if generation not in self._users:
            raise UserStoreError(f"user generation {generation!r} does not exist", retryable=False)
        former = self._users.pop(self._live, None)
        self._live = generation
        if former is not None:
            former.dropped = True

    async def items(self, *, version: str, dimension: int, text_dimension: int = 0) -> ExactItemIndex:
        collection_name("", "items", version)
        index = self._items.setdefault(version, ExactItemIndex(dimension, text_dimension))
        if index.dimension != dimension:
            raise ItemIndexError(
                f"item index {version!r} holds vectors of {index.dimension}, not {dimension}", retryable=False
            )
        check_text_dimension(version, index.text_dimension, text_dimension)
        return index

    async def item_versions(self) -> list[str]:
        return list(self._items)

    async def drop_items(self, version: str) -> None:
        self._items.pop(version, None)

    async def ping(self) -> None:
        return None

    async def describe(self) -> dict[str, object]:
        collections: dict[str, Any] = {}
        for generation, store in self._users.items():
            collections[collection_name("", "users", generation)] = len(store)
        for version, index in self._items.items():
            collections[collection_name("", "items", version)] = len(index)
        return {
            "technology": "exact index in memory",
            "version": f"numpy {np.__version__}",
            "user_generation": self._live,
            "collections": collections,
        }

    async def close(self) -> None:
        self._users.clear()
        self._items.clear()


def _copied(record: UserRecord) -> UserRecord:
    # A store keeps what was handed over, whatever the caller does with its arrays afterwards.
    return UserRecord(
        user_key=record.user_key,
        revision=record.revision,
        embedding=record.embedding.astype(np.float32),
        state=record.state.astype(np.float32),
        body=bytes(record.body),
    )
