"""The Faust app of a worker, made from plain arguments and run inside a program that already has an event loop.

Owns the app's settings, its agents' loop and its start and stop. It knows no settings class and no handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import faust
from faust.app.base import BootStrategy
from faust.serializers.schemas import Schema
from mode.supervisors import CrashingSupervisor

from models.domain.errors import RecommenderError
from streams.kafka.chunks import Chunk, PartitionProgress
from streams.kafka.faust_consumer import (
    REBALANCE_TIMEOUT_SECONDS,
    REQUEST_TIMEOUT_SECONDS,
    ChunkConsumer,
    ChunkConsumerConfig,
    PartitionsCallback,
)
from streams.kafka.faust_transport import ChunkTransport

log = logging.getLogger(__name__)

ChunkHandler = Callable[[Chunk], Awaitable[None]]
FailureCallback = Callable[[Exception], None]

# What a stop may take beside the grace for the chunk in work: the last commit and leaving the group (2.5 s at most, and
# 0.2 s in practice), then Faust's own services.
STOP_TIMEOUT_SECONDS = 2.75


class WorkerCrashedError(RecommenderError):
    """A service of the Faust app ended with an error; it is the `__cause__`."""


class _Boot(BootStrategy):
    """Consumer, agents, conductor, and the table manager, which resumes the flow after a rebalance; nothing else."""

    def server(self) -> Iterable[Any]:
        return [self.app.consumer, self.app.agents, self.app.topics, self.app.tables]


class _ChunkSchema(Schema):
    """The consumer's chunk is the event's value as it is: there is nothing to decode here."""

    def compile(self, app: Any, **kwargs: Any) -> Any:
        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return app.create_event(None, message.value, None, message)

        return decode


class ChunkApp(faust.App):
    """A Faust app whose agents are handed chunks. Made by `build_app`."""

    BootStrategy = _Boot

    def __init__(self, config: ChunkConsumerConfig, on_failure: FailureCallback | None) -> None:
        self.chunk_config = config
        self.on_failure = on_failure
        self.failure: Exception | None = None
        super().__init__(
            config.group,
            # Faust lets an environment variable such as BROKER_SESSION_TIMEOUT win over an argument.
            env={},
            broker="kafka://",  # not used: the transport has the servers
            store="memory://",
            autodiscover=False,
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            reply_create_topic=False,
            # Ours is bounded and waits for chunks that agents work on; Faust's own may hang for good.
            stream_wait_empty=True,
            broker_session_timeout=config.session_timeout_seconds,
            broker_heartbeat_interval=config.heartbeat_interval_seconds,
            broker_rebalance_timeout=REBALANCE_TIMEOUT_SECONDS,
            broker_request_timeout=REQUEST_TIMEOUT_SECONDS,
            broker_commit_interval=config.commit_interval_seconds,
        )

    def _new_transport(self) -> ChunkTransport:
        return ChunkTransport(self, self.chunk_config)

    def _create_directories(self) -> None:
        """Faust would make a data directory in the working directory; without tables nothing goes there."""

    @property
    def chunks(self) -> ChunkConsumer:
        return self.consumer

    def progress(self) -> list[PartitionProgress]:
        """One entry for each partition this worker holds now; empty before the start and after the stop."""
        return self.chunks.progress() if self.started and not self.crashed else []

    def fail(self, error: Exception) -> None:
        """A handler raised: from now on no agent takes up a chunk; what is not acknowledged is delivered again."""
        self.failure = error
        if self.on_failure is not None:
            self.on_failure(error)


def build_app(
    *,
    connection: Mapping[str, Any],
    group: str,
    chunk_size: int = 256,
    session_timeout_seconds: float = 6.0,
    heartbeat_interval_seconds: float = 1.0,
    commit_interval_seconds: float = 0.5,
    auto_offset_reset: str = "earliest",
    isolation_level: str = "read_committed",
    max_partition_fetch_bytes: int = 1_048_576,
    stop_grace_seconds: float = 2.0,
    on_assigned: PartitionsCallback | None = None,
    on_revoked: PartitionsCallback | None = None,
    commit_note: Callable[[str], str] = lambda topic: "",
    on_failure: FailureCallback | None = None,
) -> ChunkApp:
    """Make the app; add agents with `add_chunk_agent`, then `run` it once. Call it where the event loop runs.

    Args:
        connection: aiokafka's arguments of a client, as `KafkaConnection.client_options` gives them.
        group: consumer group; the only id the brokers see.
        chunk_size: most records in a chunk.
        session_timeout_seconds: a worker that is silent for so long loses its partitions.
        max_partition_fetch_bytes: most bytes of one partition held by the client beside the chunks that are out.
        stop_grace_seconds: how long a chunk that an agent works on may take to end after a stop.
        on_assigned: awaited before any chunk of these partitions is handed out. Heartbeats rest meanwhile: be done well
            within a session timeout. An error crashes the app.
        commit_note: of a topic: what is committed beside its offsets, its incarnation; offsets with another note, other
            than an empty one, are passed over and the partition is read from its beginning.
        on_revoked: awaited after the chunk in work has ended (waited for at most half a session timeout) and what is
            acknowledged is committed. Every rebalance first revokes all partitions.
        on_failure: called with what a handler raised; it should have the worker stopped. Without it the app crashes.
    """
    config = ChunkConsumerConfig(
        connection=connection,
        group=group,
        chunk_size=chunk_size,
        session_timeout_seconds=session_timeout_seconds,
        heartbeat_interval_seconds=heartbeat_interval_seconds,
        commit_interval_seconds=commit_interval_seconds,
        auto_offset_reset=auto_offset_reset,
        isolation_level=isolation_level,
        max_partition_fetch_bytes=max_partition_fetch_bytes,
        stop_grace_seconds=stop_grace_seconds,
        on_assigned=on_assigned,
        on_revoked=on_revoked,
        commit_note=commit_note,
    )
    app = ChunkApp(config, on_failure)
    app.finalize()
    return app


def add_chunk_agent(app: ChunkApp, topics: Sequence[str], handler: ChunkHandler) -> None:
    """Have `handler` called with one chunk of `topics` at a time; the chunk is acknowledged when it returns.

    Chunks of one partition come in order; those of different partitions take turns. The handler may await for as long
    as it likes, but must leave the event loop free: heartbeats run there.
    """

    async def agent(stream: Any) -> None:
        # Acknowledged by us alone: Faust's stream acknowledges also what was raised out of or cancelled.
        async for chunk in stream.noack():
            if app.failure is None and app.chunks.begin(chunk):
                await _handle(app, handler, chunk)

    topic = app.topic(*topics, schema=_ChunkSchema())
    # The body never raises; should it, the app crashes instead of going on behind the chunk that failed.
    app.agent(topic, name=f"chunks-{'-'.join(topics)}", concurrency=1, supervisor_strategy=CrashingSupervisor)(agent)


async def _handle(app: ChunkApp, handler: ChunkHandler, chunk: Chunk) -> None:
    try:
        await handler(chunk)
    except Exception as error:
        app.chunks.abandon(chunk)
        app.fail(error)
        if app.on_failure is None:
            await app.crash(error)
    except BaseException:
        app.chunks.abandon(chunk)
        raise
    else:
        app.chunks.acknowledge(chunk)


async def run(app: ChunkApp, stop: asyncio.Event) -> None:
    """Run the app until `stop` is set or a service crashes; then let the chunk in work end, commit and leave the group.

    Signals are the caller's. Raises: WorkerCrashedError, also where the broker cannot be reached at the start.
    """
    starting = asyncio.create_task(app.start(), name="faust-start")
    stopping = asyncio.create_task(stop.wait(), name="faust-stop")
    ended = asyncio.create_task(app.wait_until_stopped(), name="faust-ended")
    try:
        await asyncio.wait({starting, stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and starting.exception() is None:
            await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _stop(app)
        for task in (starting, stopping, ended):
            task.cancel()
        await asyncio.gather(starting, stopping, ended, return_exceptions=True)
    reason = app.crash_reason if starting.cancelled() else starting.exception() or app.crash_reason
    if reason is not None:
        raise WorkerCrashedError(f"the worker's Faust app crashed: {reason!r}") from reason


async def _stop(app: ChunkApp) -> None:
    limit = app.chunk_config.stop_grace_seconds + STOP_TIMEOUT_SECONDS
    try:
        await asyncio.wait_for(app.stop(), limit)
    except TimeoutError:
        log.warning("Faust's services did not end in %.1f s and are left", limit)
