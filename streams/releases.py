"""The topic `models`: read by everybody, written by the trainer and by operators. Which messages, the domain says."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models.domain.errors import EventDecodeError
from models.domain.release_log import By, ReleaseError, Releases, add, promote, roll_back
from models.domain.releases import CHAMPION, ModelEntry, Release, encode_release
from streams.kafka.admin import TopicError, partition_counts
from streams.kafka.broadcast import read_to_end
from streams.kafka.connection import KafkaConnection
from streams.kafka.publisher import Message, Publisher

if TYPE_CHECKING:
    from models.encoders.manifest import Manifest

log = logging.getLogger(__name__)


class ReleaseConflictError(ReleaseError):
    """Somebody else released at the same moment, and that release holds. The same call decides anew."""

    def __init__(self, wanted: Release, champion: Release) -> None:
        super().__init__(
            f"{wanted.version} is not champion: {champion.by} released {champion.version} at the same moment"
        )
        self.champion = champion


class ReleaseLog:
    """What `models` says, and the way to say something there.

    `read` may be the callback of a broadcast reader, in any mixture with `refresh`: a message older than what is known
    under its key changes nothing.

    Args:
        publisher: started by its owner; None for a log that is only read.
        clock: milliseconds since 1970.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        publisher: Publisher | None = None,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.releases = Releases()
        self.malformed = 0
        """Messages that were passed over, since they say nothing."""
        self._connection, self._topic, self._publisher, self._clock = connection, topic, publisher, clock
        self._read: dict[tuple[bytes | None, int], int] = {}

    @property
    def champion(self) -> Release | None:
        return self.releases.champion

    def read(self, records: Iterable[Any]) -> bool:
        """Take records of the topic in. Returns: whether something changed. A malformed one is logged and counted."""
        changed = False
        for record in records:
            # What is newer under a key, offsets of its partition tell (another one only after partitions were added).
            place = record.key, record.partition
            if self._read.get(place, -1) >= record.offset:
                continue
            self._read[place] = record.offset
            try:
                changed |= self.releases.update(record.key, record.value)
            except EventDecodeError as error:
                self.malformed += 1
                log.warning("%s/%d offset %d passed over: %s", record.topic, record.partition, record.offset, error)
        return changed

    async def refresh(self) -> Releases:
        """Read the topic to its end. Raises: TopicError where there is none; BroadcastError."""
        if self._topic not in await partition_counts(self._connection, [self._topic]):
            raise TopicError(f"topic {self._topic} does not exist: run `streamrec topics create`", topic=self._topic)
        async for record in read_to_end(self._connection, self._topic, client_id="streamrec-releases"):
            self.read([record])
        return self.releases

    async def promote(
        self, manifest: Manifest, *, by: By, reason: str, figures: Mapping[str, float] | None = None
    ) -> Release:
        """Make the version of the manifest champion; one that is stays it.

        Args:
            figures: added to the metrics of its entry.
        Raises: ReleaseConflictError; BroadcastError, PublishError, TopicError.
        """
        decided = promote(await self.refresh(), entry_of(manifest, figures), by=by, reason=reason, now_ms=self._clock())
        return await self._write(*decided)

    async def roll_back(self, version: str | None = None, *, by: By, reason: str) -> Release:
        """Go back to a former champion; None for the one before.

        Raises: ReleaseError where there is none; ReleaseConflictError; BroadcastError, PublishError, TopicError.
        """
        decided = roll_back(await self.refresh(), version, by=by, reason=reason, now_ms=self._clock())
        return await self._write(*decided)

    async def add(self, manifest: Manifest) -> None:
        """Make a version known as candidate. Raises: BroadcastError, PublishError, TopicError."""
        await self._send(add(await self.refresh(), entry_of(manifest)))

    async def remove(self, versions: Sequence[str]) -> None:
        """Forget versions that the registry holds no more. Raises: PublishError."""
        await self._send_messages([Message(self._topic, version.encode(), None) for version in versions])

    async def _write(self, release: Release, entries: Sequence[ModelEntry]) -> Release:
        if release == self.champion:
            return release
        # The release alone first: from it everything else can be told.
        await self._send([release])
        champion = (await self.refresh()).champion or release
        if champion.version != release.version:
            if champion.sequence > release.sequence:
                # Ours came after a newer one and is what compaction would leave.
                await self._send([champion])
            raise ReleaseConflictError(release, champion)
        await self._send(entries)
        await self.refresh()
        return release

    async def _send(self, messages: Sequence[Release | ModelEntry]) -> None:
        await self._send_messages(
            [
                Message(
                    self._topic,
                    (CHAMPION if isinstance(message, Release) else message.version).encode(),
                    encode_release(message),
                )
                for message in messages
            ]
        )

    async def _send_messages(self, messages: Sequence[Message]) -> None:
        if self._publisher is None:
            raise ReleaseError("this log of releases is only read")
        await self._publisher.send_many(messages)


async def read_releases(connection: KafkaConnection, topic: str) -> Releases:
    """What the topic says now. Raises: TopicError where there is none; BroadcastError."""
    return await ReleaseLog(connection, topic).refresh()


def entry_of(manifest: Manifest, figures: Mapping[str, float] | None = None) -> ModelEntry:
    """What is known of a version from its manifest, as candidate."""
    metrics = {**manifest.metrics, **(figures or {})}
    return ModelEntry(
        version=manifest.version,
        parent=manifest.parent,
        created_ms=manifest.created_ms,
        state="candidate",
        # JSON has no NaN: the message would not be readable.
        metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
        at_ms=manifest.created_ms,
    )
