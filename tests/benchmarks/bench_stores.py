"""Cost of the stores' calls, and of the ways to hand a state over: `bench_stores.py [--json FILE]`.

Everything of one table runs in one process after the other; the ratios mean more than the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HasIdCondition,
    Point,
    RangeFloat,
    UpdateOperation,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.domain.ports import ItemRecord, Stores, UserRecord
from streams.stores.embedded import EmbeddedStores
from streams.stores.exact import ExactStores
from streams.stores.socket_client import SocketStores
from streams.stores.socket_server import StoreServer

DIMENSION, STATE_SIZE, BODY_BYTES = 65, 256, 4000
BATCH, USERS, ROUNDS = 64, 2048, 96

Figures = dict[str, float]
Call = Callable[[int], Awaitable[object]]


def make_users(revision: int) -> list[UserRecord]:
    rng = np.random.default_rng(revision)
    embeddings = rng.standard_normal((USERS, DIMENSION)).astype(np.float32)
    states = rng.standard_normal((USERS, STATE_SIZE)).astype(np.float32)
    return [
        UserRecord(
            user_key=str(uuid.UUID(int=number + (4 << 76) + (8 << 60))),
            revision=revision,
            embedding=embeddings[number],
            state=states[number],
            body=rng.bytes(BODY_BYTES),
        )
        for number in range(USERS)
    ]


async def timed(call: Call, per: int, rounds: int = ROUNDS) -> tuple[float, float]:
    """Returns: median and 99th percentile, microseconds a user (or query)."""
    taken = []
    for number in range(rounds):
        started = time.perf_counter()
        await call(number)
        taken.append((time.perf_counter() - started) / per * 1e6)
    taken.sort()
    return statistics.median(taken), taken[int(len(taken) * 0.99)]


async def bench_stores(name: str, stores: Stores, figures: Figures) -> None:
    users = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
    generations = [make_users(revision) for revision in range(1, 5)]
    batches = USERS // BATCH

    def batch(number: int) -> list[UserRecord]:
        start = number % batches * BATCH
        return generations[number // batches][start : start + BATCH]

    def keys(number: int) -> list[str]:
        return [record.user_key for record in batch(number)]

    async def report(what: str, call: Call, per: int = BATCH, rounds: int = ROUNDS) -> None:
        median, tail = await timed(call, per, rounds)
        figures[f"{name}: {what}"] = median
        print(f"{name:10}{what:44}{median:10.1f}{tail:10.1f}", flush=True)

    await report("save_many, 64 users", lambda n: users.save_many(batch(n)))
    await report("load_many, 64 users", lambda n: users.load_many(keys(n)))
    await report("save_many, 1 user", lambda n: users.save_many([generations[3][n]]), per=1)
    await report("load_many, 1 user", lambda n: users.load_many([generations[3][n].user_key]), per=1)
    for size in (1_682, 20_000):
        items = await stores.items(version=str(size), dimension=DIMENSION)
        vectors = np.random.default_rng(size).standard_normal((size, DIMENSION)).astype(np.float32)
        records = [ItemRecord(item_id=f"item-{n}", vector=v, content_hash="0" * 32) for n, v in enumerate(vectors)]
        started = time.perf_counter()
        await items.upsert_many(records)
        per_item = (time.perf_counter() - started) / size * 1e6
        print(f"{name:10}{f'upsert_many, {size} items':44}{per_item:10.1f}", flush=True)
        for queries in (1, 64):
            search = partial(items.search_many, vectors[:queries], 100)
            await report(f"search_many, {queries} of {size}, k=100", lambda _, s=search: s(), queries, 12)
    await stores.close()


async def bench_all(figures: Figures) -> None:
    print(f"{'store':10}{'call':44}{'median':>10}{'p99':>10}   microseconds a user, item or query")
    await bench_stores("exact", ExactStores(), figures)
    with tempfile.TemporaryDirectory(prefix="streamrec-bench-") as directory:
        await bench_stores("embedded", EmbeddedStores(Path(directory)), figures)
    with tempfile.TemporaryDirectory(prefix="streamrec-bench-") as directory:
        await bench_stores("engine", EmbeddedStores(Path(directory), exact_search_limit=0), figures)
    with tempfile.TemporaryDirectory(prefix="streamrec-bench-") as directory:
        embedded = EmbeddedStores(Path(directory))
        server = StoreServer(embedded, Path(directory) / "sock")
        await server.listen()
        # Client and store share this process and its lock here; in two processes half of it is on another core.
        await bench_stores("socket", SocketStores(Path(directory) / "sock"), figures)
        await server.close()
        await embedded.close()


def bench_handing_over(figures: Figures) -> None:
    """The same users through the bare engine: state as a vector or packed, and three ways to hold the revision rule."""
    print(f"\n{'bare engine, 64 users a call':54}{'write':>10}{'read':>10}   microseconds a user, median")
    records = make_users(1)
    for state in ("list", "numpy", "packed"):
        for rule in ("none", "read first", "filter"):
            if state != "packed" and rule != "none":
                continue
            write, read = handing_over(records, state, rule)
            figures[f"write, state {state}, rule {rule}"] = write
            figures[f"read, state {state}"] = read
            print(f"state as {state + ', revision rule: ' + rule:45}{write:10.1f}{read:10.1f}", flush=True)


def handing_over(records: list[UserRecord], state: str, rule: str) -> tuple[float, float]:
    directory = tempfile.mkdtemp(prefix="streamrec-bench-")
    vectors = {"embedding": EdgeVectorParams(DIMENSION, Distance.Dot)}
    if state != "packed":
        vectors["state"] = EdgeVectorParams(STATE_SIZE, Distance.Dot)
    engine = EdgeShard.create(directory, EdgeConfig(vectors=vectors))

    def point(record: UserRecord, revision: int) -> Point:
        named = {"embedding": record.embedding.tolist()}
        raw = record.body
        if state == "packed":
            raw = record.state.tobytes() + raw
        else:
            named["state"] = record.state.tolist() if state == "list" else record.state
        return Point(record.user_key, named, {"revision": revision, "body": msgspec.to_builtins(raw)})

    writes, reads = [], []
    for revision in (1, 2, 3):
        for start in range(0, USERS, BATCH):
            batch = records[start : start + BATCH]
            started = time.perf_counter()
            condition = None
            if rule == "read first":
                stored = engine.retrieve([record.user_key for record in batch], ["revision"], False)
                assert all((found.payload or {})["revision"] < revision for found in stored)
            if rule == "filter":
                condition = Filter(
                    should=[
                        Filter(
                            must=[
                                HasIdCondition({record.user_key}),
                                FieldCondition("revision", range=RangeFloat(lt=revision)),
                            ]
                        )
                        for record in batch
                    ]
                )
            engine.update(UpdateOperation.upsert_points([point(record, revision) for record in batch], condition))
            writes.append(time.perf_counter() - started)
    for start in range(0, USERS, BATCH):
        started = time.perf_counter()
        for found in engine.retrieve([record.user_key for record in records[start : start + BATCH]], True, True):
            named, payload = found.vector, found.payload
            raw = msgspec.convert(payload["body"], bytes)
            np.array(named["embedding"], np.float32)
            if state == "packed":
                np.frombuffer(raw, np.float32, STATE_SIZE).copy()
            else:
                np.array(named["state"], np.float32)
        reads.append(time.perf_counter() - started)
    engine.close()
    shutil.rmtree(directory)
    return statistics.median(writes) / BATCH * 1e6, statistics.median(reads) / BATCH * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: Figures = {}
    asyncio.run(bench_all(figures))
    bench_handing_over(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
