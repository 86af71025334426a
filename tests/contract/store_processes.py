"""Store users in processes of their own, to be killed or locked out: `python store_processes.py ROLE DATA_DIR`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np

from models.domain.errors import StoreError
from models.domain.ports import ItemRecord, UserRecord
from streams.stores.embedded import EmbeddedStores

DIMENSION, STATE_SIZE, USERS = 9, 16, 64


def user_key(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def user(number: int, revision: int) -> UserRecord:
    """A user whose every field follows from its revision, so that a reader can tell a torn one."""
    return UserRecord(
        user_key=user_key(number),
        revision=revision,
        embedding=np.full(DIMENSION, revision, np.float32),
        state=np.full(STATE_SIZE, -revision, np.float32),
        body=f"{number}:{revision}".encode() * 50,
    )


def item(number: int, revision: int) -> ItemRecord:
    return ItemRecord(
        item_id=f"item-{number}", vector=np.full(DIMENSION, revision, np.float32), content_hash=str(revision)
    )


async def write_until_killed(data_dir: Path) -> None:
    """Write users and items for ever, and print each revision once its write has returned."""
    stores = EmbeddedStores(data_dir)
    users = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
    items = await stores.items(version="v", dimension=DIMENSION)
    known = (await users.load_many([user_key(0)]))[0]
    revision = 0 if known is None else known.revision
    while True:
        revision += 1
        await users.save_many([user(number, revision) for number in range(USERS)])
        await items.upsert_many([item(number, revision) for number in range(USERS)])
        print(revision, flush=True)


async def open_once(data_dir: Path) -> None:
    """Open the users and say what happened."""
    stores = EmbeddedStores(data_dir)
    try:
        users = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
        print(f"opened {await users.count()}")
    except StoreError as error:
        print(f"{type(error).__name__} retryable={error.retryable}: {error}")
    finally:
        await stores.close()


if __name__ == "__main__":
    asyncio.run({"write": write_until_killed, "open": open_once}[sys.argv[1]](Path(sys.argv[2])))
