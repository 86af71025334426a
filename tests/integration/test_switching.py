"""A worker that changes model versions while it serves, seen from outside: releases go in, lists tell their version."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.domain.events import Item
from models.domain.releases import CHAMPION, Release, encode_release
from models.encoders.bundle import load_bundle
from models.encoders.manifest import items_version, read_manifest
from streams.agents.items import encode_items
from tests.services.deployment import (
    Deployment,
    ListReader,
    assert_newest_lists,
    assert_states_follow,
    until_consumed,
)
from tests.services.streams import expected_touches, make_events, make_items
from tests.services.versions import Models, broken_step, learned, other_ranker, other_text, told_by
from tests.services.worker import WorkerProcess, until

pytestmark = pytest.mark.integration

ITEMS = 60
IDS = [item["item_id"] for item in make_items(ITEMS)]


@pytest.fixture(scope="session")
def made(worker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles by what they are: another ranker, two learned ones, one that is broken, one of another dimension, one of
    another text model."""
    folder = tmp_path_factory.mktemp("made")
    bundles = {
        "ranker": other_ranker(folder / "ranker"),
        "learned": learned(folder / "learned", worker_bundle, IDS, seed=1, mark=1),
        "other": learned(folder / "other", worker_bundle, IDS, seed=2, mark=2),
        "narrow": learned(folder / "narrow", worker_bundle, IDS, seed=3, width=32),
    }
    bundles["text"] = other_text(Path(shutil.copytree(bundles["other"], folder / "text")))
    bundles["broken"] = broken_step(Path(shutil.copytree(bundles["other"], folder / "broken")))
    return bundles


def version(bundle: Path) -> str:
    return read_manifest(bundle).version


async def send_items(deployed: Deployment, items: Sequence[dict[str, Any]] = ()) -> None:
    await deployed.send(deployed.names.items, [(item["item_id"], item) for item in items or make_items(ITEMS)])


async def started(deployed: Deployment, name: str = "worker", **settings: Any) -> WorkerProcess:
    worker = await deployed.started(name, **settings)
    await until(
        lambda: (
            worker.metric("streamrec_items_total", outcome="encoded")
            + worker.metric("streamrec_items_total", outcome="unchanged")
            >= ITEMS
        ),
        "the catalogue has its vectors",
    )
    return worker


async def until_serves(worker: WorkerProcess, wanted: str) -> float:
    def serves() -> bool:
        assert worker.running, f"{worker.name} ended with status {worker.status}:\n{worker.log_tail()}"
        return worker.metric("streamrec_model_info", version=wanted) == 1

    return await until(serves, f"{worker.name} serves {wanted}:\n{worker.log_tail(5)}")


def switches(worker: WorkerProcess, outcome: str) -> float:
    return worker.metric("streamrec_model_switches_total", outcome=outcome)


async def test_releases_change_the_version_of_lists_and_no_event_is_lost_or_folded_twice(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models = Models(deployed)
    await send_items(deployed)
    worker = await started(deployed)
    events = make_events(4_000, users=80, items=ITEMS)
    order = [deployed.bundle, *(made[name] for name in ("ranker", "learned", "other"))]
    part = len(events) // 5
    for at, bundle in enumerate(order):
        if at:
            await models.promote(bundle)
        # Events go on while the version is prepared, and after it is served.
        await deployed.send_events(events[at * part : (at + 1) * part])
        await until_serves(worker, version(bundle))
    await models.log.roll_back(by="operator", reason="a test")
    await deployed.send_events(events[4 * part :])
    await until_serves(worker, version(made["learned"]))
    last = make_events(200, users=80, items=ITEMS, first=len(events))
    await deployed.send_events(last)
    await until_consumed([worker], deployed)
    assert switches(worker, "switched") == 4
    assert switches(worker, "refused") == switches(worker, "failed") == 0
    assert worker.metric("streamrec_refolded_states_total") > 50
    assert worker.metric("streamrec_model_sequence") == 4
    pauses = worker.metric("streamrec_model_switch_seconds_sum", phase="pause")
    prepared = worker.metric("streamrec_model_switch_seconds_sum", phase="prepare")
    worker.stop()

    states = await deployed.states()
    assert_states_follow(states, [*events, *last])
    assert await deployed.touches() == expected_touches([*events, *last])
    await assert_newest_lists(deployed, states)
    made_by = await versions_of_lists(deployed)
    assert list(made_by[-1])[-1] == version(made["learned"])
    assert {found for one in made_by for found in one} == {version(bundle) for bundle in order}
    marks = {version(made[name]): mark for mark, name in enumerate(("learned", "other"), 1)}
    for one in await deployed.lists():
        if one.items and one.model_version in marks:
            mark = {marks[one.model_version]}
            assert told_by(one) == (mark, mark), f"a list of mixed versions: {one}"
    print(f"four switches: {pauses / 4 * 1e3:.1f} ms of pause and {prepared / 4:.2f} s of preparation each")


async def versions_of_lists(deployed: Deployment) -> list[dict[str, int]]:
    """Of each partition of `recommendations`, the versions in the order in which their lists came."""
    found: dict[int, dict[str, int]] = {}
    for record in await deployed.read(deployed.names.recommendations):
        if record.value is not None:
            made_by = deployed.contract.decode_recommendation(record.value).model_version
            found.setdefault(record.partition, {})
            found[record.partition].pop(made_by, None)
            found[record.partition][made_by] = 1
    return list(found.values())


async def test_what_cannot_be_served_is_refused_and_the_former_version_goes_on(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models = Models(deployed)
    await send_items(deployed)
    worker = await started(deployed)
    served = version(deployed.bundle)
    async with ListReader(deployed) as reader:
        for number, name in enumerate(("broken", "narrow"), 1):
            await models.promote(made[name])
            await until(lambda n=number: switches(worker, "refused") == n, f"{name} is refused")
            await deployed.send_events([event("u", "i1", number)])
            assert (await reader.after(f"u-{number}")).model_version == served
        damaged = deployed.data_dir / "models" / version(made["learned"]) / "item_table.npy"
        models.add(made["learned"])
        damaged.write_bytes(damaged.read_bytes()[:-8])
        await models.log.promote(read_manifest(made["learned"]), by="operator", reason="damaged")
        await until(lambda: switches(worker, "refused") == 3, "a damaged file is refused")
        absent = Release(
            sequence=4, version="learned-00000000dead", previous=None, action="promote", by="operator",
            reason="a version that nobody published", at_ms=1,
        )  # fmt: skip
        await deployed.send(
            deployed.names.models,
            [(CHAMPION, encode_release(absent)), (CHAMPION, b"{no json"), ("x", b"[]"), ("", b"{}")],
        )
        await until(lambda: switches(worker, "refused") == 4, "an absent version is refused")
        await until(lambda: worker.metric("streamrec_malformed_releases_total") == 3, "nonsense is counted")
        await models.promote(made["other"])
        await until_serves(worker, version(made["other"]))
        await deployed.send_events([event("u", "i2", 9)])
        assert (await reader.after("u-9")).model_version == version(made["other"])
    worker.stop()


def event(user: str, item: str, number: int) -> dict[str, Any]:
    return {
        "type": "view", "event_id": f"{user}-{number}", "user_id": user, "item_id": item,
        "event_time_ms": 1_700_000_000_000 + 60_000 * number,
    }  # fmt: skip


async def test_a_restarted_worker_serves_the_champion_and_one_that_cannot_have_it_serves_its_settings(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models = Models(deployed)
    await send_items(deployed)
    worker = await started(deployed)
    await models.promote(made["learned"])
    await until_serves(worker, version(made["learned"]))
    worker.stop()

    worker.start()
    await worker.until_ready()
    assert worker.metric("streamrec_model_info", version=version(made["learned"])) == 1
    assert worker.metric("streamrec_model_sequence") == 1
    worker.stop()

    # A version that this deployment has no vectors of yet, released while nobody ran: the items were consumed long ago.
    await models.promote(made["other"])
    async with ListReader(deployed) as reader:
        worker.start()
        await worker.until_ready()
        await until(
            lambda: worker.metric("streamrec_items_total", outcome="encoded") >= ITEMS, "every item is encoded anew"
        )
        await deployed.send_events([event("v", "i3", 1)])
        assert (await reader.after("v-1")).model_version == version(made["other"])
        worker.stop()

        shutil.rmtree(deployed.data_dir / "models" / version(made["other"]))
        shutil.rmtree(deployed.data_dir / "bundles" / version(made["other"]))
        worker.start()
        await worker.until_ready()
        assert worker.metric("streamrec_model_info", version=version(deployed.bundle)) == 1
        assert switches(worker, "refused") == 1
        assert "cannot be served" in worker.log_path.read_text()
        worker.stop()

        still = deployed.worker("still", follow_models="false")
        still.start()
        await still.until_ready()
        await deployed.send_events([event("v", "i4", 2)])
        assert (await reader.after("v-2")).model_version == version(deployed.bundle)
        assert switches(still, "refused") == 0
        still.stop()


async def test_two_workers_share_the_work_and_items_that_arrive_meanwhile_are_in_both_collections(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models, names = Models(deployed), deployed.names
    store = deployed.store()
    store.start()
    await store.until_ready()
    await send_items(deployed)
    first = await deployed.started("first", store=store)
    second = await deployed.started("second", store=store)
    both = (first, second)
    await until_consumed(both, deployed)
    await models.promote(made["learned"])
    late = [{"item_id": f"late{n}", "title": f"A late violin story {n}"} for n in range(20)]
    await deployed.send(names.items, [(item["item_id"], item) for item in late])
    await deployed.send(names.items, [("i5", None)])
    for worker in both:
        await until_serves(worker, version(made["learned"]))
    await until_consumed(both, deployed)
    await models.promote(made["other"])
    await models.promote(made["ranker"])
    for worker in both:
        await until_serves(worker, version(made["ranker"]))
    await models.promote(made["learned"])
    for worker in both:
        await until_serves(worker, version(made["learned"]))
    assert sum(switches(worker, "failed") for worker in both) == 0
    for worker in both:
        worker.stop()
    store.stop()
    kept = {items_version(read_manifest(bundle)) for bundle in (deployed.bundle, made["ranker"], made["learned"])}
    from streams.stores.embedded import EmbeddedStores

    stores = EmbeddedStores(deployed.data_dir)
    try:
        assert set(await stores.item_versions()) == kept, "what is neither served nor the former champion's is dropped"
        expected = {*IDS, *(item["item_id"] for item in late)} - {"i5"}
        for collection in kept:
            index = await stores.items(version=collection, dimension=65)
            assert {record.item_id async for record in index.scan()} == expected, collection
    finally:
        await stores.close()


async def test_the_language_model_runs_at_a_switch_where_the_text_model_is_another_one_and_only_there(
    deployed: Deployment, made: dict[str, Path]
) -> None:
    models = Models(deployed)
    await send_items(deployed)
    worker = await started(deployed)
    worker.stop()
    worker.start()  # what the former process remembered of texts is gone
    await worker.until_ready()

    def filled(outcome: str) -> float:
        return worker.metric("streamrec_filled_items_total", outcome=outcome)

    for number, name in enumerate(("learned", "other"), 1):
        await models.promote(made[name])
        await until_serves(worker, version(made[name]))
        assert (filled("reused"), filled("encoded")) == (number * ITEMS, 0)
    await models.promote(made["text"])
    await until_serves(worker, version(made["text"]))
    assert (filled("reused"), filled("encoded")) == (2 * ITEMS, ITEMS)
    worker.stop()

    bundles = [load_bundle(made[name]) for name in ("other", "text")]
    items = [msgspec.convert(item, Item) for item in make_items(ITEMS)]
    from streams.stores.embedded import EmbeddedStores

    stores = EmbeddedStores(deployed.data_dir)
    try:
        for bundle in bundles:
            index = await stores.items(version=bundle.items_version, dimension=65)
            found = [record.vector for record in await index.get_many(IDS) if record is not None]
            right = encode_items(items, bundle.text_encoder, bundle.item_encoder)
            np.testing.assert_allclose(np.stack(found), np.stack(right), atol=1e-6)
    finally:
        await stores.close()
