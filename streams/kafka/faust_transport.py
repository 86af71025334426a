"""The transport Faust asks for a consumer and a producer, given to one app and registered nowhere."""

from __future__ import annotations

from typing import Any

from faust.transport import base
from faust.transport.drivers.aiokafka import Producer

from streams.kafka.faust_consumer import ChunkConsumer, ChunkConsumerConfig


class _UnusedProducer(Producer):
    """Faust's streams look at a producer's buffer; nothing is ever sent through it and it is never started."""

    async def flush(self) -> None:
        """Nothing to flush."""


class ChunkTransport(base.Transport):
    """Given to one app; nothing is registered globally."""

    Consumer = ChunkConsumer
    Producer = _UnusedProducer
    driver_version = "chunks"
    default_port = 9092

    def __init__(self, app: Any, config: ChunkConsumerConfig) -> None:
        super().__init__(url=[], app=app)
        self.config = config
