"""A stream of events through real workers over Kafka, block by block, with or without a trainer beside them.

What is measured is the worker's own online metric: the list asked just before each choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from streams.kafka.embedded_broker import BrokerProcess
from tests.services.deployment import Deployment, deployment
from tests.services.worker import TrainerProcess, WorkerProcess, until

PARTITIONS = 2
# A block is over when every event of it is folded; a worker that is far behind is given this long.
BLOCK_SECONDS = 600.0


class Block(NamedTuple):
    """What the worker counted over some events."""

    events: int
    scored: int
    ndcg_sum: float
    hits: float
    versions: int
    """Model versions that asked a list in it."""
    seconds: float

    @property
    def ndcg(self) -> float:
        return self.ndcg_sum / self.scored if self.scored else 0.0

    @property
    def hit_rate(self) -> float:
        return self.hits / self.scored if self.scored else 0.0


def over(blocks: Sequence[Block]) -> Block:
    """Several blocks as one."""
    return Block(*(sum(getattr(block, name) for block in blocks) for name in Block._fields))


class Replay:
    """One deployment that plays a stream."""

    def __init__(self, deployed: Deployment, bundle: Path) -> None:
        self.deployed, self.bundle = deployed, bundle
        self.worker: WorkerProcess
        self.trainer: TrainerProcess | None = None
        self.sent = 0

    async def start_worker(self, **settings: str) -> None:
        self.worker = await self.deployed.started(bundle=str(self.bundle), **settings)
        self.sent = 0

    async def start_trainer(self, **settings: str) -> None:
        self.trainer = self.deployed.trainer(bundle=str(self.bundle), **settings)
        self.trainer.start()
        await self.trainer.until_ready()

    async def declare(self, items: Sequence[Mapping[str, Any]]) -> None:
        await self.deployed.send(self.deployed.names.items, [(str(item["item_id"]), item) for item in items])

    async def play(self, events: Sequence[Mapping[str, Any]], *, rate: float = 0.0) -> Block:
        """Publish events (at most `rate` a second; 0 = at once) and wait until all are folded."""
        before, started = self._counted(), time.monotonic()
        step = max(1, int(rate / 20)) if rate else len(events)
        for at in range(0, len(events), step):
            await self.deployed.send_events(events[at : at + step])
            if rate:
                await asyncio.sleep(max(0.0, started + (at + step) / rate - time.monotonic()))
        self.sent += len(events)
        wanted = self.sent

        def folded() -> bool:
            assert self.worker.running, f"the worker ended:\n{self.worker.log_tail()}"
            return self.worker.metric("streamrec_events_total") >= wanted

        await until(folded, f"{len(events)} events are folded", seconds=BLOCK_SECONDS)
        after = self._counted()
        return Block(len(events), *(b - a for a, b in zip(before, after, strict=True)), time.monotonic() - started)

    def _counted(self) -> tuple[int, float, float, int]:
        found = [
            self.worker.metric(f"streamrec_online_{name}", list="asked")
            for name in ("scored_events_total", "ndcg_sum_total", "hits_total")
        ]
        switched = self.worker.metric("streamrec_model_switches_total", outcome="switched")
        return int(found[0]), found[1], found[2], int(switched)


@asynccontextmanager
async def replay(broker: BrokerProcess, prefix: str, folder: Path, bundle: Path) -> AsyncIterator[Replay]:
    async with deployment(broker, prefix, folder, bundle, partitions=PARTITIONS) as deployed:
        yield Replay(deployed, bundle)
