"""The road of a micro-batch of events or requests: decode, load, play, share, tell, store, publish.

A loop of calls with no rule of its own: what an event does is the pipeline's; the chunk is acknowledged by the caller.
Whatever is raised here leaves it unacknowledged and stops the worker, since its statistics may be ahead of the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from models.domain.batch import FOLDED, FUTURE, LATE, REPLAYED, BatchResult, Incoming, ScoredList
from models.domain.deltas import Ledger, encode_delta
from models.domain.errors import EventDecodeError
from models.domain.evaluation import hit, ndcg
from models.domain.events import EventContract, Request, encoded_text
from models.domain.feedback import encode_feedback
from models.domain.pipeline import Pipeline
from models.domain.ports import F32, TextEncoder
from models.domain.state import UserState
from models.domain.trial import compare
from streams.agents.clock import StreamClock
from streams.agents.forwarding import Origin, encode_origin, origin_of, trace_of
from streams.agents.trial import Part, Trial, parts_of
from streams.agents.users import UserStates
from streams.kafka.chunks import Chunk
from streams.kafka.dead_letters import dead_letter_message
from streams.kafka.partitioner import partition_of
from streams.kafka.publisher import Message, MessageTooLargeError, Publisher
from streams.metrics import Metrics
from streams.topics import TopicNames

log = logging.getLogger(__name__)


class _Decoded(NamedTuple):
    """The records of a chunk that are events of its partition, and what is to be sent for the others."""

    incoming: list[Incoming]
    records: list[Any]
    dead: list[Message]
    forwarded: list[Message]


class EventRoad:
    """Processes chunks of `events` and `requests`. One at a time: it owns the pipeline's statistics while it plays.

    Args:
        incarnation: topic -> id of its present incarnation.
        partitions: number of partitions of a topic.
        executor: one thread, for everything that computes.
    """

    def __init__(
        self,
        *,
        names: TopicNames,
        contract: EventContract,
        pipeline: Pipeline,
        ledger: Ledger,
        users: UserStates,
        text_encoder: TextEncoder,
        publisher: Publisher,
        metrics: Metrics,
        clock: StreamClock,
        executor: Executor,
        lock: asyncio.Lock,
        incarnation: Mapping[str, str],
        partitions: Callable[[str], int],
        dead_letter_bytes: int,
    ) -> None:
        self.names, self.contract, self.pipeline, self.ledger, self.users = names, contract, pipeline, ledger, users
        self.text_encoder, self.publisher, self.metrics, self.clock = text_encoder, publisher, metrics, clock
        self.executor, self.lock, self.incarnation, self.partitions = executor, lock, incarnation, partitions
        self.dead_letter_bytes = dead_letter_bytes
        self.trial: Trial | None = None
        """From the next chunk on."""

    def log_of(self, topic: str, partition: int) -> str:
        return f"{topic}@{self.incarnation[topic]}/{partition}"

    async def handle(self, chunk: Chunk) -> None:
        """Raises: PublishError, StoreError, StateError; then nothing of the chunk may be acknowledged."""
        async with self.lock:
            await self._handle(chunk)

    async def _handle(self, chunk: Chunk) -> None:
        metrics, epoch = self.metrics, self.users.epoch
        metrics.observe_chunk(len(chunk.records))
        with metrics.stage("decode"):
            decoded = self._decode(chunk)
        await self._send([*decoded.dead, *decoded.forwarded])
        if not decoded.incoming:
            return
        with metrics.stage("state_load"):
            states = await self.users.load(str(one.event.user_id) for one in decoded.incoming)
        trial = self.trial
        parts = parts_of(decoded.incoming, self.pipeline, self.text_encoder, trial)
        with metrics.stage("text_encode"):
            texts = [await self._encode_texts(decoded.incoming, part) for part in parts]
        play = partial(self._play, decoded.incoming, states, list(zip(parts, texts, strict=True)), trial)
        placeholders = self.pipeline.catalogue.placeholders
        refolded = sum(part.pipeline.refolded for part in parts)
        result: BatchResult = await asyncio.get_running_loop().run_in_executor(self.executor, play)
        await self._send(self._refused(decoded, result))
        with metrics.stage("delta"):
            await self._share(chunk, decoded, result)
        if result.feedback:
            with metrics.stage("tell"):
                await self._tell(result)
        with metrics.stage("upsert"):
            await self.users.save(result.states, epoch)
        with metrics.stage("publish"):
            await self._publish(decoded, result)
        metrics.count_refolded(sum(part.pipeline.refolded for part in parts) - refolded)
        metrics.count_items("placeholder", int(self.pipeline.catalogue.placeholders - placeholders))
        self._observe(chunk, decoded, result)

    # decode ----------------------------------------------------------------------------------------------------------

    def _decode(self, chunk: Chunk) -> _Decoded:
        decode = self.contract.decode_request if chunk.topic == self.names.requests else self.contract.decode_event
        log_name, count = self.log_of(chunk.topic, chunk.partition), self.partitions(chunk.topic)
        out = _Decoded([], [], [], [])
        for record in chunk.records:
            try:
                event = decode(record.value or b"")
                origin = origin_of(record.headers) if record.headers else None
            except EventDecodeError as error:
                out.dead.append(self._dead(record, error.reason, error.detail))
                continue
            home = partition_of(str(event.user_id).encode("utf-8", "surrogatepass"), count)
            if home != chunk.partition:
                origin = origin or Origin(log_name, record.offset, record.timestamp)
                headers = (*(h for h in record.headers if h[0] != encode_origin(origin)[0]), encode_origin(origin))
                out.forwarded.append(
                    Message(chunk.topic, str(event.user_id).encode(), record.value, headers, home, record.timestamp)
                )
                continue
            at = origin or Origin(log_name, record.offset, record.timestamp)
            counted = self.ledger.lacks(log_name, record.offset)
            out.incoming.append(Incoming(event, at.log, at.offset, counted, at.record_time_ms))
            out.records.append(record)
        self.metrics.count_forwarded(len(out.forwarded))
        return out

    def _dead(self, record: Any, reason: str, detail: str) -> Message:
        self.metrics.count_dead_letters(reason)
        self.metrics.count_events({("unknown", "dead_letter"): 1})
        return dead_letter_message(record, self.names.dead_letters, reason, detail, max_bytes=self.dead_letter_bytes)

    async def _encode_texts(self, incoming: Sequence[Incoming], part: Part) -> dict[str, F32]:
        texts = list(dict.fromkeys(text for at in part.positions if (text := encoded_text(incoming[at].event))))
        if not texts:
            return {}
        encode = partial(part.text_encoder.encode_many, texts)
        vectors = await asyncio.get_running_loop().run_in_executor(self.executor, encode)
        return dict(zip(texts, vectors, strict=True))

    # play ------------------------------------------------------------------------------------------------------------

    def _play(
        self,
        incoming: Sequence[Incoming],
        states: Mapping[str, UserState],
        parts: Sequence[tuple[Part, Mapping[str, F32]]],
        trial: Trial | None,
    ) -> BatchResult:
        result = BatchResult(len(incoming))
        if trial is not None and trial.mode == "shadow":
            # Before anything is played: the statistics must not know yet what was chosen.
            result.scores += compare([self.pipeline, trial.pipeline], incoming, states, trial.includes)
        stream_now_ms = self.clock.now_ms()
        for part, texts in parts:
            part.pipeline.run(
                incoming,
                states,
                generated_at_ms=lambda _: self.clock.wall_ms(),
                stream_now_ms=stream_now_ms,
                texts=texts,
                positions=part.positions,
                into=result,
            )
        return result

    # effects ---------------------------------------------------------------------------------------------------------

    def _refused(self, decoded: _Decoded, result: BatchResult) -> list[Message]:
        return [
            dead_letter_message(
                decoded.records[at],
                self.names.dead_letters,
                result.outcomes[at],
                detail,
                max_bytes=self.dead_letter_bytes,
            )
            for at, detail in result.details.items()
        ]

    async def _share(self, chunk: Chunk, decoded: _Decoded, result: BatchResult) -> None:
        delta = self.ledger.write(
            self.log_of(chunk.topic, chunk.partition),
            chunk.last_offset + 1,
            result.touches,
            [decoded.records[at].offset for at in result.touch_positions],
            [] if result.weights is None else result.weights.tolist(),
            [] if result.squares is None else result.squares.tolist(),
        )
        if delta is None:
            return
        data = encode_delta(delta)
        await self.publisher.send_many([Message(self.names.item_stats, delta.source.encode(), data)])
        self.metrics.count_deltas("sent", 1, len(data))

    async def _tell(self, result: BatchResult) -> None:
        """Feedback goes before the states: once they say "applied", nobody would make it again. After a crash it is
        sent twice, which its readers are made for.
        """
        encode = partial(_encoded_feedback, self.names.feedback, result)
        messages = await asyncio.get_running_loop().run_in_executor(self.executor, encode)
        too_large: tuple[int, ...] = ()
        try:
            await self.publisher.send_many(messages)
        except MessageTooLargeError as error:
            too_large = error.indexes
            told = result.feedback[too_large[0]]
            log.warning(
                "%d feedback record(s) larger than %s allows are left out; the first says of %s",
                len(too_large),
                self.names.feedback,
                getattr(told.record, "event_id", "a forgetting"),
            )
        lost = sum(len(messages[at].value or b"") for at in too_large)
        self.metrics.count_feedback("sent", len(messages) - len(too_large))
        self.metrics.count_feedback("too_large", len(too_large))
        self.metrics.count_published_bytes(self.names.feedback, sum(len(m.value or b"") for m in messages) - lost)

    async def _publish(self, decoded: _Decoded, result: BatchResult) -> None:
        topic = self.names.recommendations
        # What is to be forgotten goes first: a user may come back within the same chunk.
        messages = [Message(topic, user_id.encode("utf-8", "surrogatepass"), None) for user_id in result.forgotten]
        messages += [
            Message(topic, user_id.encode("utf-8", "surrogatepass"), data) for user_id, data in result.republish.items()
        ]
        self.metrics.count_lists("replay", len(result.republish))
        replayed = sum(outcome == REPLAYED for outcome in result.outcomes)
        self.metrics.count_superseded(max(0, replayed - len(result.republish)))
        messages += [
            Message(
                topic,
                made.user_id.encode("utf-8", "surrogatepass"),
                made.data,
                trace_of(decoded.records[made.position].headers),
            )
            for made in result.published
        ]
        await self._send(messages)
        if result.published:
            now_ms = self.clock.wall_ms()
            self.metrics.observe_event_to_list(
                [(now_ms - decoded.records[made.position].timestamp) / 1_000 for made in result.published]
            )
            self.metrics.count_published_bytes(topic, sum(len(made.data) for made in result.published))

    async def _send(self, messages: Sequence[Message]) -> None:
        if messages:
            await self.publisher.send_many(messages)

    # what happened ---------------------------------------------------------------------------------------------------

    def _observe(self, chunk: Chunk, decoded: _Decoded, result: BatchResult) -> None:
        metrics = self.metrics
        counts: Counter[tuple[str, str]] = Counter()
        for one, outcome in zip(decoded.incoming, result.outcomes, strict=True):
            event = one.event
            if isinstance(event, Request):
                counts["request", outcome] += 1
            else:
                counts[event.type, outcome] += 1
                if outcome == FOLDED:
                    self.clock.observe(event.event_time_ms)
            if outcome in (LATE, FUTURE):
                metrics.count_dead_letters(outcome)
        metrics.count_events(counts)
        requests = chunk.topic == self.names.requests
        metrics.count_lists("request" if requests else "event", len(result.published))
        metrics.set_users_cached(len(self.users))
        metrics.set_catalogue_items(len(self.pipeline.catalogue))
        metrics.observe_drift(
            [made.spread for made in result.published if made.spread is not None],
            [float(np.linalg.norm(state.memory)) for state in result.states.values()],
        )
        groups: dict[tuple[str, bool, ScoredList], list[int]] = {}
        for score in result.scores:
            groups.setdefault((score.model_version, score.cold, score.list), []).append(score.place)
        for (version, cold, shown), places in groups.items():
            metrics.count_online(
                version,
                "cold" if cold else "warm",
                shown,
                scored=len(places),
                hits=int(sum(map(hit, places))),
                ndcg_sum=sum(map(ndcg, places)),
            )


def _encoded_feedback(topic: str, result: BatchResult) -> list[Message]:
    """20 KB a record: done beside the event loop."""
    return [
        Message(topic, told.record.user_id.encode("utf-8", "surrogatepass"), encode_feedback(told.record))
        for told in result.feedback
    ]
