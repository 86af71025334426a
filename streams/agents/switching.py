"""Follows the topic `models` and brings this worker to the newest champion while it serves.

Owns what is prepared, when it is given up and when it is tried again. How a version is opened is handed in; what is
exchanged is `streams.agents.serving`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Protocol

from models.domain.errors import BundleError, RecommenderError
from models.domain.ports import Stores
from models.domain.releases import Release, Rollout
from models.encoders.bundle import Bundle
from streams.agents.considerate import PAUSES
from streams.agents.filling import Filler
from streams.agents.items import Filling, ItemSide
from streams.agents.next_vectors import NextVectors
from streams.agents.releases import ReleaseFeed
from streams.agents.retry import Retry
from streams.agents.serving import ExchangeError, Model, Serving
from streams.metrics import Metrics

log = logging.getLogger(__name__)

# How often vectors that other workers write are looked for: a release is minutes old before anybody misses it, and each
# look asks for every missing item.
POLL_SECONDS = 0.25
# No vector came for that long: a partition may have been with another worker for a moment, so the topic is read again.
AGAIN_SECONDS = 10.0
# The served version's own collection is looked at ever more rarely: what it lacks may be another worker's to encode.
LONGEST_AGAIN_SECONDS = 300.0
# Still none: its owner cannot encode it, or nobody owns it. The served version goes on.
STALLED_SECONDS = 60.0
# A registry or a store that was away is asked again after this time, while its release is the newest.
RETRY_SECONDS = 30.0


class OpenModel(Protocol):
    """Fetches, verifies, opens and warms up a version, off the event loop."""

    def __call__(self, version: str, served: Bundle) -> Awaitable[Model]:
        """Raises: BundleError for what cannot be served here; errors that say whether they are `retryable`."""
        ...


class Switcher:
    """Runs beside the worker's road.

    Args:
        filler: makes what brings a collection up to the topic `items`.
        kept: item collections that are never dropped, besides the served one and the former champion's.
        items_version_of: model version -> its item collection's; raises like `open_model`.
        forget: called with the versions that are still of use, so that other local copies can go.
        rollout: how a promoted version reaches everybody.
        refused: a release that was refused before.
    """

    def __init__(
        self,
        *,
        serving: Serving,
        releases: ReleaseFeed,
        open_model: OpenModel,
        filler: Callable[[Filling], Filler],
        stores: Stores,
        kept: Iterable[str],
        items_version_of: Callable[[str], Awaitable[str]],
        forget: Callable[[set[str]], Awaitable[None]],
        retry: Retry,
        metrics: Metrics,
        rollout: Rollout,
        refused: Release | None = None,
    ) -> None:
        self._serving, self._releases, self._open_model, self._filler = serving, releases, open_model, filler
        self._stores, self._kept, self._items_version_of, self._forget = stores, set(kept), items_version_of, forget
        self._retry, self._metrics, self._rollout, self._refused = retry, metrics, rollout, refused

    async def run(self) -> None:
        """Until cancelled. Raises what leaves this worker half-way: it must end then."""
        await self._tidy()
        while True:
            release = await self._releases.other_than(self._serving.release, self._refused)
            if release.version == self._serving.bundle.version:
                self._serving.accept(release)
                continue
            attempt = asyncio.create_task(self._attempt(release), name=f"switch to {release.version}")
            withdrawn = asyncio.create_task(self._withdrawn(release))
            try:
                await asyncio.wait({attempt, withdrawn}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (attempt, withdrawn):
                    task.cancel()
                await asyncio.wait({attempt, withdrawn})
            if attempt.cancelled():
                log.info("a newer release came before %s was ready", release.version)
            elif attempt.result():
                await self._tidy()
            elif self._refused != release:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._releases.other_than(release)

    async def fill_served(self) -> None:
        """Encode what the served version's own collection lacks: a worker that starts on a version for the first time
        finds most of `items` already consumed by its group. Returns when nothing is missing."""
        serving, pause = self._serving, AGAIN_SECONDS
        while serving.feed.missing:
            model = serving.model
            with self._filling(model.side) as filling:
                try:
                    await self._filler(filling).run()
                except RecommenderError as error:
                    log.warning("the vectors of %s are not complete yet: %s", model.bundle.version, error)
            serving.feed.look()
            until, pause = time.monotonic() + pause, min(2 * pause, LONGEST_AGAIN_SECONDS)
            while serving.feed.missing and serving.model is model and time.monotonic() < until:
                await asyncio.sleep(POLL_SECONDS)

    async def _withdrawn(self, release: Release) -> None:
        """Returns when a newer release makes this one pointless: a rollback, an operator's, anything during a trial.

        One that the trainer promotes goes on from this one. It waits its turn: where releases come faster than they are
        prepared, a worker that began anew with each would serve none of them.
        """
        known = [release]
        while True:
            newest = await self._releases.other_than(*known)
            if newest.action == "rollback" or newest.by == "operator" or self._rollout.mode != "at_once":
                return
            known.append(newest)

    async def _attempt(self, release: Release) -> bool:
        """Returns: whether the release is served now; where not, it was counted and logged, and nothing changed."""
        version, started = release.version, time.monotonic()
        try:
            model = await self._open_model(version, self._serving.bundle)
            if model.bundle.items_version == self._serving.bundle.items_version:
                # The very same vectors: nothing to wait for.
                self._prepared(started)
                await self._try_out(model, release, None, None)
                await self._serving.exchange(model, release, None)
            else:
                await self._gather(model, release, started)
        except ExchangeError:
            raise
        except Exception as error:
            self._give_up(release, error)
            return False
        took = time.monotonic() - started
        self._metrics.count_switch("switched")
        log.info("model switched", extra={"model": version, "sequence": release.sequence, "seconds": round(took, 3)})
        return True

    def _prepared(self, started: float) -> None:
        self._metrics.observe_switch("prepare", time.monotonic() - started)

    async def _try_out(
        self, model: Model, release: Release, vectors: NextVectors | None, filling: Filling | None
    ) -> None:
        """Returns when the release may serve everybody. A newer one, such as a rollback, ends the trial by cancelling.

        Args:
            vectors, filling: of the model, kept up to date meanwhile; None where its items are the served version's.
        """
        serving, rollout = self._serving, self._rollout
        until_ms = rollout.until_ms(release)
        # What a log-linear ranker learns it learns from all users, so that a share of them cannot tell its worth.
        if (
            rollout.mode == "at_once"
            or model.bundle.ranker.initial_weights is not None
            or until_ms <= serving.wall_ms()
        ):
            return
        log.info("trial begins", extra={"model": release.version, "mode": rollout.mode, "share": rollout.share})
        serving.begin_trial(model, vectors, rollout.mode, rollout.share)
        try:
            while serving.wall_ms() < until_ms:
                await asyncio.sleep(POLL_SECONDS)
                if vectors is not None:
                    await vectors.fetch()
                if filling is not None and filling.failure is not None:
                    raise filling.failure
        finally:
            await serving.end_trial()

    def _give_up(self, release: Release, error: Exception) -> None:
        final = is_final(error)
        self._metrics.count_switch("refused" if final else "failed")
        if final:
            self._refused = release
        log.error(
            "release %d (%s) is %s, %s is served on: %s",
            release.sequence,
            release.version,
            "refused" if final else "not ready and will be tried again",
            self._serving.bundle.version,
            error,
            exc_info=not isinstance(error, RecommenderError),
        )

    async def _gather(self, model: Model, release: Release, started: float) -> None:
        """Have every item's vector in the new collection and in memory, then serve. Raises: SwitchStalledError."""
        serving = self._serving
        with self._filling(model.side) as filling:
            vectors = await serving.feed.prepare(model.collection, model.bundle.item_encoder.placeholder, self._retry)
            try:
                await vectors.cover()
                filler = self._filler(filling)
                await filler.run(PAUSES)
                await self._wait_for(vectors, filler, filling)
                self._prepared(started)
                await self._try_out(model, release, vectors, filling)
                while not await serving.exchange(model, release, vectors):
                    await self._wait_for(vectors, filler, filling)
            finally:
                serving.feed.abandon()

    async def _wait_for(self, vectors: NextVectors, filler: Filler, filling: Filling) -> None:
        least, since, again = vectors.missing, time.monotonic(), time.monotonic()
        while True:
            await vectors.fetch()
            if not vectors.missing:
                return
            if filling.failure is not None:
                raise filling.failure
            now = time.monotonic()
            if vectors.missing < least:
                least, since, again = vectors.missing, now, now
            elif now - since > STALLED_SECONDS:
                raise SwitchStalledError(f"{least} items have had no vector for {STALLED_SECONDS:g} s")
            elif now - again > AGAIN_SECONDS:
                filler.again()
                again = now
            await filler.run(PAUSES)
            await asyncio.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _filling(self, side: ItemSide) -> Iterator[Filling]:
        filling = self._serving.owner.begin(side)
        try:
            yield filling
        finally:
            self._serving.owner.end(filling)

    async def _tidy(self) -> None:
        """Keep the served version and the former champion, for a roll-back; drop what is older."""
        serving = self._serving
        try:
            there = set(await self._stores.item_versions())
            # Whoever made one of these had read its release: after this we have read it too, and tell old from coming.
            await self._releases.read_to_its_end()
            newest = self._releases.champion
            if newest is None or newest != serving.release:
                return
            keep = {serving.bundle.items_version, *self._kept}
            if newest.previous is not None:
                keep.add(await self._items_version_of(newest.previous))
            for version in there - keep:
                await self._stores.drop_items(version)
                log.info("item vectors dropped", extra={"version": version})
            await self._forget({serving.bundle.version, newest.previous or ""})
        except RecommenderError as error:
            log.warning("old item collections are left where they are: %s", error)


def is_final(error: Exception) -> bool:
    """Whether the same version would fail the same way again."""
    return isinstance(error, BundleError) or getattr(error, "retryable", True) is False


class SwitchStalledError(RecommenderError):
    """A version whose items do not all get their vectors."""
