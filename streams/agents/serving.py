"""What a worker serves: everything that belongs to one model version, exchanged at once between two micro-batches.

Knows every part that holds something of a model, and leaves nothing of the former one behind. What is served, and when,
is `streams.agents.switching`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from models.domain.deltas import Ledger
from models.domain.errors import RecommenderError
from models.domain.pipeline import NearestItems, Pipeline
from models.domain.ports import ItemIndex
from models.domain.releases import Release
from models.domain.trial import is_drawn
from models.encoders.bundle import Bundle
from streams.agents.catalogue import CatalogueFeed
from streams.agents.events import EventRoad
from streams.agents.items import ItemOwner, ItemSide
from streams.agents.next_vectors import NextVectors
from streams.agents.trial import Trial
from streams.metrics import Metrics


class Model(NamedTuple):
    """A version ready to be served."""

    bundle: Bundle
    collection: ItemIndex
    """Of its items."""
    nearest: NearestItems | None
    """How that collection is asked for candidates; None = an exact pass over the catalogue."""

    @property
    def side(self) -> ItemSide:
        bundle = self.bundle
        return ItemSide(self.collection, bundle.text_encoder, bundle.item_encoder, bundle.text_version)


class ExchangeError(RecommenderError):
    """An exchange that failed half-way."""


class Serving:
    """The served model and the parts that work with it.

    Args:
        release: by which it is served; None for the settings' own bundle.
        lock: held by whoever works with the model; the exchange waits for it.
        wall_ms: the machine's time.
    """

    def __init__(
        self,
        *,
        model: Model,
        release: Release | None,
        pipeline: Pipeline,
        ledger: Ledger,
        road: EventRoad,
        owner: ItemOwner,
        feed: CatalogueFeed,
        metrics: Metrics,
        lock: asyncio.Lock,
        wall_ms: Callable[[], int],
    ) -> None:
        self.model, self.release = model, release
        self.owner, self.feed = owner, feed
        self._pipeline, self._ledger, self._road = pipeline, ledger, road
        self._metrics, self._lock, self.wall_ms = metrics, lock, wall_ms
        self._tell()

    @property
    def bundle(self) -> Bundle:
        return self.model.bundle

    @property
    def sequence(self) -> int:
        """Of the release that is served, 0 before the first."""
        return 0 if self.release is None else self.release.sequence

    def accept(self, release: Release) -> None:
        """The release names what is served already."""
        self.release = release
        self._tell()

    async def exchange(self, model: Model, release: Release, vectors: NextVectors | None) -> bool:
        """Serve another model from the next micro-batch on.

        Args:
            vectors: of the catalogue; None where both models have one collection.
        Returns: False where vectors are missing still and nothing was changed.
        Raises: ExchangeError when parts of both models may be in place: the worker must end.
        """
        async with self._lock:
            # From here on nothing waits: whoever takes the lock next finds one whole model.
            if vectors is not None and vectors.missing:
                return False
            started = time.perf_counter()
            try:
                self._put(model, vectors)
            except Exception as error:
                raise ExchangeError(f"{model.bundle.version} was put in place by half: {error!r}") from error
            self.release = release
            self._metrics.observe_switch("pause", time.perf_counter() - started)
        self._tell()
        return True

    def _put(self, model: Model, vectors: NextVectors | None) -> None:
        bundle = model.bundle
        self._pipeline.use(bundle.user_encoder, bundle.ranker, bundle.version, bundle.review_value)
        self._pipeline.index = model.nearest
        self._ledger.use(bundle.version, self._pipeline.weights)
        if vectors is None:
            self._pipeline.catalogue.served.placeholder = bundle.item_encoder.placeholder
        else:
            self.feed.use(vectors)
        self.owner.use(model.side)
        self._road.text_encoder = bundle.text_encoder
        self.model = model

    def begin_trial(
        self, model: Model, vectors: NextVectors | None, mode: Literal["shadow", "canary"], share: float
    ) -> None:
        """Try a model on a share of the users from the next micro-batch on.

        Args:
            vectors: of the catalogue; None where both models have one collection.
        """
        bundle = model.bundle
        pipeline = self._pipeline.beside(
            bundle.user_encoder,
            bundle.ranker,
            bundle.version,
            bundle.review_value,
            model.nearest,
            None if vectors is None else vectors.vectors,
        )
        version = bundle.version
        self._road.trial = Trial(pipeline, bundle.text_encoder, mode, lambda user: is_drawn(user, version, share))
        self._metrics.set_trial(version, mode, share)

    async def end_trial(self) -> None:
        """Returns when no micro-batch plays the tried model any more: its vectors must keep step until then."""
        self._road.trial = None
        self._metrics.end_trial()
        async with self._lock:
            pass

    def watch(self) -> None:
        """Tell how old the served release is; called now and then."""
        if self.release is not None:
            self._metrics.set_model_age((self.wall_ms() - self.release.at_ms) / 1_000)

    def _tell(self) -> None:
        self._metrics.set_model(self.bundle.version)
        self._metrics.set_model_sequence(self.sequence)
        self._metrics.set_provider(self.bundle.providers[0])
        self.watch()
