"""The composition root: the only file that knows which class is used. Settings in, the parts of a worker out."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from models.domain.batch import Incoming, PipelineOptions
from models.domain.catalogue import Catalogue
from models.domain.deltas import Ledger
from models.domain.errors import BundleError, IncompatibleBundleError, RecommenderError, UserStoreError
from models.domain.events import EventContract, Interaction
from models.domain.features import BASE_COUNT, FEATURES
from models.domain.pipeline import Pipeline, untimed
from models.domain.ports import Stores, UserStore
from models.domain.releases import Release
from models.encoders.bundle import Bundle, load_bundle
from models.encoders.manifest import Dimensions, items_version, read_manifest
from streams.agents.background import Background
from streams.agents.catalogue import CatalogueFeed
from streams.agents.clock import StreamClock
from streams.agents.considerate import give_memory_back, yield_to_events
from streams.agents.events import EventRoad
from streams.agents.filling import Filler
from streams.agents.index_search import IndexSearch
from streams.agents.items import Filling, ItemOwner
from streams.agents.releases import ReleaseFeed
from streams.agents.retry import Retry
from streams.agents.serving import Model, Serving
from streams.agents.statistics import StatisticsFeed
from streams.agents.switching import Switcher, is_final
from streams.agents.users import UserStates
from streams.kafka.admin import TopicError, require_topics, topic_ids
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.connection import KafkaConnection
from streams.kafka.publisher import Publisher
from streams.metrics import Metrics
from streams.registry import VERSION, Registry, RegistryError, UnknownVersionError
from streams.releases import ReleaseLog
from streams.settings import Settings
from streams.stores.open import open_stores
from streams.topics import TopicNames, topic_specs

# Up to here one matrix product over all items is cheaper than asking the index: 64 users on 50,000 items take 13 ms,
# about what a round trip with 64 searches takes.
EXACT_SEARCH_ITEMS = 50_000
# A service that is away is waited for this long by the publisher too; then the worker ends and its supervisor decides.
PUBLISH_DEADLINE_SECONDS = 300.0
# A worker that starts while the registry is away begins with the settings' bundle after this time, and goes on asking.
FIRST_MODEL_SECONDS = 30.0

log = logging.getLogger(__name__)


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


def read_bundle(
    settings: Settings, path: Path, sizes: Dimensions | None = None, text_from: Bundle | None = None
) -> Bundle:
    """
    Args:
        sizes: that the stores have; None accepts any.
        text_from: a bundle whose text encoder may serve this one too.
    Raises: BundleError.
    """
    bundle = load_bundle(
        path,
        settings.execution_providers,
        settings.onnx_threads,
        features=FEATURES,
        dimension=None if sizes is None else sizes.item,
        state_size=None if sizes is None else sizes.state,
        text_from=text_from,
    )
    # The compiled passes fill in the base features, or all of them: of these a former release's ranker reads the first.
    own, adaptive = len(bundle.ranker.features), bundle.ranker.initial_weights is not None
    if own < BASE_COUNT or (adaptive and own > BASE_COUNT):
        wanted = f"{BASE_COUNT}" if adaptive else f"{BASE_COUNT} to {len(FEATURES)}"
        raise IncompatibleBundleError(f"{path}: the ranker reads {own} features, not {wanted}")
    return bundle


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
        # And a third, where the next model is opened while both serve.
        self.model_executor = ThreadPoolExecutor(1, thread_name_prefix="model", initializer=yield_to_events)
        self.stores = make_stores(settings)
        self.lock = asyncio.Lock()
        self.incarnation: dict[str, str] = {}
        self.partition_counts: dict[str, int] = {}
        self.worker = uuid.uuid4().hex
        self.options = pipeline_options(settings, self.contract)
        self.registry = Registry(settings.registry_url)
        self.background = Background("registry", yield_to_events)
        self.bundles = settings.data_dir / "bundles"
        self.release_log = ReleaseLog(self.connection, self.names.models)
        self.releases = ReleaseFeed(self.release_log, self.metrics)
        self.models_reader = BroadcastReader(
            self.names.models, self.connection, self.releases.apply, client_id="streamrec-models"
        )
        self.releases.read_to_its_end = self.models_reader.barrier
        # Its own: a registry that is away is no pause of the events, which the watchdog would have to know of.
        self.model_retry = Retry(self.metrics.count_retry)
        self.refused: Release | None = None
        self.serving: Serving
        self.switcher: Switcher
        self.road: EventRoad
        self.owner: ItemOwner
        self.users: UserStates
        self.catalogue_feed: CatalogueFeed
        self.statistics_feed: StatisticsFeed
        self.assigned: set[tuple[str, int]] = set()

    async def open(self) -> None:
        """Raises: BundleError, StoreError, TopicError, PublishError."""
        settings, metrics = self.settings, self.metrics
        await self.check_topics()
        if settings.follow_models:
            self.models_reader.start()
            await self.models_reader.caught_up()
        bundle, user_store, release = await self._first_bundle()
        await self.publisher.start()
        pipeline = make_pipeline(bundle, self.options, metrics)
        self.catalogue = pipeline.catalogue
        model = await self._with_index(bundle, self.retry)
        index, pipeline.index = model.collection, model.nearest
        ledger = Ledger(pipeline.statistics, pipeline.catalogue, pipeline.weights, self.worker, bundle.version)
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
            text_encoder=bundle.text_encoder,
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
            side=model.side,
            publisher=self.publisher,
            metrics=metrics,
            retry=self.retry,
            executor=self.text_executor,
            dead_letters=self.names.dead_letters,
            dead_letter_bytes=dead_letter_bytes,
            on_vectors=self.catalogue_feed.look,
        )
        self.serving = Serving(
            model=model,
            release=release,
            pipeline=pipeline,
            ledger=ledger,
            road=self.road,
            owner=self.owner,
            feed=self.catalogue_feed,
            metrics=metrics,
            lock=self.lock,
            wall_ms=self.clock.wall_ms,
        )
        self.switcher = Switcher(
            serving=self.serving,
            releases=self.releases,
            open_model=self.open_model,
            filler=self._filler,
            stores=self.stores,
            kept=await asyncio.to_thread(self._settings_items),
            items_version_of=self._items_version_of,
            forget=self._forget_bundles,
            retry=self.model_retry,
            metrics=metrics,
            rollout=settings.rollout_plan,
            refused=self.refused,
        )

    # models ----------------------------------------------------------------------------------------------------------

    async def _first_bundle(self) -> tuple[Bundle, UserStore, Release | None]:
        """The champion, where there is one that can be had and served here; else the settings' bundle, loudly. During a
        champion's trial, the version before it."""
        champion = self.releases.champion
        on_trial = self.settings.rollout_plan.until_ms(champion) > self.clock.wall_ms()
        versions = [] if champion is None else [champion.version]
        if champion is not None and on_trial:
            versions = [] if champion.previous is None else [champion.previous, champion.version]
        for version in versions:
            release = champion if champion is not None and version == champion.version else None
            try:
                bundle = await self._fetched(version, None, Retry(self.metrics.count_retry, FIRST_MODEL_SECONDS))
                return bundle, await self._open_users(bundle), release
            except (BundleError, RegistryError, UserStoreError) as error:
                if release is not None and is_final(error):
                    self.refused = release
                self.metrics.count_switch("refused" if is_final(error) else "failed")
                log.error("the released %s cannot be served from the start: %s", version, error)
        bundle = await self._opened(self.bundle_path, None)
        return bundle, await self._open_users(bundle), None

    async def open_model(self, version: str, served: Bundle) -> Model:
        """Raises: BundleError, RegistryError, ItemIndexError."""
        bundle = await self._fetched(version, served, self.model_retry)
        await asyncio.sleep(BREATH_SECONDS)
        return await self._with_index(bundle, self.model_retry)

    async def _fetched(self, version: str, served: Bundle | None, retry: Retry) -> Bundle:
        fetch = partial(self.registry.fetch, version, self.bundles)
        path = await retry.call("registry_fetch", lambda: self.background.run(fetch))
        try:
            return await self._opened(path, served)
        except BundleError:
            if path.is_dir():
                raise
        # Another worker of this machine, behind us or ahead, tidied it away between the two lines above.
        return await self._opened(await retry.call("registry_fetch", lambda: self.background.run(fetch)), served)

    async def _opened(self, path: Path, served: Bundle | None) -> Bundle:
        loop = asyncio.get_running_loop()
        sizes, pause = (None, 0.0) if served is None else (served.manifest.dimensions, BREATH_SECONDS)
        await asyncio.sleep(pause)
        read = partial(read_bundle, self.settings, path, sizes, served)
        bundle = await loop.run_in_executor(self.model_executor, read)
        await asyncio.sleep(pause)
        await loop.run_in_executor(self.model_executor, partial(warm_up, bundle, self.options))
        return bundle

    async def _open_users(self, bundle: Bundle) -> UserStore:
        encoder = bundle.user_encoder
        return await self.retry.call(
            "open_users", lambda: self.stores.users(state_size=encoder.state_size, dimension=encoder.dimension)
        )

    async def _with_index(self, bundle: Bundle, retry: Retry) -> Model:
        index = await retry.call(
            "open_items",
            lambda: self.stores.items(
                version=bundle.items_version,
                dimension=bundle.user_encoder.dimension,
                text_dimension=bundle.text_encoder.dimension,
            ),
        )
        if await retry.call("open_items", index.count) <= EXACT_SEARCH_ITEMS:
            return Model(bundle, index, None)
        return Model(bundle, index, IndexSearch(index, self.catalogue, asyncio.get_running_loop()))

    def _filler(self, filling: Filling) -> Filler:
        def owned() -> set[int]:
            return {partition for topic, partition in self.assigned if topic == self.names.items}

        return Filler(self.owner, filling, self.connection, self.names.items, owned, self.model_retry)

    def _settings_items(self) -> list[str]:
        """The collection of the settings' bundle, which is served where the champion cannot be had."""
        try:
            return [items_version(read_manifest(self.bundle_path))]
        except BundleError:
            return []

    async def _items_version_of(self, version: str) -> str:
        try:
            return items_version(await self.background.run(partial(self.registry.manifest, version)))
        except UnknownVersionError:
            return ""  # nobody can go back to it

    async def _forget_bundles(self, kept: set[str]) -> None:
        def remove() -> None:
            for path in self.bundles.iterdir() if self.bundles.is_dir() else ():
                if VERSION.fullmatch(path.name) and path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)
            give_memory_back()

        await self.background.run(remove)

    # ------------------------------------------------------------------------------------------------------------------

    async def check_topics(self) -> None:
        """Read partition counts and incarnations. Raises: TopicError naming what is missing or wrong."""
        report = await require_topics(self.connection, self.specs)
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
        self.model_executor.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> bool:
        """Whether a service is away and being waited for: a declared pause, no stall."""
        return self.retry.waiting or time.monotonic() - self.publisher_waiting < 2 * PUBLISH_PAUSE_SECONDS

    def _publisher_retries(self, topic: str, error: BaseException) -> None:
        self.publisher_waiting = time.monotonic()
        self.metrics.count_retry("publish")


# Between two steps that open a model beside the events: what they held up is made up for before the next one.
BREATH_SECONDS = 0.3
# The publisher's longest attempt and pause together; while it retries, it says so at least this often.
PUBLISH_PAUSE_SECONDS = 16.0


class WorkerError(RecommenderError):
    """A worker that cannot go on; its supervisor should start it again."""
