"""The store implementations that the contract suite runs over, each as a deployment that can be opened and shut."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qdrant_client import AsyncQdrantClient

from models.domain.errors import StoreError
from models.domain.ports import Stores
from streams.stores.embedded import EmbeddedStores
from streams.stores.exact import ExactStores
from streams.stores.server import ServerStores
from streams.stores.socket_client import SocketStores
from streams.stores.socket_server import StoreServer


class Deployment:
    """One place where collections live. `open` gives its stores; what was opened is shut at the end of the test."""

    durable = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: list[Stores] = []

    async def open(self, prefix: str = "") -> Stores:
        stores = await self._open(prefix)
        self._opened.append(stores)
        return stores

    async def shut(self) -> None:
        for stores in self._opened:
            await stores.close()
        self._opened.clear()

    async def remove(self) -> None:
        await self.shut()

    async def _open(self, prefix: str) -> Stores:
        raise NotImplementedError


class Exact(Deployment):
    durable = False

    async def _open(self, prefix: str) -> Stores:
        return ExactStores()


class Embedded(Deployment):
    async def _open(self, prefix: str) -> Stores:
        return EmbeddedStores(self.directory, prefix)


class EmbeddedEngineSearch(Deployment):
    """As a catalogue too large for the search in memory is served."""

    async def _open(self, prefix: str) -> Stores:
        return EmbeddedStores(self.directory, prefix, exact_search_limit=0)


class Socket(Deployment):
    """An embedded store behind its socket, served from this process."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._servers: list[tuple[StoreServer, Stores]] = []
        # pytest's own directories are longer than the 107 bytes of a socket's path.
        self._sockets = tempfile.TemporaryDirectory(prefix="streamrec-")

    async def _open(self, prefix: str) -> Stores:
        path = Path(self._sockets.name) / f"{len(self._servers)}.sock"
        stores = EmbeddedStores(self.directory, prefix)
        server = StoreServer(stores, path)
        await server.listen()
        self._servers.append((server, stores))
        return SocketStores(path)

    async def shut(self) -> None:
        await super().shut()
        for server, stores in self._servers:
            await server.close()
            await stores.close()
        self._servers.clear()

    async def remove(self) -> None:
        await super().remove()
        self._sockets.cleanup()


class ServerInMemory(Deployment):
    """The server implementation over the client library's own imitation of a server."""

    durable = False

    async def _open(self, prefix: str) -> Stores:
        if not self._opened:
            self.client = AsyncQdrantClient(":memory:")
        return ServerStores("memory", collection_prefix=prefix, client=self.client)


class Server(Deployment):
    """A real Qdrant server, where QDRANT_URL names one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.url = os.environ.get("QDRANT_URL", "")
        if not self.url:
            pytest.skip("QDRANT_URL is not set: the Qdrant server part of the store suite needs a server")
        self._answered = False
        self._prefix = f"test{uuid.uuid4().hex[:12]}"

    async def _open(self, prefix: str) -> Stores:
        stores = ServerStores(
            self.url,
            api_key=os.environ.get("QDRANT_API_KEY", ""),
            grpc_port=int(os.environ.get("QDRANT_GRPC_PORT", "6334")),
            collection_prefix=self._prefix + prefix,
        )
        try:
            await stores.ping()
        except StoreError as error:
            if os.environ.get("REQUIRE_SERVICES") == "1":
                pytest.fail(f"QDRANT_URL is set and REQUIRE_SERVICES=1, but no server answers: {error}")
            pytest.skip(f"no Qdrant server answers at {self.url}: {error}")
        self._answered = True
        return stores

    async def remove(self) -> None:
        await super().remove()
        if not self._answered:
            return
        client = AsyncQdrantClient(url=self.url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
        for collection in (await client.get_collections()).collections:
            if collection.name.startswith(self._prefix):
                await client.delete_collection(collection.name)
        await client.close()


DEPLOYMENTS = {
    "exact": Exact,
    "embedded": Embedded,
    "embedded-engine-search": EmbeddedEngineSearch,
    "socket": Socket,
    "server-in-memory": ServerInMemory,
    "server": Server,
}


@pytest.fixture(params=DEPLOYMENTS.values(), ids=DEPLOYMENTS.keys())
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Deployment]:
    made: Deployment = request.param(tmp_path)
    yield made
    await made.remove()


@pytest.fixture
async def stores(deployment: Deployment) -> Stores:
    return await deployment.open()
