"""The composition root: the only file that knows which class is used. Settings in, the parts of a worker out."""

from __future__ import annotations

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.domain.batch import Incoming, PipelineOptions
from models.domain.catalogue import Catalogue
from models.domain.deltas import Ledger
from models.domain.errors import RecommenderError
from models.domain.events import EventContract, Interaction
from models.domain.features import FEATURES
from models.domain.pipeline import Pipeline, untimed
from models.domain.ports import F32, ItemIndex, Stores
from models.encoders.bundle import Bundle, load_bundle
from streams.agents.catalogue import CatalogueFeed
from streams.agents.clock import StreamClock
from streams.agents.events import EventRoad
from streams.agents.items import ItemOwner
from streams.agents.retry import Retry
from streams.agents.statistics import StatisticsFeed
from streams.agents.users import UserStates
from streams.kafka.admin import TopicError, describe_topics, topic_ids
from streams.kafka.connection import KafkaConnection
from streams.kafka.publisher import Publisher
from streams.metrics import Metrics
from streams.settings import Settings
from streams.stores.open import open_stores
from streams.topics import TopicNames, topic_specs

# Up to here one matrix product over all items is cheaper than asking the index: 64 users on 50,000 items take 13 ms,
# about what a round trip with 64 searches takes.
EXACT_SEARCH_ITEMS = 50_000
# A service that is away is waited for this long by the publisher too; then the worker ends and its supervisor decides.
PUBLISH_DEADLINE_SECONDS = 300.0


def pipeline_options(settings: Settings, contract: EventContract) -> PipelineOptions:
    return PipelineOptions(
        strengths=contract.strengths,
        repeatable_kinds=frozenset(settings.repeatable_kinds),
        list_length=settings.list_length,
        allowed_lateness_ms=int(settings.allowed_lateness_seconds * 1_000),
        max_future_ms=int(settings.max_future_seconds * 1_000),
        asked_share=settings.asked_share,
        value_scale=settings.value_scale,
        feedback=settings.feedback,
        candidates_share=settings.candidates_share,
    )


def make_stores(settings: Settings) -> Stores:
    return open_stores(
        settings.qdrant_url,
        settings.data_dir,
        collection_prefix=settings.collection_prefix,
        api_key=settings.qdrant_api_key.get_secret_value(),
        grpc_port=settings.qdrant_grpc_port,
        prefer_grpc=settings.qdrant_prefer_grpc,
    )


def read_bundle(settings: Settings, path: Path) -> Bundle:
    return load_bundle(path, settings.execution_providers, settings.onnx_threads, features=FEATURES)


def make_pipeline(bundle: Bundle, options: PipelineOptions, metrics: Metrics | None = None) -> Pipeline:
    return Pipeline(
        encoder=bundle.user_encoder,
        ranker=bundle.ranker,
        model_version=bundle.version,
        options=options,
        catalogue=Catalogue(bundle.user_encoder.dimension, placeholder=bundle.item_encoder.placeholder),
        stage=untimed if metrics is None else metrics.stage,
        reader=bundle.review_value,
    )


def warm_up(bundle: Bundle, options: PipelineOptions) -> None:
    """Load or compile everything the first event would wait for: ONNX sessions and the compiled passes."""
    bundle.warm_up()
    bundle.text_encoder.encode_many(["warm up"])
    pipeline = make_pipeline(bundle, options)
    vector = np.zeros((1, bundle.user_encoder.dimension), np.float32)
    vector[:, :2] = 0.7
    pipeline.catalogue.set_vectors([pipeline.catalogue.intern("a")], vector)
    events = [
        Interaction(type="view", event_id=f"{n}", user_id="u", item_id="abcd"[n % 4], event_time_ms=n) for n in range(8)
    ]
    states = pipeline.run([Incoming(e, "warm", n) for n, e in enumerate(events[:4])], {}, generated_at_ms=int).states
    pipeline.run([Incoming(e, "warm", 4 + n) for n, e in enumerate(events[4:])], states, generated_at_ms=int)


class IndexSearch:
    """The item index as a candidate source for catalogues too large for an exact pass.

    Called from the computing thread; the search itself runs on the event loop, which is free meanwhile.
    """

    def __init__(self, index: ItemIndex, catalogue: Catalogue, loop: asyncio.AbstractEventLoop) -> None:
        self._index, self._catalogue, self._loop = index, catalogue, loop

    def nearest(
        self,
        users: F32,
        excluded: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        depth: int,
    ) -> npt.NDArray[np.int32]:
        # Asked for more than is needed, since what the user has seen is taken out here: a filter of hundreds of ids a
        # query costs an approximate index more than the surplus.
        asked = depth + min(int((ends - starts).max(initial=0)), 4 * depth)
        future = asyncio.run_coroutine_threadsafe(self._index.search_many(users, asked), self._loop)
        out = np.full((len(users), depth), -1, np.int32)
        for row, found in enumerate(future.result()):
            seen = set(excluded[starts[row] : ends[row]].tolist())
            known = (self._catalogue.index.get(item_id, -1) for item_id, _ in found)
            kept = [at for at in known if at >= 0 and at not in seen and self._catalogue.available[at]][:depth]
            out[row, : len(kept)] = kept
        out[~np.any(users[:, :-1] != 0.0, axis=1)] = -1
        return out


class Container:
    """The parts of one worker, made by `open`; `close` ends what is this process's own, the worker its connections."""

    def __init__(self, settings: Settings, bundle_path: Path) -> None:
        self.settings, self.bundle_path = settings, bundle_path
        self.metrics = Metrics()
        self.names = TopicNames(settings.topic_prefix)
        self.specs = topic_specs(
            self.names, partitions=settings.topic_partitions, replication_factor=settings.topic_replication_factor
        )
        self.connection = KafkaConnection.from_settings(settings)
        self.contract = EventContract(settings.interaction_strengths)
        self.clock = StreamClock(lambda: time.time_ns() // 1_000_000)
        self.retry = Retry(self.metrics.count_retry)
        self.publisher_waiting = 0.0
        self.publisher = Publisher(
            self.connection, deadline_seconds=PUBLISH_DEADLINE_SECONDS, on_retry=self._publisher_retries
        )
        # Two threads: what plays events must not wait for the text of a hundred new items.
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="pipeline")
        self.text_executor = ThreadPoolExecutor(1, thread_name_prefix="text")
        self.stores = make_stores(settings)
        self.lock = asyncio.Lock()
        self.incarnation: dict[str, str] = {}
        self.partition_counts: dict[str, int] = {}
        self.worker = uuid.uuid4().hex
        self.bundle: Bundle
        self.road: EventRoad
        self.owner: ItemOwner
        self.users: UserStates
        self.catalogue_feed: CatalogueFeed
        self.statistics_feed: StatisticsFeed
        self.assigned: set[tuple[str, int]] = set()

    async def open(self) -> None:
        """Raises: BundleError, StoreError, TopicError, PublishError."""
        settings, metrics = self.settings, self.metrics
        loop = asyncio.get_running_loop()
        options = pipeline_options(settings, self.contract)
        self.bundle = await loop.run_in_executor(self.executor, read_bundle, settings, self.bundle_path)
        await loop.run_in_executor(self.executor, warm_up, self.bundle, options)
        metrics.set_model(self.bundle.version)
        metrics.set_provider(self.bundle.providers[0])
        encoder = self.bundle.user_encoder
        user_store = await self.retry.call(
            "open_users", lambda: self.stores.users(state_size=encoder.state_size, dimension=encoder.dimension)
        )
        index = await self.retry.call(
            "open_items", lambda: self.stores.items(version=self.bundle.version, dimension=encoder.dimension)
        )
        await self.check_topics()
        await self.publisher.start()
        pipeline = make_pipeline(self.bundle, options, metrics)
        if await index.count() > EXACT_SEARCH_ITEMS:
            pipeline.index = IndexSearch(index, pipeline.catalogue, loop)
        ledger = Ledger(pipeline.statistics, pipeline.catalogue, pipeline.weights, self.worker)
        self.catalogue_feed = CatalogueFeed(self.contract, pipeline.catalogue, index, self.retry, self.lock)
        self.statistics_feed = StatisticsFeed(ledger, self.names.item_stats, self.publisher, metrics, self.lock)
        self.users = UserStates(
            user_store,
            pipeline.catalogue,
            self.retry,
            settings.user_cache_size,
            lambda hits, misses: metrics.count_cache("user", hits, misses),
        )
        dead_letter_bytes = next(s.max_message_bytes for s in self.specs if s.name == self.names.dead_letters)
        self.road = EventRoad(
            names=self.names,
            contract=self.contract,
            pipeline=pipeline,
            ledger=ledger,
            users=self.users,
            text_encoder=self.bundle.text_encoder,
            publisher=self.publisher,
            metrics=metrics,
            clock=self.clock,
            executor=self.executor,
            lock=self.lock,
            incarnation=self.incarnation,
            partitions=self.partition_counts.__getitem__,
            dead_letter_bytes=dead_letter_bytes,
        )
        self.owner = ItemOwner(
            contract=self.contract,
            index=index,
            text_encoder=self.bundle.text_encoder,
            item_encoder=self.bundle.item_encoder,
            publisher=self.publisher,
            metrics=metrics,
            retry=self.retry,
            executor=self.text_executor,
            dead_letters=self.names.dead_letters,
            dead_letter_bytes=dead_letter_bytes,
            on_vectors=self.catalogue_feed.look,
        )

    async def check_topics(self) -> None:
        """Read partition counts and incarnations. Raises: TopicError naming what is missing or wrong."""
        report = await describe_topics(self.connection, self.specs)
        if report.missing:
            raise TopicError(
                f"topics {', '.join(report.missing)} do not exist: run `streamrec topics create`",
                topic=report.missing[0],
            )
        counts = {topic: report.partitions[topic] for topic in (self.names.events, self.names.requests)}
        if len(set(counts.values())) > 1:
            # A user's events and requests must reach the same worker; Kafka assigns topics of equal size alike.
            raise TopicError(
                f"{self.names.events} and {self.names.requests} must have the same number of partitions, not {counts}",
                topic=self.names.requests,
            )
        self.partition_counts.update(report.partitions)
        self.incarnation.update(
            await topic_ids(
                self.connection, [self.names.events, self.names.requests, self.names.items, self.names.item_stats]
            )
        )

    async def close(self) -> None:
        await self.stores.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.text_executor.shutdown(wait=True, cancel_futures=True)

    @property
    def waiting(self) -> bool:
        """Whether a service is away and being waited for: a declared pause, no stall."""
        return self.retry.waiting or time.monotonic() - self.publisher_waiting < 2 * PUBLISH_PAUSE_SECONDS

    def _publisher_retries(self, topic: str, error: BaseException) -> None:
        self.publisher_waiting = time.monotonic()
        self.metrics.count_retry("publish")


# The publisher's longest attempt and pause together; while it retries, it says so at least this often.
PUBLISH_PAUSE_SECONDS = 16.0


class WorkerError(RecommenderError):
    """A worker that cannot go on; its supervisor should start it again."""
