"""The stores over the embedded engine (qdrant-edge-py): durable, in process, one process at a time."""

from __future__ import annotations

import asyncio
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

from qdrant_edge import CountRequest, EdgeConfig, EdgeShard

from models.domain.errors import ItemIndexError, StoreError, UserStoreError
from streams.stores.embedded_directory import EmbeddedDirectory, Sizes
from streams.stores.embedded_items import EXACT_SEARCH_LIMIT, EmbeddedItemIndex, create_payload_indexes, items_config
from streams.stores.embedded_shard import Shard, breathe, create_shard, guarded, load_shard
from streams.stores.embedded_users import EmbeddedUserStore, users_config
from streams.stores.records import check_text_dimension

USERS = "users"
ITEMS = "items"


class EmbeddedStores:
    """The collections of one deployment in `data_dir`. Nothing is opened before the first call.

    A write is in the write-ahead log when it returns: it survives kill -9 of the process. A loss of power may take what
    was written after the last flush; the events are in Kafka.

    Args:
        exact_search_limit: largest catalogue that is searched in memory; beyond it the engine searches.

    Raises: StoreError(retryable=False) from the first call when another process owns the directory.
    """

    def __init__(
        self, data_dir: Path, collection_prefix: str = "", *, exact_search_limit: int = EXACT_SEARCH_LIMIT
    ) -> None:
        self._directory = EmbeddedDirectory(data_dir, collection_prefix)
        self._exact_search_limit = exact_search_limit
        self._users: dict[str, EmbeddedUserStore] = {}
        self._items: dict[str, EmbeddedItemIndex] = {}
        self._opening = asyncio.Lock()
        self._closed = False

    async def users(self, *, state_size: int, dimension: int, generation: str | None = None) -> EmbeddedUserStore:
        async with self._opening:
            await self._acquire()
            if generation is None:
                generation = await asyncio.to_thread(self._directory.generation)
            store = self._users.get(generation)
            if store is None:
                wanted = Sizes(dimension=dimension, state_size=state_size)
                engine, sizes = await asyncio.to_thread(self._open, USERS, generation, wanted)
                shard = Shard(engine, UserStoreError, f"users-{generation}")
                store = EmbeddedUserStore(shard, generation, sizes.state_size, sizes.dimension)
                self._users[generation] = store
            if (store.state_size, store.dimension) != (state_size, dimension):
                raise UserStoreError(
                    f"user generation {generation!r} holds states of {store.state_size} and vectors of "
                    f"{store.dimension}, not {state_size} and {dimension}",
                    retryable=False,
                )
            return store

    async def user_generation(self) -> str:
        async with self._opening:
            await self._acquire()
            return await asyncio.to_thread(self._directory.generation)

    async def switch_users(self, generation: str) -> None:
        async with self._opening:
            await self._acquire()
            if generation == await asyncio.to_thread(self._directory.generation):
                return
            if await asyncio.to_thread(self._directory.sizes, USERS, generation) is None:
                raise UserStoreError(f"user generation {generation!r} does not exist", retryable=False)
            former = await asyncio.to_thread(self._directory.point_at, generation)
            store = self._users.pop(former, None)
            if store is not None:
                await store.close()
            await asyncio.to_thread(self._directory.remove, USERS, former)
            await asyncio.to_thread(self._directory.dropped)

    async def items(self, *, version: str, dimension: int, text_dimension: int = 0) -> EmbeddedItemIndex:
        async with self._opening:
            await self._acquire()
            index = self._items.get(version)
            if index is None:
                wanted = Sizes(dimension=dimension, text_dimension=text_dimension)
                engine, sizes = await asyncio.to_thread(self._open, ITEMS, version, wanted)
                shard = Shard(engine, ItemIndexError, f"items-{version}")
                index = EmbeddedItemIndex(
                    shard, version, sizes.dimension, self._exact_search_limit, sizes.text_dimension
                )
                await index.load()
                self._items[version] = index
            if index.dimension != dimension:
                raise ItemIndexError(
                    f"item index {version!r} holds vectors of {index.dimension}, not {dimension}", retryable=False
                )
            check_text_dimension(version, index.text_dimension, text_dimension)
            return index

    async def item_versions(self) -> list[str]:
        async with self._opening:
            await self._acquire()
            found = await asyncio.to_thread(lambda: list(self._directory.collections()))
            return [version for kind, version in found if kind == ITEMS]

    async def drop_items(self, version: str) -> None:
        async with self._opening:
            await self._acquire()
            index = self._items.pop(version, None)
            if index is not None:
                await index.close()
            await asyncio.to_thread(self._directory.remove, ITEMS, version)

    async def ping(self) -> None:
        async with self._opening:
            await self._acquire()
            for opened in self._opened():
                await opened.count()

    async def describe(self) -> dict[str, object]:
        async with self._opening:
            await self._acquire()
            counts: dict[str, int] = {}
            for kind, version in await asyncio.to_thread(lambda: list(self._directory.collections())):
                opened = self._users.get(version) if kind == USERS else self._items.get(version)
                name = self._directory.path(kind, version).name
                counts[name] = await opened.count() if opened else await asyncio.to_thread(self._count, kind, version)
            return {
                "technology": "embedded Qdrant in process",
                "version": f"qdrant-edge-py {installed_version('qdrant-edge-py')}",
                "data_dir": str(self._directory.root.parent),
                "user_generation": await asyncio.to_thread(self._directory.generation),
                "collections": counts,
            }

    async def close(self) -> None:
        """Flush and close every collection, then let go of the directory."""
        async with self._opening:
            self._closed = True
            for opened in self._opened():
                await opened.close()
            self._users.clear()
            self._items.clear()
            self._directory.release()

    def _opened(self) -> list[EmbeddedUserStore | EmbeddedItemIndex]:
        return [*self._users.values(), *self._items.values()]

    async def _acquire(self) -> None:
        if self._closed:
            raise StoreError("the embedded store was closed", retryable=False)
        if not self._directory.held:
            await asyncio.to_thread(self._directory.acquire)

    def _open(self, kind: str, version: str, wanted: Sizes) -> tuple[EdgeShard, Sizes]:
        error = UserStoreError if kind == USERS else ItemIndexError
        path = self._directory.path(kind, version)
        sizes = self._directory.sizes(kind, version)
        if sizes is not None:
            return load_shard(path / "shard", error), sizes
        shutil.rmtree(path, ignore_errors=True)  # half made when a process was killed
        config = guarded(lambda: _config(kind, wanted), error)
        engine = create_shard(path / "shard", config, error)
        if kind == ITEMS:
            guarded(lambda: create_payload_indexes(engine), error)
        breathe()
        guarded(engine.flush, error)
        self._directory.write_sizes(kind, version, wanted)
        return engine, wanted

    def _count(self, kind: str, version: str) -> int:
        engine = load_shard(self._directory.path(kind, version) / "shard", StoreError)
        try:
            return engine.count(CountRequest(exact=True))
        finally:
            engine.close()


def _config(kind: str, sizes: Sizes) -> EdgeConfig:
    return users_config(sizes.dimension) if kind == USERS else items_config(sizes.dimension, sizes.text_dimension)
