"""The stores over a Qdrant server (qdrant-client, async, gRPC): collections, and the alias that is the pointer."""

from __future__ import annotations

import math

from qdrant_client import AsyncQdrantClient, models

from models.domain.errors import ItemIndexError, StoreError, UserStoreError
from streams.stores.names import FIRST_GENERATION, collection_name, pointer_name, unescape, version_of
from streams.stores.records import EMBEDDING, REVISION, TEXT, check_text_dimension
from streams.stores.server_errors import translated
from streams.stores.server_items import ServerItemIndex
from streams.stores.server_users import ServerUserStore

# Conditional upserts came with 1.16. An older server ignores the condition silently, and a zombie's write would win.
OLDEST_SERVER = (1, 16)

STATE_SIZE = "state_size"
_ITEM_INDEXES = {
    "item_id": models.PayloadSchemaType.KEYWORD,
    "available": models.PayloadSchemaType.INTEGER,
    "categories": models.PayloadSchemaType.KEYWORD,
    "price": models.PayloadSchemaType.FLOAT,
}
# Read by the condition of every upsert; a server in strict mode refuses conditions on fields without an index.
_USER_INDEXES = {REVISION: models.PayloadSchemaType.INTEGER}


def connect(url: str, api_key: str, grpc_port: int, prefer_grpc: bool, timeout_seconds: float) -> AsyncQdrantClient:
    """A client of the server; it connects at the first call."""
    return AsyncQdrantClient(
        url=url,
        port=443 if url.startswith("https://") else 6333,
        grpc_port=grpc_port,
        prefer_grpc=prefer_grpc,
        api_key=api_key or None,
        timeout=math.ceil(timeout_seconds),
        check_compatibility=False,  # it asks from a thread of its own; `ServerStores` asks for what it needs itself
    )


class ServerStores:
    """The collections of one deployment on a Qdrant server. Nothing is asked of it before the first call.

    Args:
        client: an existing client instead of one made from the other arguments; it is closed with the stores.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        grpc_port: int = 6334,
        prefer_grpc: bool = True,
        collection_prefix: str = "",
        timeout_seconds: float = 10.0,
        client: AsyncQdrantClient | None = None,
    ) -> None:
        self._url = url
        self._prefix = collection_prefix
        self._client = client or connect(url, api_key, grpc_port, prefer_grpc, timeout_seconds)
        self._version: str | None = None

    async def users(self, *, state_size: int, dimension: int, generation: str | None = None) -> ServerUserStore:
        await self._check_version()
        live = await self._live()
        if generation is None:
            generation = FIRST_GENERATION if live is None else live
        name = collection_name(self._prefix, "users", generation)
        info = await self._ensure(name, dimension, _USER_INDEXES, UserStoreError, {STATE_SIZE: state_size})
        stored = (info.config.metadata or {}).get(STATE_SIZE, state_size)
        if stored != state_size:
            raise UserStoreError(f"{name} holds states of {stored}, not {state_size}", retryable=False)
        if live is None and generation == FIRST_GENERATION:
            await self._point_at(name)
        return ServerUserStore(self._client, name, generation, state_size, dimension)

    async def user_generation(self) -> str:
        return await self._live() or FIRST_GENERATION

    async def switch_users(self, generation: str) -> None:
        live = await self.user_generation()
        if generation == live:
            return
        name = collection_name(self._prefix, "users", generation)
        with translated(UserStoreError, name):
            if not await self._client.collection_exists(name):
                raise UserStoreError(f"user generation {generation!r} does not exist", retryable=False)
            await self._point_at(name)
            await self._client.delete_collection(collection_name(self._prefix, "users", live))

    async def items(self, *, version: str, dimension: int, text_dimension: int = 0) -> ServerItemIndex:
        await self._check_version()
        name = collection_name(self._prefix, "items", version)
        info = await self._ensure(name, dimension, _ITEM_INDEXES, ItemIndexError, text_dimension=text_dimension)
        kept = _size(info, TEXT) or 0
        check_text_dimension(version, kept, text_dimension)
        return ServerItemIndex(self._client, name, version, dimension, kept)

    async def item_versions(self) -> list[str]:
        with translated(ItemIndexError, self._url):
            names = [collection.name for collection in (await self._client.get_collections()).collections]
        versions = (version_of(self._prefix, "items", name) for name in names)
        return [unescape(version) for version in versions if version]

    async def drop_items(self, version: str) -> None:
        name = collection_name(self._prefix, "items", version)
        with translated(ItemIndexError, name):
            if await self._client.collection_exists(name):
                await self._client.delete_collection(name)

    async def ping(self) -> None:
        with translated(StoreError, self._url):
            await self._client.info()

    async def describe(self) -> dict[str, object]:
        with translated(StoreError, self._url):
            version = (await self._client.info()).version
            names = [collection.name for collection in (await self._client.get_collections()).collections]
            ours = [name for name in names if any(version_of(self._prefix, kind, name) for kind in ("users", "items"))]
            counts = {name: (await self._client.count(name, exact=True)).count for name in sorted(ours)}
        return {
            "technology": f"Qdrant server at {self._url}",
            "version": version,
            "user_generation": await self.user_generation(),
            "collections": counts,
        }

    async def close(self) -> None:
        with translated(StoreError, self._url):
            await self._client.close()

    async def _check_version(self) -> None:
        if self._version is not None:
            return
        with translated(StoreError, self._url):
            version = (await self._client.info()).version
        parts = version.lstrip("v").split(".")
        if all(part.isdecimal() for part in parts[:2]) and tuple(map(int, parts[:2])) < OLDEST_SERVER:
            raise StoreError(
                f"Qdrant {version} at {self._url} is older than 1.16, which user states need (conditional upserts)",
                retryable=False,
            )
        self._version = version

    async def _live(self) -> str | None:
        """The generation that the alias names; None before the first."""
        pointer = pointer_name(self._prefix)
        with translated(UserStoreError, self._url):
            for alias in (await self._client.get_aliases()).aliases:
                if alias.alias_name == pointer:
                    version = version_of(self._prefix, "users", alias.collection_name)
                    if version is None:
                        raise UserStoreError(f"alias {pointer} names {alias.collection_name}", retryable=False)
                    return unescape(version)
        return None

    async def _point_at(self, collection: str) -> None:
        pointer = pointer_name(self._prefix)
        with translated(UserStoreError, self._url):
            await self._client.update_collection_aliases(
                change_aliases_operations=[
                    models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=pointer)),
                    models.CreateAliasOperation(
                        create_alias=models.CreateAlias(collection_name=collection, alias_name=pointer)
                    ),
                ]
            )

    async def _ensure(
        self,
        name: str,
        dimension: int,
        indexes: dict[str, models.PayloadSchemaType],
        error: type[StoreError],
        metadata: dict[str, int] | None = None,
        text_dimension: int = 0,
    ) -> models.CollectionInfo:
        """The collection with its indexes, made where absent. Raises: `error` when its vectors have another size."""
        with translated(error, name):
            if not await self._client.collection_exists(name):
                try:
                    await self._create(name, dimension, metadata, text_dimension)
                except Exception:
                    if not await self._client.collection_exists(name):  # else another worker was first
                        raise
            info = await self._client.get_collection(name)
            size = _size(info, EMBEDDING)
            if size != dimension:
                raise error(f"{name} holds vectors of {size}, not {dimension}", retryable=False)
            for field, schema in indexes.items():
                if field not in info.payload_schema:
                    await self._client.create_payload_index(name, field, field_schema=schema, wait=True)
            return info

    async def _create(self, name: str, dimension: int, metadata: dict[str, int] | None, text_dimension: int) -> None:
        users = metadata is not None
        vectors = {EMBEDDING: models.VectorParams(size=dimension, distance=models.Distance.DOT, on_disk=users or None)}
        if text_dimension:
            # Read by id when another version is filled, and never searched: no graph, and on disk.
            vectors[TEXT] = models.VectorParams(
                size=text_dimension,
                distance=models.Distance.DOT,
                on_disk=True,
                hnsw_config=models.HnswConfigDiff(m=0),
            )
        await self._client.create_collection(
            name,
            vectors_config=vectors,
            # Users are read by id and never searched: no graph, vectors and payload on disk.
            hnsw_config=models.HnswConfigDiff(m=0) if users else None,
            on_disk_payload=True if users else None,
            metadata=metadata,
        )


def _size(info: models.CollectionInfo, vector: str) -> int | None:
    """Of a collection's vectors of that name; None where it has none."""
    vectors = info.config.params.vectors
    return vectors[vector].size if isinstance(vectors, dict) and vector in vectors else None
