"""What the worker is measured against: processes that consume an event and produce a message of a list's size, no more.

    python -m tests.benchmarks.passing bare|faust --servers H:P --source T --sink T --size BYTES

`bare` is one aiokafka consumer and one producer; `faust` is stock Faust, an agent that sends on what it gets. Both name
the event in the answer as the worker does, and need no JSON for it: an event's id is at a fixed place.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from typing import Any

import uvloop

from streams.kafka.faust_consumer import FETCH_MAX_WAIT_MS

PREFIX = b'{"type":"rating","event_id":"'
READY = "ready"
# As often as the worker does.
COMMIT_SECONDS = 0.5


def answer(event: bytes, size: int) -> bytes:
    event_id = event[len(PREFIX) : event.index(b'"', len(PREFIX))]
    head = b'{"trigger_event_id":"' + event_id + b'","items":"'
    return head + b"x" * max(0, size - len(head) - 2) + b'"}'


async def bare(servers: str, source: str, sink: str, size: int, stop: asyncio.Event) -> None:
    """As a careful user would write it: a batch is produced whole and awaited; offsets are committed now and then."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=servers,
        group_id=f"{source}.bare",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS,  # the worker's own: the embedded broker waits it out
    )
    consumer.subscribe([source])
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", max_batch_size=262_144)
    await consumer.start()
    await producer.start()
    try:
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=100)
        print(READY, flush=True)
        done: dict[Any, int] = {}
        committed = time.monotonic()
        while not stop.is_set():
            batches = await consumer.getmany(timeout_ms=200, max_records=256)
            for place, records in batches.items():
                pending = [await producer.send(sink, answer(record.value, size), key=record.key) for record in records]
                await asyncio.gather(*pending)
                done[TopicPartition(place.topic, place.partition)] = records[-1].offset + 1
            if done and time.monotonic() - committed > COMMIT_SECONDS:
                await consumer.commit(done)
                done, committed = {}, time.monotonic()
    finally:
        await consumer.stop()
        await producer.stop()


async def faust(servers: str, source: str, sink: str, size: int, stop: asyncio.Event) -> None:
    import faust

    app = faust.App(
        f"{source}.faust",
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
        producer_acks=-1,
        producer_max_batch_size=262_144,
    )
    out = app.topic(sink, value_type=bytes, value_serializer="raw", key_type=bytes, key_serializer="raw")
    first = True

    async def agent(stream: Any) -> None:
        nonlocal first
        async for event in stream.events():
            if first:  # the warming event of the benchmark
                first = False
                print(READY, flush=True)
            await out.send(key=event.message.key, value=answer(event.message.value, size))

    app.agent(app.topic(source, value_type=bytes, value_serializer="raw"))(agent)
    app.finalize()
    await app.start()
    await stop.wait()
    await app.stop()


async def serve(name: str, servers: str, source: str, sink: str, size: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await {"bare": bare, "faust": faust}[name](servers, source, sink, size, stop)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=("bare", "faust"))
    parser.add_argument("--servers", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--sink", required=True)
    parser.add_argument("--size", type=int, required=True)
    args = parser.parse_args()
    uvloop.run(serve(args.name, args.servers, args.source, args.sink, args.size))
    sys.exit(0)


if __name__ == "__main__":
    main()
