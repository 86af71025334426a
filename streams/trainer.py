"""The trainer process: reads `feedback`, lets a learner learn from it, and releases what the learner found better.

Owns connections, the order of what is made durable, and who may release. What is learned and what is better, the
learner says (`streams.learning_port`).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from models.domain.catalogue import content_hash, content_text
from models.domain.errors import BundleError, EventDecodeError, RecommenderError
from models.domain.events import EventContract, Item
from models.domain.feedback import Record, decode_feedback
from models.domain.release_log import superfluous
from models.encoders.manifest import read_manifest
from streams.health import HealthServer
from streams.kafka.admin import require_topics
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.connection import KafkaConnection
from streams.kafka.publisher import Publisher
from streams.kafka.record_headers import accept_any_header_name
from streams.kafka.single_owner import SingleOwnerAssignor
from streams.learning_port import OnlineLearner, Round
from streams.registry import Registry, RegistryError
from streams.releases import ReleaseLog
from streams.settings import Settings
from streams.topics import LARGEST_MESSAGE_BYTES, TopicNames, topic_specs
from streams.trainer_metrics import TrainerMetrics

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_MS = 200
# A poll's records: their features are some 20 KB each.
RECORDS_PER_POLL = 500
# Records are on disk, and their offsets committed, at the latest after this time: what a crash reads again.
FLUSH_SECONDS = 10.0
# A round may fit a first model on a long buffer; the group must not take the partitions away meanwhile.
LONGEST_ROUND_MS = 3_600_000
# Texts encoded in one call; a large catalogue takes minutes and must be heard to stop.
ENCODE_BATCH = 64
# A registry that is away for longer than half a minute fails what is done; the next round does it anew.
REGISTRY_ATTEMPTS = 5


class TrainerError(RecommenderError):
    """A trainer that cannot go on; its supervisor should start it again."""


class Trainer:
    """One trainer process. `run` returns when `stop` is set. Raises: RecommenderError when it cannot go on.

    Args:
        bundle: what workers serve while nothing was released.
    """

    def __init__(
        self,
        settings: Settings,
        learner: OnlineLearner,
        bundle: Path,
        stop: asyncio.Event,
    ) -> None:
        self.settings, self.learner, self.bundle, self.stop = settings, learner, bundle, stop
        self.directory = settings.data_dir / "trainer"
        self.names = TopicNames(settings.topic_prefix)
        self.connection = KafkaConnection.from_settings(settings)
        self.contract = EventContract(settings.interaction_strengths)
        self.metrics = TrainerMetrics()
        self.registry = Registry(settings.registry_url)
        self.publisher = Publisher(self.connection, client_id="streamrec-trainer")
        self.releases = ReleaseLog(self.connection, self.names.models, self.publisher)
        # One thread: learner and registry are used one after the other.
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self.ready = False
        self.leads = False
        self._items: dict[str, Item] = {}
        """Items whose text is to be encoded."""
        self._hashes: dict[str, str] = {}
        self._champion = ""
        self._flushed = self._rounded = time.monotonic()
        self._unflushed = 0
        self._changed = asyncio.Event()
        """A release that is not ours came."""
        self._items_reader = BroadcastReader(self.names.items, self.connection, self._on_items)
        self._releases_reader = BroadcastReader(self.names.models, self.connection, self._on_releases)
        self.health = HealthServer(
            self.metrics,
            host=settings.metrics_host,
            port=settings.trainer_metrics_port,
            readiness={"started": self._check_started},
            # A trainer that cannot go on ends by itself; a round may take as long as it takes.
            liveness=lambda: None,
        )

    async def run(self) -> None:
        readers = [self._items_reader, self._releases_reader]
        await self.health.start()
        try:
            await self._check_topics()
            await self.publisher.start()
            for reader in readers:
                reader.start()
            for reader in readers:
                await reader.caught_up()
            await self._adopt_champion()
            await self._declare()
            await self._consume()
        finally:
            self.ready = False
            await asyncio.gather(*(reader.stop() for reader in readers), self.publisher.stop(), return_exceptions=True)
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.learner.close()
            await self.health.stop()

    # the road of a record ---------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        accept_any_header_name()
        settings = self.settings
        consumer: AIOKafkaConsumer[bytes | None, bytes | None] = AIOKafkaConsumer(
            **self.connection.client_options("streamrec-trainer"),
            group_id=f"{settings.consumer_group}.trainer",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=LARGEST_MESSAGE_BYTES,
            session_timeout_ms=int(settings.kafka_session_timeout_seconds * 1_000),
            heartbeat_interval_ms=int(settings.kafka_heartbeat_interval_seconds * 1_000),
            max_poll_interval_ms=LONGEST_ROUND_MS,
            partition_assignment_strategy=[SingleOwnerAssignor()],
        )
        consumer.subscribe([self.names.feedback], listener=_Listener(self, consumer))
        await consumer.start()
        try:
            self.ready = True
            while not self.stop.is_set():
                self._raise_if_reader_ended()
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=RECORDS_PER_POLL)
                await self._take([record for batch in batches.values() for record in batch])
                if self._changed.is_set():
                    await self._adopt_champion()
                await self._declare()
                # What is waiting is known once it is on disk: not everything is learned from.
                if self._unflushed >= self.learner.needed or time.monotonic() - self._flushed > FLUSH_SECONDS:
                    await self._flush(consumer)
                if self._due():
                    await self._round(consumer)
                self._observe(consumer)
            await self._flush(consumer)
        finally:
            await consumer.stop()

    async def _take(self, records: Sequence[Any]) -> None:
        if not records:
            return
        taken: list[Record] = []
        bad = 0
        for record in records:
            try:
                taken.append(decode_feedback(record.value or b""))
            except EventDecodeError as error:
                bad += 1
                log.warning("%s/%d offset %d is no feedback: %s", record.topic, record.partition, record.offset, error)
        offsets: dict[int, int] = {}
        for record in records:
            offsets[record.partition] = max(record.offset + 1, offsets.get(record.partition, 0))
        await self._in_thread(self.learner.append, taken, offsets)
        self._unflushed += len(records)
        self.metrics.count_records({"bad": bad})

    async def _flush(self, consumer: Any) -> None:
        """On disk first, then committed: a crash between the two reads again what is known already."""
        if not self._unflushed:
            return
        self.metrics.count_records(await self._in_thread(self.learner.flush))
        if consumer.assignment():
            try:
                await consumer.commit()
            except KafkaError as error:
                # The group gave the partitions to another trainer, which reads these records as well.
                log.warning("offsets of the trainer are not committed: %r", error)
        self._flushed, self._unflushed = time.monotonic(), 0

    def _due(self) -> bool:
        waiting, needed = self.learner.waiting, self.learner.needed
        late = time.monotonic() - self._rounded > self.settings.trainer_round_seconds
        return self.leads and (waiting >= needed or (late and waiting > 0))

    # rounds and releases ----------------------------------------------------------------------------------------------

    async def _round(self, consumer: Any) -> None:
        # Whoever releases commits: by then everything that was read must be on disk.
        await self._flush(consumer)
        started = time.monotonic()
        done: Round = await self._in_thread(self.learner.round)
        self._rounded = time.monotonic()
        self.metrics.observe_round(done.decision, done.fit, self._rounded - started, done.figures)
        log.info("round: %s", done.decision, extra={"reason": done.reason, **done.figures})
        if done.fit:
            log.info("whole fit: %s", done.fit)
        if done.decision == "promote" and self._on_trial():
            log.info("not released: the champion is still on trial")
        elif done.decision == "promote":
            await self._promote(consumer, done)
        elif done.decision == "rollback":
            await self._roll_back(consumer, done)

    def _on_trial(self) -> bool:
        """Whether workers still try the champion on some users: another release would begin its trial anew."""
        return self.settings.rollout_plan.until_ms(self.releases.champion) > time.time_ns() // 1_000_000

    async def _promote(self, consumer: Any, done: Round) -> None:
        folder = Path(tempfile.mkdtemp(prefix="challenger-", dir=self.directory))
        try:
            bundle = await self._in_thread(self.learner.write, folder / "bundle")
            version = await self._in_thread(self.registry.publish, bundle)
            if not await self._still_leads(consumer):
                return
            await self.releases.promote(read_manifest(bundle), by="trainer", reason=done.reason, figures=done.figures)
            place = self.directory / "bundles" / version
            if not place.exists():  # what was just written is not downloaded
                bundle.rename(place)
            await self._in_thread(self.learner.promoted, await self._fetched(version))
            await self._now_champion(version)
            await self._prune()
        except RecommenderError as error:
            # The champion stays; the next round decides again.
            self.metrics.count_failure("promote")
            log.error("the challenger could not be released: %s", error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _roll_back(self, consumer: Any, done: Round) -> None:
        try:
            if not await self._still_leads(consumer):
                return
            release = await self.releases.roll_back(by="trainer", reason=done.reason)
            log.warning("rolled back to %s: %s", release.version, done.reason)
            await self._in_thread(self.learner.rolled_back)
            await self._in_thread(self.learner.adopt, await self._fetched(release.version))
            await self._now_champion(release.version)
        except RecommenderError as error:
            self.metrics.count_failure("rollback")
            log.error("the champion could not be rolled back: %s", error)

    async def _prune(self) -> None:
        """Delete what is neither in use nor among the newest: each release leaves another version behind."""
        if not self.settings.registry_keep:
            return
        try:
            created = await self._in_thread(self._stored_versions)
            doomed = superfluous(self.releases.releases, created, self.settings.registry_keep)
            for version in doomed:
                await self._in_thread(self.registry.delete, version)
                log.info("deleted from the registry", extra={"version": version})
            if doomed:
                await self.releases.remove(doomed)
        except RecommenderError as error:
            log.warning("old versions stay in the registry until the next release: %s", error)

    def _stored_versions(self) -> list[tuple[int, str]]:
        """(created_ms, version) of what is whole: a damaged one keeps nothing else from being deleted."""
        whole = self.registry.manifests(lambda error: log.warning("left in the registry: %s", error))
        return [(manifest.created_ms, manifest.version) for manifest in whole]

    async def _still_leads(self, consumer: Any) -> bool:
        """Whether the group still counts on this trainer: a commit of one that was replaced is refused."""
        try:
            await consumer.commit()
        except KafkaError as error:
            log.warning("another trainer has taken over, nothing is released: %r", error)
            return False
        return self.leads

    async def _adopt_champion(self) -> None:
        """Let the learner start from what is champion now: the newest release, else the bundle of the settings."""
        self._changed.clear()
        champion = self.releases.champion
        # What workers serve unreleased goes into the registry too: the first release can be rolled back to it.
        version = champion.version if champion is not None else await self._retrying(self.registry.publish, self.bundle)
        if version == self._champion:
            return
        try:
            await self._in_thread(self.learner.adopt, await self._fetched(version))
        except BundleError as error:
            raise TrainerError(f"the champion {version} cannot be learned on from: {error}") from error
        await self._now_champion(version)

    async def _fetched(self, version: str) -> Path:
        return await self._retrying(partial(self.registry.fetch, training=True), version, self.directory / "bundles")

    async def _retrying(self, work: Callable[..., T], *arguments: Any) -> T:
        """Raises: RegistryError when it stays away, or refuses."""
        for attempt in range(REGISTRY_ATTEMPTS):
            try:
                return await self._in_thread(work, *arguments)
            except RegistryError as error:
                if not error.retryable or attempt + 1 == REGISTRY_ATTEMPTS:
                    raise
                log.warning("the registry does not answer, attempt %d: %s", attempt + 1, error)
                self.metrics.count_failure("registry")
            await asyncio.sleep(2.0**attempt)
        raise AssertionError

    async def _now_champion(self, version: str) -> None:
        self._champion = version
        champion = self.releases.champion
        self.metrics.set_champion(version, time.time() if champion is None else champion.at_ms / 1_000)
        kept = {version, *((champion.previous,) if champion is not None else ())}
        await self._in_thread(_keep_only, self.directory / "bundles", kept)

    # catalogue and releases as they come ------------------------------------------------------------------------------

    async def _on_items(self, records: Sequence[Any]) -> None:
        for record in records:
            if record.value is None:
                continue  # an item that is gone keeps what was learned of it; nobody recommends it
            try:
                item = self.contract.decode_item(record.value)
            except EventDecodeError:
                continue  # its owner makes the dead letter
            self._items[str(item.item_id)] = item

    async def _declare(self) -> None:
        """Encode the texts of items that came or changed and tell the learner of them."""
        while self._items and not self.stop.is_set():
            batch = {item_id: self._items.pop(item_id) for item_id in list(self._items)[:ENCODE_BATCH]}
            hashes = {item_id: content_hash(item) for item_id, item in batch.items()}
            new = [item_id for item_id in batch if self._hashes.get(item_id) != hashes[item_id]]
            if not new:
                continue
            await self._in_thread(self.learner.declare, new, [content_text(batch[item_id]) for item_id in new])
            self._hashes |= hashes

    async def _on_releases(self, records: Sequence[Any]) -> None:
        if self.releases.read(records) and self.ready:
            champion = self.releases.champion
            if champion is not None and champion.version != self._champion:
                self._changed.set()

    # parts ------------------------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *arguments)

    async def _check_topics(self) -> None:
        needed = {self.names.feedback, self.names.models, self.names.items}
        await require_topics(self.connection, [spec for spec in topic_specs(self.names) if spec.name in needed])

    def _observe(self, consumer: Any) -> None:
        self.metrics.set_buffer(*self.learner.buffered)
        self.metrics.set_leads(self.leads)
        lag = 0
        for partition in consumer.assignment():
            end, position = consumer.highwater(partition), consumer.last_stable_offset(partition)
            if end is not None and position is not None:
                lag += max(0, end - position)
        self.metrics.set_lag(lag)

    def _raise_if_reader_ended(self) -> None:
        for reader in (self._items_reader, self._releases_reader):
            if reader.failure is not None:
                raise TrainerError(f"{reader.topic} cannot be read: {reader.failure}") from reader.failure

    async def _check_started(self) -> str | None:
        return None if self.ready else "catching up with items and releases, or waiting for the group"


class _Listener(ConsumerRebalanceListener):
    def __init__(self, trainer: Trainer, consumer: Any) -> None:
        self._trainer, self._consumer = trainer, consumer

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._trainer.leads = False

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Go on behind what is on disk where that is further than what was committed."""
        partitions = list(assigned)
        known = self._trainer.learner.offsets
        ends = await self._consumer.end_offsets(partitions) if partitions else {}
        for partition in partitions:
            kept = known.get(partition.partition, 0)
            committed = await self._consumer.committed(partition) or 0
            # An end before it is that of a topic which was made anew.
            if committed < kept <= ends[partition]:
                self._consumer.seek(partition, kept)
        self._trainer.leads = bool(partitions)
        log.info("this trainer %s", "leads" if self._trainer.leads else "stands by")


def _keep_only(folder: Path, versions: set[str | None]) -> None:
    for path in folder.iterdir():
        if path.name not in versions:
            shutil.rmtree(path, ignore_errors=True)
