"""Brings a collection of items up to the topic `items`: what this worker owns of it, encoded once.

A collection of another model version starts empty, and the consumer group has long passed the messages of most items:
they are read again from the compacted topic. Contents are kept nowhere else, since a catalogue's texts take gigabytes
where its vectors take megabytes, and only an owner has use for them, a few seconds a version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from streams.agents.considerate import pause_after
from streams.agents.items import ENCODE_BATCH, Filling, ItemOwner
from streams.agents.retry import Retry
from streams.kafka.broadcast import read_to_end
from streams.kafka.connection import KafkaConnection


class Filler:
    """Reads the topic for one filling.

    Args:
        owned: partitions of the topic that this worker owns now.
    """

    def __init__(
        self,
        owner: ItemOwner,
        filling: Filling,
        connection: KafkaConnection,
        topic: str,
        owned: Callable[[], set[int]],
        retry: Retry,
    ) -> None:
        self._owner, self._filling, self._retry = owner, filling, retry
        self._connection, self._topic, self._owned = connection, topic, owned
        self._done: set[int] = set()

    async def run(self, pauses: float = 0.0) -> None:
        """Returns when every message of the owned partitions is in the collection, partitions that came meanwhile
        included.

        Args:
            pauses: after each batch, as a multiple of the time it took.
        Raises: BroadcastError, ItemIndexError, EncoderError.
        """
        self._done &= self._owned()
        while wanted := self._owned() - self._done:
            batch: list[Any] = []
            seen = 0
            async for record in read_to_end(self._connection, self._topic, client_id="streamrec-filler"):
                seen += 1
                if seen % ENCODE_BATCH == 0:
                    await asyncio.sleep(0)  # what a fetch brought is handed over without a pause: events wait meanwhile
                if record.partition in wanted:
                    batch.append(record)
                if len(batch) == ENCODE_BATCH:
                    started = time.monotonic()
                    await self._owner.fill(self._filling, batch, self._retry)
                    batch = []
                    await pause_after(started, pauses)
            await self._owner.fill(self._filling, batch, self._retry)
            if self._filling.failure is not None:
                raise self._filling.failure
            self._done |= wanted

    def again(self) -> None:
        """Begin anew with the next `run`: a partition may have been elsewhere for a moment."""
        self._done = set()
