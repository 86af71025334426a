"""Rebuilding user states from the log: the same pipeline with its outputs muted, into a generation of its own."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.domain.batch import FOLDED, Incoming
from models.domain.catalogue import Catalogue, content_hash
from models.domain.errors import EventDecodeError, RecommenderError
from models.domain.events import EventContract, Item
from models.domain.pipeline import Pipeline
from models.domain.ports import ItemIndex, UserRecord, UserStore
from models.domain.state import UserState, unpack, unpack_body, user_key
from streams.agents.forwarding import Origin, origin_of
from streams.agents.items import decode_item
from streams.agents.retry import Retry
from streams.agents.users import UserStates
from streams.cli.common import resolve_bundle
from streams.cli.group import GroupState, group_state
from streams.cli.lines import progress_bar
from streams.cli.replaying import fill_catalogue
from streams.cli.states import is_tombstone
from streams.container import make_pipeline, make_stores, pipeline_options, read_bundle
from streams.kafka.admin import TopicError, describe_topics, topic_ids
from streams.kafka.broadcast import read_to_end
from streams.kafka.connection import KafkaConnection
from streams.kafka.partitioner import partition_of
from streams.settings import Settings
from streams.topics import TopicNames, topic_specs

if TYPE_CHECKING:
    from models.encoders.bundle import Bundle

log = logging.getLogger(__name__)

# As the worker's chunks: one load and one save of the store for so many events.
BATCH = 256
PAGE = 256


class RebuildError(RecommenderError):
    """States that cannot be rebuilt now."""


class Rebuilt(NamedTuple):
    generation: str
    rebuilt: int
    kept: int
    folded: int
    skipped: int


async def rebuild_users(settings: Settings) -> Rebuilt:
    """Raises: RebuildError while workers run; TopicError, BundleError, StoreError."""
    connection, names = KafkaConnection.from_settings(settings), TopicNames(settings.topic_prefix)
    report = await describe_topics(connection, topic_specs(names))
    missing = {names.events, names.items} & set(report.missing)
    if missing:
        raise TopicError(f"topics {', '.join(sorted(missing))} do not exist: there is nothing to rebuild from")
    incarnation = (await topic_ids(connection, [names.events]))[names.events]
    contract = EventContract(settings.interaction_strengths)
    bundle = read_bundle(settings, resolve_bundle(settings))
    # Statistics decide lists, never states: where no list is made they need not be counted.
    muted = pipeline_options(settings, contract)._replace(
        publish=False, asked_share=0.0, learn=False, counts=False, feedback=False
    )
    pipeline, encoder = make_pipeline(bundle, muted), bundle.user_encoder
    stores = make_stores(settings)
    try:
        old = await stores.users(state_size=encoder.state_size, dimension=encoder.dimension)
        group = await _resting_group(settings, connection, names.events)
        index = await stores.items(
            version=bundle.items_version, dimension=encoder.dimension, text_dimension=bundle.text_encoder.dimension
        )
        await _read_catalogue(connection, names.items, contract, pipeline.catalogue, index, bundle)
        generation = str(time.time_ns() // 1_000_000)
        new = await stores.users(state_size=encoder.state_size, dimension=encoder.dimension, generation=generation)
        fold = _Fold(contract, pipeline, bundle, old, new, settings.user_cache_size, names.events, incarnation)
        await _fold_log(connection, names.events, group, fold)
        kept = await _carry_over(old, new)
        if (await _resting_group(settings, connection, names.events)).committed != group.committed:
            raise RebuildError("a worker ran meanwhile: stop the workers, and rebuild again")
        await stores.switch_users(generation)
    finally:
        await stores.close()
    folded = fold.outcomes[FOLDED]
    return Rebuilt(generation, len(fold.rebuilt), kept, folded, fold.outcomes.total() - folded)


async def _resting_group(settings: Settings, connection: KafkaConnection, topic: str) -> GroupState:
    """Raises: RebuildError while workers run."""
    group = await group_state(connection, settings.consumer_group, [topic])
    # An embedded store is ours alone while we have it open, which says more than the group: the embedded broker goes on
    # listing members that left.
    if group.members and settings.qdrant_url:
        raise RebuildError(
            f"the consumer group {settings.consumer_group!r} has {group.members} active members: stop the workers "
            "first (one that was killed counts until its session ends)"
        )
    return group


async def _read_catalogue(
    connection: KafkaConnection,
    topic: str,
    contract: EventContract,
    catalogue: Catalogue,
    index: ItemIndex,
    bundle: Bundle,
) -> None:
    """Items as they are now, with their vectors from the index, or encoded where the index lacks them."""
    items: dict[str, Item] = {}
    async for record in read_to_end(connection, topic, client_id="streamrec-rebuild"):
        try:
            item_id, item = decode_item(contract, record, bundle.item_encoder.dimension - 1)
        except EventDecodeError:
            continue
        items.pop(item_id, None)
        if item is not None:
            items[item_id] = item
    waiting = list(items.values())
    lacking: list[Item] = []
    for start in range(0, len(waiting), PAGE):
        page = waiting[start : start + PAGE]
        for item, record in zip(page, await index.get_many([str(item.item_id) for item in page]), strict=True):
            if record is not None and record.content_hash == content_hash(item):
                catalogue.set_vectors([catalogue.declare(item)], record.vector[None])
            else:
                lacking.append(item)
    fill_catalogue(catalogue, lacking, bundle)


async def _fold_log(connection: KafkaConnection, topic: str, group: GroupState, fold: _Fold) -> None:
    """Up to what the group has committed: what stands behind it the worker will fold, and publish. Where the group has
    committed nothing at all (its offsets expire), everything.
    """
    until = {place: group.committed.get(place, 0) for place in group.end} if group.committed else group.end
    total = sum(max(0, until[place] - group.begin[place]) for place in until)
    partitions = len(until)
    with progress_bar("folding", total, "records") as progress:
        done = 0
        async for record in read_to_end(connection, topic, client_id="streamrec-rebuild"):
            if group.committed and record.offset >= until[topic, record.partition]:
                continue
            await fold.take(record, partitions)
            done += 1
            progress(done)
        await fold.flush()


class _Fold:
    """Plays records in batches over states that start from nothing but what must go on."""

    def __init__(
        self,
        contract: EventContract,
        pipeline: Pipeline,
        bundle: Bundle,
        old: UserStore,
        new: UserStore,
        cache_size: int,
        topic: str,
        incarnation: str,
    ) -> None:
        self._contract, self._pipeline, self._bundle, self._old = contract, pipeline, bundle, old
        self._states = UserStates(new, pipeline.catalogue, Retry(lambda _: None), cache_size, lambda *_: None)
        self._log = f"{topic}@{incarnation}/"
        self._batch: list[Incoming] = []
        self.rebuilt: set[str] = set()
        self.outcomes: Counter[str] = Counter()

    async def take(self, record: Any, partitions: int) -> None:
        try:
            event = self._contract.decode_event(record.value or b"")
            origin = origin_of(record.headers) if record.headers else None
        except EventDecodeError:
            self.outcomes["bad"] += 1
            return
        if partition_of(str(event.user_id).encode("utf-8", "surrogatepass"), partitions) != record.partition:
            return  # its forwarded copy stands in its user's partition
        at = origin or Origin(f"{self._log}{record.partition}", record.offset, record.timestamp)
        self._batch.append(Incoming(event, at.log, at.offset, False, at.record_time_ms))
        if len(self._batch) == BATCH:
            await self.flush()

    async def flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        ids = list(dict.fromkeys(str(one.event.user_id) for one in batch))
        states = await self._states.load(ids)
        await self._start([user_id for user_id in ids if user_id not in states], states)
        texts = list(dict.fromkeys(text for one in batch if (text := getattr(one.event, "text", None))))
        vectors = dict(zip(texts, self._bundle.text_encoder.encode_many(texts), strict=True)) if texts else {}
        result = self._pipeline.run(batch, states, generated_at_ms=lambda now: now, texts=vectors)
        await self._states.save(result.states, self._states.epoch)
        self.outcomes.update(result.outcomes)
        self.rebuilt.update(result.states)

    async def _start(self, user_ids: list[str], states: dict[str, UserState]) -> None:
        """States to fold into: empty, but lists are numbered on, requests stay answered and the forgotten forgotten."""
        encoder, catalogue = self._pipeline.encoder, self._pipeline.catalogue
        records = await self._old.load_many([user_key(user_id) for user_id in user_ids]) if user_ids else []
        for user_id, record in zip(user_ids, records, strict=True):
            if record is None:
                continue
            before = unpack(user_id, record, catalogue)
            user = np.zeros(encoder.dimension, np.float32)
            state = states[user_id] = UserState(user_id, encoder.initial_state(), user, self._bundle.version)
            state.revision, state.sequence, state.forgotten_ms = before.revision, before.sequence, before.forgotten_ms
            state.last_list, state.last_items, state.last_model = before.last_list, before.last_items, before.last_model
            state.shown = before.shown
            state.applied = {k: offset for k, offset in before.applied.items() if not k.startswith(self._log)}


async def _carry_over(old: UserStore, new: UserStore) -> int:
    """Copy whom the fold has not met: tombstones, and users without a retained event, whom no recent defect can have
    touched. Returns: how many users, tombstones not counted.
    """
    kept = 0
    page: list[UserRecord] = []

    async def copy() -> int:
        found = await new.load_many([record.user_key for record in page])
        lacking = [record for record, there in zip(page, found, strict=True) if there is None]
        await new.save_many(lacking)
        return sum(not is_tombstone(unpack_body(record.body)) for record in lacking)

    async for record in old.scan(PAGE):
        page.append(record)
        if len(page) == PAGE:
            kept += await copy()
            page.clear()
    return kept + (await copy() if page else 0)
