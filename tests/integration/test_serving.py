"""The exchange of a served model by itself: what changes, what waits for it, that nothing of the former one stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.domain.events import Item
from models.domain.releases import Release
from streams.agents.items import encode_items
from streams.container import Container, read_bundle
from streams.kafka.chunks import Chunk
from streams.settings import Settings
from tests.services.deployment import Deployment
from tests.services.versions import learned, other_ranker

pytestmark = pytest.mark.integration

IDS = [f"i{n}" for n in range(40)]
RELEASE = Release(sequence=1, version="", previous=None, action="promote", by="operator", reason="a test", at_ms=0)


class Record:
    """A record of `items` as a consumer hands it over."""

    def __init__(self, offset: int, item_id: str, title: str | None) -> None:
        self.offset, self.partition, self.key, self.headers = offset, 0, item_id.encode(), ()
        self.value = None if title is None else msgspec.json.encode({"item_id": item_id, "title": title})


@pytest.fixture
async def parts(deployed: Deployment, worker_bundle: Path) -> AsyncIterator[Container]:
    """The parts of a worker that consumes nothing: what it is told of items, the test says."""
    settings = Settings(
        kafka_bootstrap_servers=deployed.broker.bootstrap_servers,
        topic_prefix=deployed.prefix,
        data_dir=deployed.data_dir,
        follow_models=False,
        execution_providers=("CPUExecutionProvider",),
    )
    made = Container(settings, worker_bundle)
    try:
        await made.open()
        await tell(made, [Record(n, item_id, f"story {n}") for n, item_id in enumerate(IDS)])
        await made.catalogue_feed.fetch()
        yield made
    finally:
        await made.publisher.stop()
        await made.close()


async def tell(parts: Container, records: list[Record]) -> None:
    """As owner of all items, and as one who learns of them."""
    await parts.catalogue_feed.apply(records)
    await parts.owner.handle(Chunk(parts.names.items, 0, records, 0))


def vectors(parts: Container, ids: list[str], bundle: Any) -> tuple[np.ndarray, np.ndarray]:
    """Those that are served, and those that the bundle makes."""
    catalogue = parts.catalogue
    items = [Item(item_id=item_id, title=f"story {IDS.index(item_id)}") for item_id in ids]
    right = np.stack(encode_items(items, bundle.text_encoder, bundle.item_encoder))
    return catalogue.vectors[[catalogue.index[item_id] for item_id in ids]], right


async def test_an_exchange_changes_every_vector_and_leaves_no_session_of_the_former_model(
    parts: Container, worker_bundle: Path, tmp_path: Path
) -> None:
    path = learned(tmp_path / "learned", worker_bundle, IDS, seed=1)
    serving, feed, owner = parts.serving, parts.catalogue_feed, parts.owner
    bundle = read_bundle(parts.settings, path, serving.bundle.manifest.dimensions, serving.bundle)
    assert bundle.text_encoder is serving.bundle.text_encoder, "the same text model is not opened twice"
    model = await parts._with_index(bundle, parts.model_retry)
    filling = owner.begin(model.side)
    following = await feed.prepare(model.collection, bundle.item_encoder.placeholder, parts.model_retry)
    await following.cover()
    assert not await serving.exchange(model, RELEASE, following), "nobody has its vector yet"
    assert serving.bundle.version.startswith("bootstrap")

    # One is declared anew, one removed, one touched by an event alone, while the rest is filled in from older messages.
    await tell(parts, [Record(100, "i7", "story 8"), Record(101, "i9", None)])
    parts.catalogue.touch(parts.catalogue.intern("named by an event"))
    older = [Record(n, item_id, f"story {n}") for n, item_id in enumerate(IDS)]
    await owner.fill(filling, older, parts.model_retry)
    await following.fetch()
    assert following.missing == 0
    former = [weakref.ref(each) for each in (serving.bundle.user_encoder, serving.bundle.item_encoder)]
    former += [weakref.ref(serving.bundle.ranker), weakref.ref(serving.bundle)]
    assert await serving.exchange(model, RELEASE, following)
    feed.abandon()
    owner.end(filling)

    found, right = vectors(parts, [item for item in IDS if item not in ("i7", "i9")], bundle)
    np.testing.assert_allclose(found, right, atol=1e-6)
    at = parts.catalogue.index
    renamed = encode_items([Item(item_id="i7", title="story 8")], bundle.text_encoder, bundle.item_encoder)[0]
    np.testing.assert_allclose(parts.catalogue.vectors[at["i7"]], renamed, atol=1e-6)
    assert not parts.catalogue.vectors[at["i9"]].any(), "an older message does not bring back what was removed"
    assert await model.collection.get_many(["i9"]) == [None]
    named = parts.catalogue.vectors[at["named by an event"]]
    np.testing.assert_array_equal(named, bundle.item_encoder.placeholder("named by an event"))
    assert parts.road.text_encoder is bundle.text_encoder
    assert parts.road.pipeline.model_version == parts.road.ledger.model == bundle.version
    gc.collect()
    assert [each() for each in former] == [None] * 4


async def test_versions_with_one_item_side_share_a_collection_and_are_exchanged_without_vectors(
    parts: Container, tmp_path: Path
) -> None:
    serving = parts.serving
    path = other_ranker(tmp_path / "ranker")
    bundle = read_bundle(parts.settings, path, serving.bundle.manifest.dimensions, serving.bundle)
    assert bundle.items_version == serving.bundle.items_version
    model = await parts._with_index(bundle, parts.model_retry)
    assert model.collection is serving.model.collection
    before = parts.catalogue.vectors.copy()
    former = weakref.ref(serving.bundle)
    assert await serving.exchange(model, RELEASE, None)
    np.testing.assert_array_equal(parts.catalogue.vectors, before)
    assert parts.road.pipeline.weights is not None
    assert parts.road.pipeline.weights.weights.tolist() == bundle.ranker.initial_weights.tolist()  # type: ignore[union-attr]
    gc.collect()
    assert former() is None
    await tell(parts, [Record(200, "i50", "a new story")])
    await parts.catalogue_feed.fetch()
    assert parts.catalogue.has_vector[parts.catalogue.index["i50"]]
