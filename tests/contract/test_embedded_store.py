"""What only the embedded store promises: it survives a kill, one process owns it, a crash leaves nothing half done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.domain.errors import StoreError
from streams.stores.embedded import EmbeddedStores
from streams.stores.embedded_shard import FLUSH_EVERY_POINTS
from tests.contract import store_processes as other

PROGRAM = Path(other.__file__)
ROOT = PROGRAM.parents[2]


def start(role: str, data_dir: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), role, str(data_dir)], stdout=subprocess.PIPE, text=True, env=environment
    )


def kill_after(writer: subprocess.Popen[str], writes: int) -> int:
    """Let the writer acknowledge that many writes, then kill -9 it. Returns: the last revision it acknowledged."""
    assert writer.stdout is not None
    for _ in range(writes):
        assert writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate(timeout=10)
    acknowledged = [int(line) for line in rest.splitlines() if line.strip()]
    return acknowledged[-1] if acknowledged else 0


@pytest.mark.recovery
async def test_every_write_that_returned_is_there_after_kill_9(tmp_path: Path) -> None:
    last = 0
    # The second run ends beyond a flush and a cut of the log, the third starts from what the second left.
    for writes in (3, FLUSH_EVERY_POINTS // other.USERS + 7, 20):
        writer = start("write", tmp_path)
        acknowledged = kill_after(writer, writes)
        stores = EmbeddedStores(tmp_path)
        users = await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION)
        items = await stores.items(version="v", dimension=other.DIMENSION)
        loaded = await users.load_many([other.user_key(number) for number in range(other.USERS)])
        revisions = set()
        for number, record in enumerate(loaded):
            assert record is not None
            assert record.revision >= max(acknowledged, last + writes)
            assert msgspec.structs.astuple(record)[:2] == (other.user_key(number), record.revision)
            assert record.body == other.user(number, record.revision).body
            assert np.all(record.embedding == record.revision)
            assert np.all(record.state == -record.revision)
            revisions.add(record.revision)
        assert len(revisions) == 1
        assert await users.count() == other.USERS
        for found in await items.get_many([f"item-{number}" for number in range(other.USERS)]):
            assert found is not None
            assert int(found.content_hash) >= max(acknowledged, last + writes)
            assert np.all(found.vector == int(found.content_hash))
        last = revisions.pop()
        await stores.close()


async def test_a_second_process_is_told_who_owns_the_store_and_what_to_do(tmp_path: Path) -> None:
    stores = EmbeddedStores(tmp_path)
    users = await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION)
    await users.save_many([other.user(1, 1)])
    said, _ = start("open", tmp_path).communicate(timeout=30)
    assert said.startswith("StoreError retryable=False")
    assert f"process {os.getpid()}" in said
    assert "streamrec store" in said
    await stores.close()
    said, _ = start("open", tmp_path).communicate(timeout=30)
    assert said == "opened 1\n"


async def test_a_second_owner_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    first, second = EmbeddedStores(tmp_path), EmbeddedStores(tmp_path)
    await first.ping()
    for call in (second.ping, second.user_generation, second.describe):
        with pytest.raises(StoreError) as refused:
            await call()
        assert not refused.value.retryable
    await first.close()
    await second.ping()
    await second.close()


async def test_a_closed_store_refuses_and_closes_again(tmp_path: Path) -> None:
    stores = EmbeddedStores(tmp_path)
    users = await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION)
    await stores.close()
    await stores.close()
    for call in (stores.ping, users.count):
        with pytest.raises(StoreError) as refused:
            await call()
        assert not refused.value.retryable


async def test_a_collection_half_made_is_made_anew(tmp_path: Path) -> None:
    stores = EmbeddedStores(tmp_path)
    await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION)
    await stores.close()
    (tmp_path / "collections" / "users_0" / "collection.json").unlink()
    stores = EmbeddedStores(tmp_path)
    users = await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION)
    await users.save_many([other.user(1, 1)])
    assert await users.count() == 1
    await stores.close()


async def test_a_crash_between_the_switch_and_the_removal_is_finished_at_the_next_start(tmp_path: Path) -> None:
    stores = EmbeddedStores(tmp_path)
    collections = tmp_path / "collections"
    await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION)
    await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION, generation="1")
    await stores.close()
    (collections / "users.json").write_text('{"users":"1","dropping":"0"}')
    stores = EmbeddedStores(tmp_path)
    assert await stores.user_generation() == "1"
    assert not (collections / "users_0").exists()
    assert (collections / "users.json").read_text() == '{"users":"1","dropping":null}'
    await stores.close()


async def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file") as refused:
        await EmbeddedStores(tmp_path / "file").ping()
    assert not refused.value.retryable
    stores = EmbeddedStores(tmp_path)
    await stores.ping()
    (tmp_path / "collections" / "users.json").write_text("{")
    with pytest.raises(StoreError, match="users.json"):
        await stores.user_generation()
    await stores.close()


async def test_the_write_ahead_log_does_not_grow_with_the_writes(tmp_path: Path) -> None:
    stores = EmbeddedStores(tmp_path)
    users = await stores.users(state_size=other.STATE_SIZE, dimension=other.DIMENSION)
    fat = os.urandom(4_000)
    for revision in range(1, 4 * FLUSH_EVERY_POINTS // 256):
        await users.save_many(
            [msgspec.structs.replace(other.user(number, revision), body=fat) for number in range(256)]
        )
    wal = tmp_path / "collections" / "users_0" / "shard" / "wal"
    written = 4 * FLUSH_EVERY_POINTS * len(fat)
    await stores.close()
    kept = sum(file.stat().st_blocks * 512 for file in wal.iterdir())
    assert kept < written / 2
    shutil.rmtree(tmp_path / "collections")
