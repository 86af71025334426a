"""Consuming through the chunk consumer beside a bare aiokafka loop and a stock Faust pass-through: one broker, one run.

    python -m tests.benchmarks.bench_chunks [--events 300000] [--json FILE]

Each contender is a process of its own. Throughput: a preloaded topic, no-op handlers, from the first record to the
last; stock Faust gets a tenth of the events. Latency: 1,000 events/s from another process, from the record's timestamp
to the handler.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4
# Sized like one of our events as JSON.
VALUE = b"x" * 130
LATENCY_EVENTS = 10_000
LATENCY_EVENTS_PER_SECOND = 1_000
LIMIT_SECONDS = 120.0
READY = "ready"


class Meter:
    """Counts records until all are there; wall and CPU time run from the first one."""

    def __init__(self, total: int, latency: bool) -> None:
        self.total, self.count, self.latency = total, 0, latency
        self.started = self.cpu = 0.0
        self.latencies_ms: list[float] = []
        self.result: dict[str, float] = {}
        self.done = asyncio.Event()

    def see(self, records: Sequence[Any]) -> None:
        if self.done.is_set():
            return
        if not self.count:
            self.started, self.cpu = time.perf_counter(), time.process_time()
            print(READY, flush=True)
        self.count += len(records)
        if self.latency:
            now = time.time() * 1000
            self.latencies_ms += [now - record.timestamp for record in records]
        if self.count >= self.total:
            wall, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
            self.result = {"events_per_second": self.count / wall, "events_per_cpu_second": self.count / cpu}
            if self.latency:
                late = sorted(self.latencies_ms[self.count // 10 :])  # without the first second
                self.result = {
                    "p50_ms": late[len(late) // 2],
                    "p99_ms": late[len(late) * 99 // 100],
                    "cpu_share": cpu / wall,
                }
            self.done.set()


async def bare(servers: str, topic: str, group: str, meter: Meter) -> None:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=servers, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        while not meter.done.is_set():
            for records in (await consumer.getmany(timeout_ms=200, max_records=256)).values():
                meter.see(records)
    finally:
        await consumer.stop()


async def chunks(servers: str, topic: str, group: str, meter: Meter) -> None:
    from streams.kafka.chunks import Chunk
    from streams.kafka.faust_app import add_chunk_agent, build_app, run

    async def handler(chunk: Chunk) -> None:
        meter.see(chunk.records)

    app = build_app(connection={"bootstrap_servers": servers}, group=group)
    add_chunk_agent(app, [topic], handler)
    await run(app, meter.done)


async def stock(servers: str, topic: str, group: str, meter: Meter) -> None:
    import faust

    class Stamp:
        def __init__(self, timestamp: float) -> None:
            self.timestamp = timestamp

    app = faust.App(
        group,
        broker=f"kafka://{servers}",
        store="memory://",
        datadir=tempfile.mkdtemp(),
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.5,
        consumer_auto_offset_reset="earliest",
    )

    async def agent(stream: Any) -> None:
        async for event in stream.events():
            meter.see([Stamp(event.message.timestamp * 1000)])

    app.agent(app.topic(topic, value_type=bytes, value_serializer="raw"))(agent)
    app.finalize()
    await app.start()
    await meter.done.wait()
    await app.stop()


CONTENDERS: dict[str, Callable[[str, str, str, Meter], Any]] = {
    "aiokafka getmany loop": bare,
    "chunk consumer": chunks,
    "stock Faust": stock,
}


async def preload(servers: str, topic: str, events: int) -> None:
    from aiokafka import AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=20, max_batch_size=262_144)
    await producer.start()
    for n in range(events):
        await producer.send(topic, VALUE, partition=n % PARTITIONS)
    await producer.stop()


async def pace(servers: str, topic: str) -> None:
    """Publish LATENCY_EVENTS in groups every 10 ms."""
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    began, every = time.perf_counter(), LATENCY_EVENTS_PER_SECOND // 100
    for n in range(LATENCY_EVENTS):
        await producer.send(topic, VALUE, partition=n % PARTITIONS)
        if n % every == every - 1:
            await asyncio.sleep(max(0.0, began + n / LATENCY_EVENTS_PER_SECOND - time.perf_counter()))
    await producer.stop()


def child(name: str, servers: str, topic: str, total: int, latency: bool) -> None:
    async def main() -> dict[str, float]:
        meter = Meter(total, latency)
        group = f"bench-{os.urandom(4).hex()}"
        await asyncio.wait_for(CONTENDERS[name](servers, topic, group, meter), LIMIT_SECONDS)
        return meter.result

    import uvloop

    print(json.dumps(uvloop.run(main())))


def measure(name: str, servers: str, topic: str, total: int, latency: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_chunks", "--child", name, "--servers", servers]
    command += ["--topic", topic, "--events", str(total), *(["--latency"] if latency else [])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != READY:  # joined, and the first record seen
        assert process.poll() is None, f"{name} ended"
    if latency:
        asyncio.run(pace(servers, topic))
    out, _ = process.communicate(timeout=LIMIT_SECONDS + 20)
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--json", default="")
    parser.add_argument("--servers", default="", help="a broker that runs; otherwise one is started")
    parser.add_argument("--child", default="")
    parser.add_argument("--topic", default="")
    parser.add_argument("--latency", action="store_true")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.servers, args.topic, args.events, args.latency)
        return

    from tests.services.kafka import KafkaBroker, missing_tools

    missing = None if args.servers else missing_tools()
    if missing:
        sys.exit(missing)
    broker = None if args.servers else KafkaBroker(Path(tempfile.mkdtemp())).start()
    try:
        servers = args.servers or (broker.bootstrap_servers if broker else "")
        run_id = os.urandom(3).hex()
        topic = f"bench-{run_id}"
        asyncio.run(preload(servers, topic, args.events))
        table: dict[str, dict[str, float]] = {}
        for name in CONTENDERS:
            total = args.events // 10 if name == "stock Faust" else args.events
            table[name] = measure(name, servers, topic, total, latency=False)
            paced = f"bench-{run_id}-{len(table)}"
            asyncio.run(preload(servers, paced, PARTITIONS))
            table[name] |= measure(name, servers, paced, LATENCY_EVENTS + PARTITIONS, latency=True)
    finally:
        if broker:
            broker.stop()
    reference = table["aiokafka getmany loop"]["events_per_cpu_second"]
    print(f"{'':24}{'events/s':>12}{'per CPU-s':>12}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'CPU at 1k/s':>13}")
    for name, row in table.items():
        ratio = row["events_per_cpu_second"] / reference
        print(
            f"{name:24}{row['events_per_second']:12,.0f}{row['events_per_cpu_second']:12,.0f}{ratio:8.3f}"
            f"{row['p50_ms']:9.1f}{row['p99_ms']:9.1f}{row['cpu_share']:13.1%}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
