"""The outside of a contender: events that carry their own Kafka timestamp, and a consumer of the answers.

    python -m tests.benchmarks.outside --servers H:P --topic T --count N     (the consumer, a process of its own)

An event's id ends with `@` and its Kafka timestamp in milliseconds; an answer names it as `trigger_event_id`, so that
the consumer needs nothing from the publisher.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.kafka.publisher import Message, Publisher

ROOT = Path(__file__).resolve().parents[2]
READY = "ready"
LIMIT_SECONDS = 180.0
PUBLISH_BATCH = 500
TICK_SECONDS = 0.005
# The embedded broker answers a fetch that found nothing only when this time is over; Apache Kafka answers at once.
FETCH_WAIT_MS = 10

Event = Callable[[int, int], tuple[bytes, bytes]]
"""(position, timestamp in ms) -> key and value of a message."""


class _Head(msgspec.Struct):
    trigger_event_id: str


async def consume(servers: str, topic: str, count: int) -> dict[str, Any]:
    """Everything that arrives in a topic with one partition from now on. Prints READY when it reads."""
    consumer: AIOKafkaConsumer[Any, Any] = AIOKafkaConsumer(
        bootstrap_servers=servers, fetch_max_wait_ms=FETCH_WAIT_MS, max_partition_fetch_bytes=4 << 20
    )
    await consumer.start()
    try:
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        consumer.seek(place, 0)
        # The embedded broker's answer to "where is the end" may stand before it: what is there is read away instead.
        while await consumer.getmany(timeout_ms=500):
            pass
        print(READY, flush=True)
        decode = msgspec.json.Decoder(_Head).decode
        latencies: list[float] = []
        size, last = 0, 0.0
        async with asyncio.timeout(LIMIT_SECONDS):
            while len(latencies) < count:
                batches = await consumer.getmany(timeout_ms=200)
                now = time.time()
                for records in batches.values():
                    last = now
                    for record in records:
                        sent_ms = int(decode(record.value).trigger_event_id.rpartition("@")[2])
                        latencies.append(now - sent_ms / 1_000)
                        size += len(record.value)
    finally:
        await consumer.stop()
    p50, p99, largest = np.percentile(latencies, [50, 99, 100])
    return {
        "lists": len(latencies),
        "last_arrival": last,
        "p50_ms": p50 * 1e3,
        "p99_ms": p99 * 1e3,
        "max_ms": largest * 1e3,
        "bytes_per_list": size / len(latencies),
    }


class Consumer:
    """The consumer as a child process."""

    def __init__(self, servers: str, topic: str, count: int) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.outside", f"--servers={servers}", f"--topic={topic}"]
        self._process = subprocess.Popen([*command, f"--count={count}"], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    async def ready(self) -> None:
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        if line.strip() != READY:
            raise RuntimeError("the outside consumer ended")

    async def result(self) -> dict[str, Any]:
        out, _ = await asyncio.to_thread(self._process.communicate)
        if self._process.returncode != 0:
            raise RuntimeError("the outside consumer did not get every list")
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


async def publish(publisher: Publisher, topic: str, make: Event, positions: Sequence[int], rate: float) -> float:
    """Publish events at a rate, or as fast as they are accepted (0). Returns: when the first was sent, Unix seconds."""
    began, clock, done = time.time(), time.monotonic(), 0
    while done < len(positions):
        due = int((time.monotonic() - clock) * rate) + 1 if rate else len(positions)
        size = min(due, len(positions), done + PUBLISH_BATCH) - done
        if size <= 0:
            await asyncio.sleep(TICK_SECONDS)
            continue
        now_ms = time.time_ns() // 1_000_000
        messages = []
        for position in positions[done : done + size]:
            key, value = make(position, now_ms)
            messages.append(Message(topic, key, value, timestamp_ms=now_ms))
        await publisher.send_many(messages)
        done += size
    return began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(uvloop.run(consume(args.servers, args.topic, args.count))))


if __name__ == "__main__":
    main()
