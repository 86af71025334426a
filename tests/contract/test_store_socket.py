"""What only the socket between a store process and its clients promises."""

from __future__ import annotations

import asyncio
import socket
import stat
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from models.domain.errors import ItemIndexError, StoreError, UserStoreError
from streams.stores.embedded import EmbeddedStores
from streams.stores.exact import ExactStores
from streams.stores.socket_client import SocketStores
from streams.stores.socket_server import StoreServer, serve
from tests.contract.store_processes import DIMENSION, STATE_SIZE, item, user, user_key


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="streamrec-") as directory:
        yield Path(directory) / "store.sock"


def exists(path: Path) -> bool:
    return path.exists()


def read(path: Path) -> str:
    return path.read_text()


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
async def server(path: Path) -> AsyncIterator[StoreServer]:
    server = StoreServer(ExactStores(), path)
    await server.listen()
    yield server
    await server.close()


async def test_only_the_owner_may_connect(server: StoreServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


async def test_a_stale_socket_is_replaced_and_a_living_one_is_not(path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    first = StoreServer(ExactStores(), path)
    await first.listen()
    with pytest.raises(StoreError, match="another store process"):
        await StoreServer(ExactStores(), path).listen()
    client = SocketStores(path)
    await client.ping()
    await client.close()
    await first.close()
    assert not exists(path)
    write(path, "not a socket")
    with pytest.raises(StoreError, match="no socket"):
        await StoreServer(ExactStores(), path).listen()
    assert read(path) == "not a socket"


async def test_clients_at_once_see_each_others_writes(server: StoreServer) -> None:
    clients = [SocketStores(server.path) for _ in range(4)]
    stores = [await c.users(state_size=STATE_SIZE, dimension=DIMENSION) for c in clients]

    async def grow(number: int) -> None:
        for revision in range(1, 30):
            await stores[number % 4].save_many([user(number, revision)])

    await asyncio.gather(*(grow(number) for number in range(16)))
    for store in stores:
        loaded = await store.load_many([user_key(number) for number in range(16)])
        assert [record.revision if record else None for record in loaded] == [29] * 16
    for client in clients:
        await client.close()


async def test_while_the_store_is_away_calls_fail_retryably_and_then_go_on(path: Path, tmp_path: Path) -> None:
    client = SocketStores(path)
    with pytest.raises(StoreError) as away:
        await client.ping()
    assert away.value.retryable

    async def serving() -> tuple[EmbeddedStores, asyncio.Task[None]]:
        stores = EmbeddedStores(tmp_path)
        task = asyncio.create_task(serve(stores, path))
        async with asyncio.timeout(10):
            while not exists(path):
                await asyncio.sleep(0.005)
        return stores, task

    async def stop(stores: EmbeddedStores, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stores.close()

    served = await serving()
    users = await client.users(state_size=STATE_SIZE, dimension=DIMENSION)
    items = await client.items(version="v", dimension=DIMENSION)
    await users.save_many([user(1, 1)])
    await items.upsert_many([item(1, 1)])
    await stop(*served)

    with pytest.raises(UserStoreError) as lost:
        await users.load_many([user_key(1)])
    assert lost.value.retryable
    with pytest.raises(ItemIndexError) as lost_items:
        await items.search_many(np.ones((1, DIMENSION), np.float32), 1)
    assert lost_items.value.retryable

    served = await serving()
    (record,) = await users.load_many([user_key(1)])
    assert record is not None
    assert record.revision == 1
    assert await items.search_many(np.ones((1, DIMENSION), np.float32), 1) == [[("item-1", float(DIMENSION))]]
    await client.close()
    await stop(*served)


async def test_a_generation_dropped_while_its_client_was_away_is_not_made_anew(path: Path) -> None:
    stores = ExactStores()
    first = StoreServer(stores, path)
    await first.listen()
    client = SocketStores(path)
    former = await client.users(state_size=STATE_SIZE, dimension=DIMENSION)
    await stores.users(state_size=STATE_SIZE, dimension=DIMENSION, generation="1")
    await first.close()
    await stores.switch_users("1")
    second = StoreServer(stores, path)
    await second.listen()
    with pytest.raises(UserStoreError) as refused:
        await former.save_many([user(1, 1)])
    assert not refused.value.retryable
    await client.close()
    await second.close()


async def test_a_closing_store_answers_what_it_has_begun(path: Path, tmp_path: Path) -> None:
    stores = EmbeddedStores(tmp_path)
    server = StoreServer(stores, path)
    await server.listen()
    client = SocketStores(path)
    users = await client.users(state_size=STATE_SIZE, dimension=DIMENSION)
    writes = [asyncio.create_task(users.save_many([user(number, 1)])) for number in range(50)]
    await asyncio.sleep(0)
    await server.close()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert all(answer is None or (isinstance(answer, UserStoreError) and answer.retryable) for answer in answers)
    stored = await (await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)).load_many(
        [user_key(number) for number in range(50)]
    )
    assert all(record is not None for record, answer in zip(stored, answers, strict=True) if answer is None)
    await client.close()
    await stores.close()


async def test_a_peer_that_speaks_something_else_is_cut_off_and_others_are_served(server: StoreServer) -> None:
    client = SocketStores(server.path)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", struct.pack("<I", 3) + b"abc", b"\x01"):
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(noise)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    await client.ping()
    await client.close()


async def test_a_cancelled_call_leaves_the_connection_usable(server: StoreServer) -> None:
    client = SocketStores(server.path)
    users = await client.users(state_size=STATE_SIZE, dimension=DIMENSION)
    for number in range(20):
        call = asyncio.create_task(users.save_many([user(number, 1)]))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await users.save_many([user(99, 1)])
    assert (await users.load_many([user_key(99)]))[0] is not None
    await client.close()
