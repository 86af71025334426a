"""Serves one process's stores to the other processes of the machine over a Unix socket. It holds no data of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from models.domain.errors import StoreError
from models.domain.ports import ItemIndex, ItemRecord, Stores, UserRecord, UserStore
from streams.stores import wire

# Scans of one connection that may be open at once: a client that leaves one early does not say so, the oldest goes.
MAX_SCANS_PER_CONNECTION = 16

# Calls of one connection that may be under way at once; further ones stay in the socket, which slows their sender down.
MAX_CALLS_PER_CONNECTION = 64

logger = logging.getLogger(__name__)

Method = Callable[["_Connection", wire.Request], Awaitable[object]]


class StoreServer:
    """A listening socket over `stores`. Start it with `listen`, end it with `close`; the stores stay open."""

    def __init__(self, stores: Stores, path: Path) -> None:
        self.stores = stores
        self.path = Path(path)
        self.users: dict[wire.Users, UserStore] = {}
        self.items: dict[wire.Items, ItemIndex] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def listen(self) -> None:
        """Raises: StoreError when another process answers there, or the path cannot be used."""
        listener = await asyncio.to_thread(_bind, self.path)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)

    async def close(self) -> None:
        """Stop listening, finish the calls under way, end every connection, remove the socket file."""
        if self._server is None:
            return
        self._server.close()
        await asyncio.gather(*(connection.end() for connection in self._connections))
        self.path.unlink(missing_ok=True)
        self._server = None

    async def user_store(self, name: wire.Users) -> UserStore:
        """The collection that a client opened before, perhaps from a former store process.

        A generation that is neither open nor live is not made anew: its client is behind a switch.
        """
        store = self.users.get(name)
        if store is None:
            if name.generation != await self.stores.user_generation():
                raise StoreError(f"user generation {name.generation!r} is not open: open it again", retryable=False)
            store = self.users[name] = await self.stores.users(
                state_size=name.state_size, dimension=name.dimension, generation=name.generation
            )
        return store

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or not self._server.is_serving():  # accepted while closing
            writer.close()
            return
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


async def serve(stores: Stores, path: Path) -> None:
    """Serve `stores` at `path` until cancelled. Raises: StoreError when the path cannot be used."""
    server = StoreServer(stores, path)
    await server.listen()
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await server.close()


class _Connection:
    """One client: its calls run side by side, started in the order sent; each is answered as it ends."""

    def __init__(self, server: StoreServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.scans: dict[int, tuple[AsyncIterator[UserRecord | ItemRecord], int]] = {}
        self._reader = reader
        self._writer = writer
        self._room = asyncio.Semaphore(MAX_CALLS_PER_CONNECTION)
        self._calls: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        # A task of its own, so that `end` cancels the reading and nothing else.
        self._reading = asyncio.create_task(self._read())
        await asyncio.wait([self._reading])
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        self._ended.set()

    async def end(self) -> None:
        """Read no further call, answer those under way, close."""
        if self._reading is not None:
            self._reading.cancel()
        await self._ended.wait()

    async def _read(self) -> None:
        try:
            while (data := await wire.read_frame(self._reader)) is not None:
                request = msgspec.msgpack.decode(data, type=wire.Request)
                await self._room.acquire()
                call = asyncio.create_task(self._answer(request))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
        except (StoreError, msgspec.MsgspecError) as error:
            logger.warning("a client of %s was cut off: %s", self.server.path, error)

    async def _answer(self, request: wire.Request) -> None:
        try:
            try:
                method = METHODS.get(request.method)
                if method is None:
                    raise StoreError(f"no method {request.method[:40]!r}: client and store differ", retryable=False)
                reply = wire.frame(wire.Reply(request.id, wire.encode(await method(self, request))))
            except StoreError as error:
                reply = wire.frame(wire.error_reply(request.id, error))
            except msgspec.MsgspecError as error:
                refused = StoreError(f"a request that cannot be read: {error}", retryable=False)
                reply = wire.frame(wire.error_reply(request.id, refused))
            except Exception as error:
                logger.exception("the call %s failed", request.method)
                reply = wire.frame(wire.error_reply(request.id, StoreError(f"the store process failed: {error!r}")))
            self._writer.write(reply)
            await self._writer.drain()
        except ConnectionError:
            pass  # the client left; what it wrote stands
        finally:
            self._room.release()


async def _hello(_: _Connection, request: wire.Request) -> object:
    protocol = wire.decode(request.body, int)
    if protocol != wire.PROTOCOL:
        raise StoreError(f"the client speaks protocol {protocol}, the store {wire.PROTOCOL}", retryable=False)
    return wire.PROTOCOL


async def _open_users(connection: _Connection, request: wire.Request) -> object:
    asked: wire.OpenUsers = wire.decode(request.body, wire.OpenUsers)
    stores = connection.server.stores
    generation = await stores.user_generation() if asked.generation is None else asked.generation
    store = await stores.users(state_size=asked.state_size, dimension=asked.dimension, generation=generation)
    connection.server.users[wire.Users(generation, asked.state_size, asked.dimension)] = store
    return generation


async def _open_items(connection: _Connection, request: wire.Request) -> object:
    return (await _items(connection, request)).text_dimension


async def _item_versions(connection: _Connection, _: wire.Request) -> object:
    return await connection.server.stores.item_versions()


async def _drop_items(connection: _Connection, request: wire.Request) -> object:
    server, version = connection.server, wire.decode(request.body, str)
    # Whoever still asks for it opens it anew, empty: a client that is behind goes on without its items' vectors.
    for name in [name for name in server.items if name.version == version]:
        del server.items[name]
    await server.stores.drop_items(version)
    return None


async def _user_generation(connection: _Connection, _: wire.Request) -> object:
    return await connection.server.stores.user_generation()


async def _ping(connection: _Connection, _: wire.Request) -> object:
    await connection.server.stores.ping()
    return None


async def _describe(connection: _Connection, _: wire.Request) -> object:
    return await connection.server.stores.describe()


async def _switch_users(connection: _Connection, request: wire.Request) -> object:
    await connection.server.stores.switch_users(wire.decode(request.body, str))
    return None


async def _load(connection: _Connection, request: wire.Request) -> object:
    store = await _users(connection, request)
    records = await store.load_many(wire.decode(request.body, list[str]))
    return [None if record is None else wire.pack_user(record) for record in records]


async def _save(connection: _Connection, request: wire.Request) -> object:
    store = await _users(connection, request)
    await store.save_many([wire.unpack_user(user) for user in wire.decode(request.body, list[wire.PackedUser])])
    return None


async def _upsert(connection: _Connection, request: wire.Request) -> object:
    index = await _items(connection, request)
    await index.upsert_many([wire.unpack_item(item) for item in wire.decode(request.body, list[wire.PackedItem])])
    return None


async def _remove(connection: _Connection, request: wire.Request) -> object:
    await (await _items(connection, request)).remove_many(wire.decode(request.body, list[str]))
    return None


async def _get(connection: _Connection, request: wire.Request) -> object:
    records = await (await _items(connection, request)).get_many(wire.decode(request.body, list[str]))
    return [None if record is None else wire.pack_item(record) for record in records]


async def _texts(connection: _Connection, request: wire.Request) -> object:
    kept = await (await _items(connection, request)).texts(wire.decode(request.body, list[str]))
    return [None if text is None else wire.pack_text(text) for text in kept]


async def _search(connection: _Connection, request: wire.Request) -> object:
    query: wire.Query = wire.decode(request.body, wire.Query)
    return await (await _items(connection, request)).search_many(wire.unpack_query(query), query.k)


async def _count(connection: _Connection, request: wire.Request) -> object:
    return await (await _collection(connection, request)).count()


async def _scan(connection: _Connection, request: wire.Request) -> object:
    batch_size = wire.decode(request.body, wire.OpenScan).batch_size
    collection = await _collection(connection, request)
    if len(connection.scans) == MAX_SCANS_PER_CONNECTION:
        del connection.scans[next(iter(connection.scans))]
    connection.scans[request.id] = (collection.scan(batch_size), batch_size)
    return request.id


async def _scan_page(connection: _Connection, request: wire.Request) -> object:
    """The next page of a scan; a page that is not full was the last."""
    number = wire.decode(request.body, int)
    if number not in connection.scans:
        raise StoreError(f"no scan {number} on this connection")
    scan, size = connection.scans[number]
    page: list[wire.PackedUser | wire.PackedItem] = []
    async for record in scan:
        page.append(wire.pack_user(record) if isinstance(record, UserRecord) else wire.pack_item(record))
        if len(page) == size:
            return page
    del connection.scans[number]
    return page


async def _collection(connection: _Connection, request: wire.Request) -> UserStore | ItemIndex:
    if isinstance(request.collection, wire.Users):
        return await _users(connection, request)
    return await _items(connection, request)


async def _users(connection: _Connection, request: wire.Request) -> UserStore:
    if not isinstance(request.collection, wire.Users):
        raise StoreError(f"{request.method} names no user collection", retryable=False)
    return await connection.server.user_store(request.collection)


async def _items(connection: _Connection, request: wire.Request) -> ItemIndex:
    if not isinstance(request.collection, wire.Items):
        raise StoreError(f"{request.method} names no item collection", retryable=False)
    server, name = connection.server, request.collection
    if name not in server.items:
        server.items[name] = await server.stores.items(
            version=name.version, dimension=name.dimension, text_dimension=name.text_dimension
        )
    return server.items[name]


METHODS: dict[str, Method] = {
    "hello": _hello,
    "ping": _ping,
    "describe": _describe,
    "user_generation": _user_generation,
    "open_items": _open_items,
    "item_versions": _item_versions,
    "drop_items": _drop_items,
    "open_users": _open_users,
    "switch_users": _switch_users,
    "load_many": _load,
    "save_many": _save,
    "upsert_many": _upsert,
    "remove_many": _remove,
    "get_many": _get,
    "texts": _texts,
    "search_many": _search,
    "count": _count,
    "scan": _scan,
    "scan_page": _scan_page,
}


def _bind(path: Path) -> socket.socket:
    """A listening socket at `path`, for this user only; a file that nobody listens behind is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            _remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)  # nobody connects before the socket listens, which it does not yet
    except OSError as error:
        listener.close()
        raise StoreError(f"cannot listen at {path}: {error}", retryable=False) from error
    except StoreError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise StoreError(f"{path} exists and is no socket", retryable=False)
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
            raise
        path.unlink(missing_ok=True)
    else:
        raise StoreError(f"another store process serves {path}", retryable=False)
    finally:
        probe.close()
