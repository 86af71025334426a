"""Which release a worker prepares when another one comes meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Literal, cast

from models.domain.releases import Release, Rollout, RolloutMode
from streams.agents.releases import ReleaseFeed
from streams.agents.retry import Retry
from streams.agents.switching import Switcher
from streams.metrics import Metrics


def release(
    sequence: int, *, by: Literal["trainer", "operator"] = "trainer", action: Literal["promote", "rollback"] = "promote"
) -> Release:
    return Release(
        sequence=sequence, version=f"m{sequence}", previous=None, action=action, by=by, reason="a test", at_ms=0
    )


class Said:
    """What the topic said, the newest release last."""

    champion: Release | None = None
    malformed = 0

    def read(self, records: list[Release]) -> bool:
        self.champion = records[-1]
        return True


class Worker:
    """Every version has the served items' vectors, and takes until `ready` is set to be opened."""

    def __init__(self, mode: RolloutMode = "at_once") -> None:
        self.release: Release | None = None
        self.model = SimpleNamespace(bundle=SimpleNamespace(version="m0", items_version="items"))
        self.feed = ReleaseFeed(cast(Any, Said()), Metrics())
        self.feed.read_to_its_end = self._nothing
        self.opening: list[str] = []
        self.served: list[str] = []
        self.ready = asyncio.Event()
        self.switcher = Switcher(
            serving=cast(Any, self),
            releases=self.feed,
            open_model=cast(Any, self._open),
            filler=cast(Any, None),
            stores=cast(Any, SimpleNamespace(item_versions=self._none)),
            kept=(),
            items_version_of=self._items_of,
            forget=self._forget,
            retry=Retry(lambda *_: None),
            metrics=Metrics(),
            rollout=Rollout(mode, trial_ms=0),
        )

    @property
    def bundle(self) -> Any:
        return self.model.bundle

    def wall_ms(self) -> int:
        return 1

    async def exchange(self, model: Any, newer: Release, vectors: object) -> bool:
        self.model, self.release = model, newer
        self.served.append(newer.version)
        return True

    async def say(self, *releases: Release) -> None:
        await self.feed.apply(releases)
        await asyncio.sleep(0.01)

    async def _open(self, version: str, served: object) -> Any:
        self.opening.append(version)
        await self.ready.wait()
        return SimpleNamespace(
            bundle=SimpleNamespace(version=version, items_version="items", ranker=SimpleNamespace(initial_weights=None))
        )

    async def _none(self) -> list[str]:
        return []

    async def _items_of(self, version: str) -> str:
        return "items"

    async def _forget(self, versions: set[str]) -> None:
        return None

    async def _nothing(self) -> None:
        return None


async def played(worker: Worker, second: Release) -> Worker:
    """A release is being opened when the second one comes; then whatever is opened is ready."""
    running = asyncio.create_task(worker.switcher.run())
    try:
        await worker.say(release(1))
        assert worker.opening == ["m1"]
        await worker.say(second)
        worker.ready.set()
        async with asyncio.timeout(5):
            while worker.served[-1:] != [second.version]:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.wait({running})
    return worker


def test_a_trainers_next_release_waits_until_the_one_before_serves() -> None:
    async def run() -> Worker:
        return await played(Worker(), release(2))

    worker = asyncio.run(run())
    assert (worker.opening, worker.served) == (["m1", "m2"], ["m1", "m2"])


def test_a_rollback_an_operators_release_and_any_during_a_rollout_put_the_one_before_aside() -> None:
    async def run(second: Release, mode: RolloutMode = "at_once") -> list[str]:
        return (await played(Worker(mode), second)).served

    assert asyncio.run(run(release(2, action="rollback"))) == ["m2"]
    assert asyncio.run(run(release(2, by="operator"))) == ["m2"]
    assert asyncio.run(run(release(2), "canary")) == ["m2"]
