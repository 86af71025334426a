"""A worker from start to stop: catch up with what is shared, consume, watch, end cleanly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from models.domain.errors import RecommenderError, StoreError
from streams.agents.considerate import stay
from streams.agents.statistics import SNAPSHOT_KEY
from streams.container import Container, WorkerError
from streams.health import HealthServer
from streams.kafka.admin import TopicError, partition_counts, topic_ids
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.chunks import Chunk
from streams.kafka.faust_app import ChunkApp, add_chunk_agent, build_app, run
from streams.kafka.snapshot_pointer import fetch_parts, load_pointer, save_pointer
from streams.settings import Settings

log = logging.getLogger(__name__)

# Readers and publisher say goodbye to their brokers in that time, side by side, or not at all.
CLOSE_SECONDS = 1.0
# How often lag is read and progress is looked at.
WATCH_SECONDS = 1.0
# A topic that was deleted and made anew is noticed within this time, besides at once where its offsets start again.
INCARNATION_SECONDS = 5.0
# Touches after which the owner of the first partition writes a snapshot: reading 50,000 back takes a few seconds.
SNAPSHOT_TOUCHES = 50_000


class Worker:
    """One worker process. `run` returns when `stop` is set. Raises: RecommenderError when it cannot go on."""

    def __init__(self, settings: Settings, bundle_path: Path, stop: asyncio.Event) -> None:
        self.settings, self.stop = settings, stop
        self.parts = Container(settings, bundle_path)
        self.failure: BaseException | None = None
        self.ready = self.settled = False
        self.app: ChunkApp | None = None
        self.handled: dict[tuple[str, int], int] = {}
        self.items_reader: BroadcastReader
        self.statistics_reader: BroadcastReader
        self.health = HealthServer(
            self.parts.metrics,
            host=settings.metrics_host,
            port=settings.metrics_port,
            readiness={"started": self._check_started, "store": self._check_store},
            liveness=lambda: None if self.failure is None else str(self.failure),
        )

    async def run(self) -> None:
        parts = self.parts
        tasks: list[asyncio.Task[None]] = []
        self.lacking = asyncio.Event()
        readers: list[BroadcastReader] = []
        await self.health.start()
        try:
            await parts.open()
            readers += await self._catch_up()
            tasks = [
                asyncio.create_task(self._guard(name, work))
                for name, work in (
                    ("items reader", self.items_reader.wait_closed),
                    ("statistics reader", self.statistics_reader.wait_closed),
                    ("catalogue", parts.catalogue_feed.run),
                    ("watchdog", self._watch),
                    ("incarnations", self._watch_incarnations),
                    ("snapshots", self._write_snapshots),
                    ("vectors", self._fill_vectors),
                    *(
                        (("models reader", parts.models_reader.wait_closed), ("models", parts.switcher.run))
                        if self.settings.follow_models
                        else ()
                    ),
                )
            ]
            await self._consume()
        finally:
            self.ready = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Nothing is under way any more: connections that are slow to close are left to the end of the process.
            closing = asyncio.gather(
                *(r.stop() for r in (*readers, parts.models_reader)), parts.publisher.stop(), return_exceptions=True
            )
            await asyncio.wait([closing], timeout=CLOSE_SECONDS)
            await parts.close()
            await self.health.stop()
        if self.failure is not None:
            raise WorkerError(f"the worker ended: {self.failure}") from self.failure

    async def _catch_up(self) -> list[BroadcastReader]:
        """Have items and statistics as they are now before the first event is taken."""
        parts, names = self.parts, self.parts.names
        start: dict[int, int] = {}
        incarnation = parts.incarnation[names.item_stats]
        pointer = await load_pointer(parts.connection, names.item_stats, incarnation)
        if pointer is not None:
            snapshot = await fetch_parts(parts.connection, names.item_stats, pointer, SNAPSHOT_KEY)
            if snapshot is not None:
                parts.statistics_feed.restore(snapshot)
                start = {0: pointer.read_from}
                log.info("statistics restored from a snapshot, reading on from %d", pointer.read_from)
        self.items_reader = BroadcastReader(names.items, parts.connection, parts.catalogue_feed.apply)
        self.statistics_reader = BroadcastReader(
            names.item_stats, parts.connection, parts.statistics_feed.apply, start_offsets=start
        )
        readers = [self.items_reader, self.statistics_reader]
        for reader in readers:
            reader.start()
        for reader in readers:
            await reader.caught_up()
        await parts.catalogue_feed.fetch()
        return readers

    async def _consume(self) -> None:
        parts, settings = self.parts, self.settings
        app = self.app = build_app(
            connection=parts.connection.client_options("streamrec-worker"),
            group=settings.consumer_group,
            chunk_size=settings.chunk_size,
            session_timeout_seconds=settings.kafka_session_timeout_seconds,
            heartbeat_interval_seconds=settings.kafka_heartbeat_interval_seconds,
            commit_interval_seconds=settings.kafka_commit_interval_seconds,
            on_assigned=self._assigned,
            on_revoked=self._revoked,
            commit_note=lambda topic: parts.incarnation.get(topic, ""),
            on_failure=self._fail,
        )
        add_chunk_agent(app, [parts.names.events, parts.names.requests], self._events)
        add_chunk_agent(app, [parts.names.items], parts.owner.handle)
        bundle = parts.serving.bundle
        stay()
        log.info("worker consumes", extra={"model": bundle.version, "provider": bundle.providers[0]})
        await run(app, self.stop)

    async def _events(self, chunk: Chunk) -> None:
        place = (chunk.topic, chunk.partition)
        if chunk.first_offset <= self.handled.get(place, -1):
            # Offsets went back: either records are delivered again or the topic is another one under the same name.
            await self._check_incarnations()
        if not self.settled:
            await self.parts.catalogue_feed.settled()
            self.settled = True
        await self.parts.road.handle(chunk)
        self.handled[place] = chunk.last_offset

    # rebalances ------------------------------------------------------------------------------------------------------

    async def _assigned(self, partitions: set[Any]) -> None:
        """Whoever had these partitions before has shared all it counted: read it before the first event."""
        parts = self.parts
        parts.metrics.count_rebalance()
        parts.assigned = {(tp.topic, tp.partition) for tp in partitions}
        await self.statistics_reader.barrier()
        await self._check_incarnations()
        self.lacking.set()
        self.ready = True

    async def _revoked(self, partitions: set[Any]) -> None:
        parts = self.parts
        parts.assigned = set()
        parts.users.drop()
        for tp in partitions:
            self.handled.pop((tp.topic, tp.partition), None)
            parts.metrics.drop_partition(tp.topic, tp.partition)

    # watching --------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            log.error("the worker ends: %s", error, exc_info=not isinstance(error, RecommenderError))
        self.stop.set()

    async def _guard(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(WorkerError(f"{name}: {error}"))

    async def _watch(self) -> None:
        """End a worker of which a partition stands still; waiting for a service is no standing still."""
        parts = self.parts
        counted: tuple[int, int, int] = (0, 0, 0)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            counted = self._count_text_cache(*counted)
            parts.serving.watch()
            for progress in self.app.progress() if self.app is not None else []:
                parts.metrics.set_lag(progress.topic, progress.partition, progress.lag or 0)
                parts.metrics.set_paused(progress.topic, progress.partition, parts.waiting)
                limit = self.settings.partition_stall_seconds
                if progress.stalled_seconds > limit and not parts.waiting:
                    raise WorkerError(
                        f"{progress.topic}/{progress.partition} made no progress for {progress.stalled_seconds:.0f} s"
                    )

    def _count_text_cache(self, encoder_id: int, hits: int, misses: int) -> tuple[int, int, int]:
        """Add what came since; takes and returns which encoder it was, and its counts."""
        encoder = self.parts.serving.bundle.text_encoder
        if id(encoder) != encoder_id:
            hits = misses = 0  # another version's, which may have another one
        self.parts.metrics.count_cache("text", encoder.cache_hits - hits, encoder.cache_misses - misses)
        return id(encoder), encoder.cache_hits, encoder.cache_misses

    async def _fill_vectors(self) -> None:
        """After each assignment: what the served version's collection lacks although its messages were consumed."""
        feed = self.parts.catalogue_feed
        while True:
            await self.lacking.wait()
            self.lacking.clear()
            missing = feed.missing + 1
            while 0 < feed.missing < missing:
                missing = feed.missing
                await asyncio.sleep(WATCH_SECONDS)  # the consumer encodes what it is handed: it is left to it
            await self.parts.switcher.fill_served()

    async def _watch_incarnations(self) -> None:
        while True:
            await asyncio.sleep(INCARNATION_SECONDS)
            try:
                await self._check_incarnations()
            except (TopicError, KafkaError, OSError, TimeoutError) as error:
                log.warning("topics cannot be looked at: %s", error)

    async def _check_incarnations(self) -> None:
        """Raises: WorkerError when a topic is another one now, TopicError when it is gone or nobody answers."""
        known, counts = self.parts.incarnation, self.parts.partition_counts
        now = await topic_ids(self.parts.connection, list(known))
        changed = [topic for topic in known if now[topic] != known[topic]]
        if changed:
            raise WorkerError(f"{', '.join(changed)} was deleted and made anew; start the worker again")
        sizes = await partition_counts(self.parts.connection, list(known))
        changed = [topic for topic in known if sizes.get(topic) != counts[topic]]
        if changed:
            raise WorkerError(f"{', '.join(changed)} has another number of partitions now; start the worker again")

    async def _write_snapshots(self) -> None:
        parts = self.parts
        topic = parts.names.item_stats
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if (parts.names.events, 0) in parts.assigned and (
                parts.statistics_feed.applied_since_snapshot >= SNAPSHOT_TOUCHES
            ):
                pointer = await parts.statistics_feed.write_snapshot(
                    self.statistics_reader.position(), parts.incarnation[topic]
                )
                if pointer is not None:
                    await save_pointer(parts.connection, topic, pointer)

    # readiness -------------------------------------------------------------------------------------------------------

    async def _check_started(self) -> str | None:
        return None if self.ready else "catching up with items and statistics, or waiting for partitions"

    async def _check_store(self) -> str | None:
        try:
            await self.parts.stores.ping()
        except StoreError as error:
            return str(error)
        return None
