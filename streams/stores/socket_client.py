"""The stores of another process, reached over its Unix socket. It knows the messages, not what engine answers them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from models.domain.errors import ItemIndexError, StoreError, UserStoreError
from models.domain.ports import F32, ItemRecord, ItemText, UserRecord
from streams.stores import wire
from streams.stores.records import check_item, check_queries, check_user

# Users of one frame: about 7 kB each, so that two frames fit the buffers while one is answered.
SAVE_CHUNK = 256

# The slowest call is the first `items`, which reads a whole catalogue; a store that is silent for longer hangs.
CALL_TIMEOUT_SECONDS = 60.0


class SocketConnection:
    """One connection with many calls under way, told apart by ids; made at the first call, and again after a loss."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._pending: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._connecting = asyncio.Lock()
        self._next_id = 0
        self._closed = False

    async def call(
        self,
        method: str,
        collection: wire.Users | wire.Items | None,
        body: object,
        kind: Any = Any,
        error: type[StoreError] = StoreError,
    ) -> Any:
        """Ask the store process. Raises: `error`, retryable where the process is away or went before it answered."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_SECONDS):
                return wire.decode(await self._ask(await self._connected(), method, collection, body), kind)
        except TimeoutError as silence:
            raise error(f"the store at {self.path} did not answer {method} in {CALL_TIMEOUT_SECONDS:g} s") from silence
        except StoreError as failure:
            if isinstance(failure, error):
                raise
            raise error(str(failure), retryable=failure.retryable) from failure
        except msgspec.MsgspecError as unreadable:
            raise error(f"an answer that cannot be read: {unreadable}", retryable=False) from unreadable

    async def close(self) -> None:
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _ask(
        self, writer: asyncio.StreamWriter, method: str, collection: wire.Users | wire.Items | None, body: object
    ) -> msgspec.Raw:
        self._next_id += 1
        request = wire.Request(self._next_id, method, collection, wire.encode(body))
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._pending[request.id] = answer
        try:
            writer.write(wire.frame(request))
            await writer.drain()
            return await answer
        except ConnectionError as lost:
            raise StoreError(f"the store at {self.path} went away") from lost
        finally:
            self._pending.pop(request.id, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # read, so that a lost connection is not reported a second time

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._closed:
                raise StoreError("the connection to the store was closed", retryable=False)
            if self._writer is not None:
                return self._writer
            try:
                reader, writer = await asyncio.open_unix_connection(str(self.path))
            except OSError as error:
                raise StoreError(f"no store answers at {self.path} (`streamrec store` runs one): {error}") from error
            self._reading = asyncio.create_task(self._read(reader, writer))
            await self._ask(writer, "hello", None, wire.PROTOCOL)
            self._writer = writer
            return writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lost: StoreError = StoreError(f"the store at {self.path} went away")
        try:
            while (data := await wire.read_frame(reader)) is not None:
                reply = msgspec.msgpack.decode(data, type=wire.Reply)
                answer = self._pending.get(reply.id)
                if answer is None or answer.done():
                    continue  # its caller was cancelled
                if reply.error:
                    answer.set_exception(wire.error_of(reply))
                else:
                    answer.set_result(reply.body)
        except msgspec.MsgspecError as error:
            lost = StoreError(f"the peer at {self.path} is no store: {error}", retryable=False)
        except StoreError as error:
            lost = error
        finally:
            self._writer = None
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(lost)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class SocketUserStore:
    """One generation of users behind the socket."""

    def __init__(self, connection: SocketConnection, name: wire.Users) -> None:
        self.generation = name.generation
        self._connection = connection
        self._name = name

    async def load_many(self, user_keys: Sequence[str]) -> list[UserRecord | None]:
        packed = await self._call("load_many", list(user_keys), list[wire.PackedUser | None])
        return [None if user is None else wire.unpack_user(user) for user in packed]

    async def save_many(self, records: Sequence[UserRecord]) -> None:
        for record in records:
            check_user(record, self._name.dimension, self._name.state_size)
        for start in range(0, len(records), SAVE_CHUNK):
            await self._call("save_many", [wire.pack_user(record) for record in records[start : start + SAVE_CHUNK]])

    async def scan(self, batch_size: int = 256) -> AsyncIterator[UserRecord]:
        number = await self._call("scan", wire.OpenScan(batch_size), int)
        while True:
            page: list[wire.PackedUser] = await self._call("scan_page", number, list[wire.PackedUser])
            for user in page:
                yield wire.unpack_user(user)
            if len(page) < batch_size:
                return

    async def count(self) -> int:
        count: int = await self._call("count", None, int)
        return count

    async def _call(self, method: str, body: object, kind: Any = Any) -> Any:
        return await self._connection.call(method, self._name, body, kind, UserStoreError)


class SocketItemIndex:
    """One version of the items behind the socket."""

    def __init__(self, connection: SocketConnection, name: wire.Items, text_dimension: int) -> None:
        self.version = name.version
        self.text_dimension = text_dimension
        self._connection = connection
        self._name = name

    async def upsert_many(self, records: Sequence[ItemRecord]) -> None:
        for record in records:
            check_item(record, self._name.dimension, self.text_dimension)
        for start in range(0, len(records), SAVE_CHUNK):
            await self._call("upsert_many", [wire.pack_item(record) for record in records[start : start + SAVE_CHUNK]])

    async def remove_many(self, item_ids: Sequence[str]) -> None:
        await self._call("remove_many", list(item_ids))

    async def get_many(self, item_ids: Sequence[str]) -> list[ItemRecord | None]:
        packed = await self._call("get_many", list(item_ids), list[wire.PackedItem | None])
        return [None if item is None else wire.unpack_item(item) for item in packed]

    async def texts(self, item_ids: Sequence[str]) -> list[ItemText | None]:
        if not self.text_dimension:
            return [None] * len(item_ids)
        packed = await self._call("texts", list(item_ids), list[wire.PackedText | None])
        return [None if kept is None else wire.unpack_text(kept) for kept in packed]

    async def search_many(self, vectors: F32, k: int) -> list[list[tuple[str, float]]]:
        check_queries(vectors, self._name.dimension, k)
        found: list[list[tuple[str, float]]] = await self._call(
            "search_many", wire.pack_query(vectors, k), list[list[tuple[str, float]]]
        )
        return found

    async def scan(self, batch_size: int = 256) -> AsyncIterator[ItemRecord]:
        number = await self._call("scan", wire.OpenScan(batch_size), int)
        while True:
            page: list[wire.PackedItem] = await self._call("scan_page", number, list[wire.PackedItem])
            for item in page:
                yield wire.unpack_item(item)
            if len(page) < batch_size:
                return

    async def count(self) -> int:
        count: int = await self._call("count", None, int)
        return count

    async def _call(self, method: str, body: object, kind: Any = Any) -> Any:
        return await self._connection.call(method, self._name, body, kind, ItemIndexError)


class SocketStores:
    """The collections of the store process that listens at `path`; its prefix is that process's own."""

    def __init__(self, path: Path) -> None:
        self._connection = SocketConnection(path)

    async def users(self, *, state_size: int, dimension: int, generation: str | None = None) -> SocketUserStore:
        asked = wire.OpenUsers(state_size, dimension, generation)
        opened: str = await self._connection.call("open_users", None, asked, str, UserStoreError)
        return SocketUserStore(self._connection, wire.Users(opened, state_size, dimension))

    async def user_generation(self) -> str:
        generation: str = await self._connection.call("user_generation", None, None, str)
        return generation

    async def switch_users(self, generation: str) -> None:
        await self._connection.call("switch_users", None, generation, error=UserStoreError)

    async def items(self, *, version: str, dimension: int, text_dimension: int = 0) -> SocketItemIndex:
        name = wire.Items(version, dimension, text_dimension)
        kept: int = await self._connection.call("open_items", name, None, int, ItemIndexError)
        return SocketItemIndex(self._connection, name, kept)

    async def item_versions(self) -> list[str]:
        versions: list[str] = await self._connection.call("item_versions", None, None, list[str], ItemIndexError)
        return versions

    async def drop_items(self, version: str) -> None:
        await self._connection.call("drop_items", None, version, error=ItemIndexError)

    async def ping(self) -> None:
        await self._connection.call("ping", None, None)

    async def describe(self) -> dict[str, object]:
        described: dict[str, object] = await self._connection.call("describe", None, None, dict[str, Any])
        return {**described, "technology": f"{described['technology']}, behind the socket {self._connection.path}"}

    async def close(self) -> None:
        """Leave; the store process goes on."""
        await self._connection.close()
