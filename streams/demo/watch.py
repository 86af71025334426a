"""Publishing the ratings at a rate, and what an outside consumer and the worker's own counters say about it.

Latency runs from an event's Kafka timestamp to the arrival of its list here. Quality is the worker's
(`streamrec_online_*`); decayed popularity beside it is computed here over the same events.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from models.domain.evaluation import DecayedPopularity, hit, ndcg
from models.domain.events import Recommendation
from streams.demo.data import DemoError, Rating
from streams.demo.stand import POLL_SECONDS, Samples, Stand
from streams.kafka.publisher import Message, Publisher
from streams.topics import LARGEST_MESSAGE_BYTES

# Events without an answer at any moment: two of the worker's chunks, so that it always has one to take while the queue
# before it, and with it the latency, stays bounded on a machine that is slower than the rate.
IN_FLIGHT = 512
# Events in one call of the publisher: a produce request costs as much as some dozens of events.
PUBLISH_BATCH = 128
TICK_SECONDS = 0.005
# Pauses of the whole machine are caught up with at the rate, not with one burst.
BURST_SECONDS = 0.05
# The embedded broker answers a fetch that found nothing only when this time is over, so half of it is added to every
# latency (measured: 14 ms with 50, 5 ms with 20); Apache Kafka answers at once.
FETCH_WAIT_MS = 10
# No answer for that long, with events waiting, means that something is broken.
SILENCE_SECONDS = 60.0
# How far back the live figures look.
WINDOW_SECONDS = 5.0


class _Head(msgspec.Struct):
    trigger_event_id: str | None = None


class Quality(NamedTuple):
    """Sums over scored events; the difference of two of them is the quality in between."""

    scored: float = 0.0
    hits: float = 0.0
    gains: float = 0.0

    def __sub__(self, other: Quality) -> Quality:
        return Quality(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def hr(self) -> float:
        return self.hits / self.scored if self.scored else 0.0

    @property
    def ndcg(self) -> float:
        return self.gains / self.scored if self.scored else 0.0


class Qualities(NamedTuple):
    asked: Quality = Quality()
    last_published: Quality = Quality()
    popularity: Quality = Quality()

    def since(self, other: Qualities) -> Qualities:
        return Qualities(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def worker_quality(samples: Samples, shown: str) -> Quality:
    return Quality(
        *(samples.total(f"streamrec_online_{name}_total", list=shown) for name in ("scored_events", "hits", "ndcg_sum"))
    )


class Baseline:
    """Decayed popularity asked before every event, as the worker is."""

    def __init__(self) -> None:
        self._popularity = DecayedPopularity()
        self.quality = Quality()

    def see(self, rating: Rating) -> None:
        place = self._popularity.place(rating.user_id, rating.item_id)
        scored, hits, gains = self.quality
        self.quality = Quality(scored + 1, hits + hit(place), gains + ndcg(place))
        self._popularity.update(rating.user_id, rating.item_id)


class Watcher:
    """An outside consumer of `recommendations` and `dead-letters`: which events are answered, and how long it took.

    Args:
        followed: the user whose newest list is kept whole.
    """

    def __init__(self, stand: Stand, followed: str) -> None:
        self._topics = (stand.names.recommendations, stand.names.dead_letters)
        self._partitions = stand.partitions
        self._followed = followed.encode()
        self._waiting: dict[str, float] = {}
        self._moved = asyncio.Event()
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(_Head).decode
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._consumer: AIOKafkaConsumer[Any, Any] = AIOKafkaConsumer(
            **stand.connection.client_options("streamrec-demo"),
            group_id=None,
            enable_auto_commit=False,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=LARGEST_MESSAGE_BYTES,
        )
        self.lists = 0
        self.dead_letters = 0
        self.latencies_seconds: list[float] = []
        self.recent: deque[tuple[float, float]] = deque()
        """(arrival, latency) of the last seconds."""
        self.last_arrival = time.time()
        self.newest: Recommendation | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except KafkaError as error:
            await self._consumer.stop()
            raise DemoError(f"the broker cannot be read from: {error!r}") from error
        places = [TopicPartition(topic, number) for topic in self._topics for number in range(self._partitions)]
        self._consumer.assign(places)
        for place in places:  # the topics are new: the start is the end
            self._consumer.seek(place, 0)
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._consumer.stop()

    @property
    def unanswered(self) -> int:
        """A dead letter is an answer too."""
        return max(0, len(self._waiting) - self.dead_letters)

    def expect(self, event_id: str, timestamp_seconds: float) -> None:
        self._waiting[event_id] = timestamp_seconds

    async def moved(self) -> None:
        """Returns when something has arrived since the last call. Raises: DemoError when nothing does for long."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._moved.wait()
        except TimeoutError as error:
            raise DemoError(
                f"{self.unanswered} events are without a list, and none came for {SILENCE_SECONDS:.0f} s"
            ) from error
        self._moved.clear()
        if self._failure is not None:
            raise DemoError(f"the lists cannot be read any more: {self._failure!r}") from self._failure

    async def _read(self) -> None:
        try:
            while True:
                batches = await self._consumer.getmany(timeout_ms=200)
                now = time.time()
                for place, records in batches.items():
                    if place.topic == self._topics[1]:
                        self.dead_letters += len(records)
                    else:
                        self._lists(records, now)
                if batches:
                    self._moved.set()
        except Exception as error:  # told to who waits for the lists
            self._failure = error
            self._moved.set()

    def _lists(self, records: Sequence[Any], now: float) -> None:
        self.lists += len(records)
        self.last_arrival = now
        for record in records:
            sent = self._waiting.pop(self._decode(record.value).trigger_event_id, None)
            if sent is not None:
                self.latencies_seconds.append(now - sent)
                self.recent.append((now, now - sent))
        followed = [record.value for record in records if record.key == self._followed]
        if followed:
            self.newest = msgspec.json.decode(followed[-1], type=Recommendation)
        while self.recent and self.recent[0][0] < now - WINDOW_SECONDS:
            self.recent.popleft()


class Live(NamedTuple):
    """How things stand, for who looks at it."""

    published: int
    answered: int
    events_per_second: float
    p50_seconds: float
    p99_seconds: float
    dead_letters: int
    quality: Qualities
    newest: Recommendation | None


class Replay:
    """Ratings through Kafka, keyed by user, in time order; one list is waited for after each.

    Args:
        rate: events a second; 0 = as fast as they are answered.
        in_flight: events without an answer at any moment.
    """

    def __init__(
        self, stand: Stand, watcher: Watcher, publisher: Publisher, *, rate: float, in_flight: int = IN_FLIGHT
    ) -> None:
        self.stand, self.watcher, self.publisher = stand, watcher, publisher
        self.rate, self.in_flight = rate, in_flight
        self.baseline = Baseline()
        self.published = 0
        self.started = 0.0
        self.samples = Samples("")

    async def run(self, ratings: Sequence[Rating]) -> None:
        """Publish these too, and return when all that was published is answered and counted. Raises: DemoError."""
        self.started = self.started or time.time()
        allowance, topped_up, position = 0.0, time.monotonic(), 0
        while position < len(ratings):
            room = min(PUBLISH_BATCH, self.in_flight - self.watcher.unanswered, len(ratings) - position)
            if room <= 0:
                await self.watcher.moved()
                continue
            if self.rate:
                now = time.monotonic()
                allowance = min(allowance + (now - topped_up) * self.rate, max(1.0, self.rate * BURST_SECONDS))
                topped_up = now
                room = min(room, int(allowance))
                if room == 0:
                    await asyncio.sleep(TICK_SECONDS)
                    continue
                allowance -= room
            await self._publish(ratings[position : position + room])
            position += room
        while self.watcher.unanswered:
            await self.watcher.moved()
        await self._counted()

    async def _publish(self, ratings: Sequence[Rating]) -> None:
        # Whole milliseconds, as Kafka keeps them.
        now_ms = time.time_ns() // 1_000_000
        messages = []
        for rating in ratings:
            self.watcher.expect(rating.event_id, now_ms / 1_000)
            messages.append(
                Message(self.stand.names.events, rating.user_id.encode(), rating.encode(), timestamp_ms=now_ms)
            )
        await self.publisher.send_many(messages)
        self.published += len(ratings)
        for rating in ratings:
            self.baseline.see(rating)

    async def _counted(self) -> None:
        """The worker counts a chunk after it has published it: wait until it has."""
        deadline = time.monotonic() + SILENCE_SECONDS
        while await self.refresh() < self.published and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    async def refresh(self) -> int:
        """Ask the worker for its counters. Returns: events it has counted."""
        self.samples = await self.stand.samples()
        return int(self.samples.total("streamrec_events_total"))

    @property
    def qualities(self) -> Qualities:
        """As of the last `refresh`; popularity as of now."""
        asked, last = worker_quality(self.samples, "asked"), worker_quality(self.samples, "last_published")
        return Qualities(asked, last, self.baseline.quality)

    @property
    def seconds(self) -> float:
        """From the first event to the last list."""
        return max(self.watcher.last_arrival - self.started, 1e-9) if self.started else 0.0

    @property
    def live(self) -> Live:
        watcher, now = self.watcher, time.time()
        recent = [(at, latency) for at, latency in watcher.recent if at > now - WINDOW_SECONDS]
        p50, p99 = percentiles([latency for _, latency in recent])
        span = min(WINDOW_SECONDS, max(now - self.started, 0.1)) if self.started else WINDOW_SECONDS
        return Live(
            self.published,
            watcher.lists,
            len(recent) / span,
            p50,
            p99,
            watcher.dead_letters,
            self.qualities,
            watcher.newest,
        )


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile; zeros of nothing."""
    if not seconds:
        return 0.0, 0.0
    p50, p99 = np.percentile(seconds, [50, 99])
    return float(p50), float(p99)
