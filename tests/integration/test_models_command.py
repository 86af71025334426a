"""`streamrec models` as people run it, against a real broker: versions come, are served, and are taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.encoders.manifest import read_manifest
from streams.kafka.embedded_broker import BrokerProcess, free_port
from streams.registry import Registry
from tests.services.bundles import learned_bundle, small_bundle
from tests.services.command import Command

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, worker_bundle: Path) -> list[Path]:
    """The bootstrap bundle and two learned ones that may take its place."""
    folder = tmp_path_factory.mktemp("learned")
    return [
        worker_bundle,
        learned_bundle(folder / "one", worker_bundle, 1),
        learned_bundle(folder / "two", worker_bundle, 2, items=40),
    ]


@pytest.fixture
def versions(bundles: list[Path]) -> list[str]:
    return [read_manifest(bundle).version for bundle in bundles]


@pytest.fixture
def command(kafka: BrokerProcess, topic_prefix: str, tmp_path: Path, bundles: list[Path]) -> Command:
    found = Command(
        tmp_path,
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        topic_prefix=topic_prefix,
        consumer_group=topic_prefix,
        data_dir=str(tmp_path / "data"),
        bundle=str(bundles[0]),
        onnx_threads="1",
    )
    found.run("topics", "create")
    return found


def listed(command: Command) -> dict[str, dict[str, Any]]:
    return {row["version"]: row for row in json.loads(command.run("models", "list", "--json").stdout)}


def states(command: Command) -> dict[str, str]:
    return {version: row["state"] for version, row in listed(command).items()}


def doctor(command: Command) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in json.loads(command.run("doctor", "--json", code=None).stdout)}


def test_versions_are_added_promoted_rolled_back_compared_and_pruned(
    command: Command, bundles: list[Path], versions: list[str]
) -> None:
    first, one, two = versions
    assert listed(command) == {}
    assert "no version was promoted" in doctor(command)["champion"]["message"]
    assert "nothing to roll back" in command.run("models", "rollback", code=2).stderr

    for bundle, version in zip(bundles, versions, strict=True):
        assert version in command.run("models", "add", bundle).stdout
    assert set(states(command).values()) == {"candidate"}
    row = listed(command)[one]
    manifest = read_manifest(bundles[1])
    assert (row["created_ms"], row["parent"], row["metrics"]) == (manifest.created_ms, None, manifest.metrics)
    assert row["created"].endswith("Z")
    assert row["in_registry"] is True

    command.run("models", "promote", first)
    assert "release 2, promote by operator" in command.run("models", "promote", one, "--reason", "a try").stdout
    assert states(command) == {first: "retired", one: "champion", two: "candidate"}
    assert "is champion already" in command.run("models", "promote", one).stdout
    command.run("models", "add", bundles[2], "--promote")
    assert states(command) == {first: "retired", one: "retired", two: "champion"}
    assert two in doctor(command)["champion"]["message"]
    assert "3 model versions" in doctor(command)["registry"]["message"]

    shown = command.run("models", "show", two).stdout
    assert "champion" in shown
    assert f"before: {one}" in shown
    table = command.run("models", "list").stdout
    assert "ndcg_at_10 0.1020" in table

    difference = json.loads(command.run("models", "diff", one, two, "--json").stdout)
    assert difference["items"]["items_a"] == 30
    assert (difference["items"]["added"], difference["items"]["removed"]) == (10, 0)
    assert 0 < difference["items"]["mean_change"] <= difference["items"]["largest_change"]
    assert difference["items"]["largest_item"].startswith("item ")
    assert difference["fields"]["metric ndcg_at_10"] == [0.101, 0.102]
    assert "dimensions" not in difference["fields"]
    assert "10 added" in command.run("models", "diff", one, two).stdout
    assert "the manifests say the same" in command.run("models", "diff", one, one).stdout

    assert f"champion  {one}" in command.run("models", "rollback").stdout
    assert states(command) == {first: "retired", one: "champion", two: "rolled_back"}
    assert f"champion  {first}" in command.run("models", "rollback").stdout
    assert states(command) == {first: "champion", one: "rolled_back", two: "rolled_back"}

    assert f"would be deleted  {two}" not in command.run("models", "prune", "--keep", "1", "--dry-run").stdout
    command.run("models", "promote", two)
    command.run("models", "promote", one)
    # In use are one and, as the way back, two.
    assert f"would be deleted  {first}" not in command.run("models", "prune", "--keep", "1", "--dry-run").stdout
    command.environment["STREAMREC_REGISTRY"] = f"file://{command.directory}/data/models"
    Registry(command.environment["STREAMREC_REGISTRY"]).publish(small_bundle(command.directory / "old"))
    said = command.run("models", "prune", "--keep", "1").stdout
    assert said.startswith("deleted  small-")
    assert "3 versions stay" in said
    assert set(listed(command)) == {first, one, two}


def test_a_version_that_no_worker_could_serve_is_not_promoted(
    command: Command, bundles: list[Path], versions: list[str], tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path / "data" / "models"))
    assert "is not in the registry" in command.run("models", "promote", versions[1], code=2).stderr
    small = registry.publish(small_bundle(tmp_path / "small"))
    command.run("models", "promote", small, code=2)
    other = learned_bundle(tmp_path / "other", bundles[0], 3, recurrence=300)
    assert "state size is 300, needed 256" in command.run("models", "add", other, "--promote", code=2).stderr
    assert states(command)[read_manifest(other).version] == "candidate"
    command.run("models", "add", bundles[1])
    damaged = tmp_path / "data" / "models" / versions[1] / "step.onnx"
    damaged.write_bytes(b"damaged")
    assert "step.onnx is damaged" in command.run("models", "promote", versions[1], code=2).stderr
    assert "champion" not in states(command).values()
    assert "no bundle here" in command.run("models", "add", tmp_path, code=2).stderr


def test_a_champion_whose_bundle_is_gone_is_shown_and_told_by_the_doctor(
    command: Command, bundles: list[Path], versions: list[str], tmp_path: Path
) -> None:
    command.run("models", "add", bundles[1], "--promote")
    Registry(str(tmp_path / "data" / "models")).delete(versions[1])
    row = listed(command)[versions[1]]
    assert (row["state"], row["in_registry"]) == ("champion", False)
    assert doctor(command)["champion"]["level"] == "fail"
    command.run("models", "prune", "--keep", "1")
    assert states(command)[versions[1]] == "champion"
    command.environment["STREAMREC_REGISTRY"] = "s3://bucket/models"
    assert doctor(command)["registry"]["level"] == "fail"


def test_without_a_broker_or_a_topic_the_reason_is_said(
    command: Command, bundles: list[Path], topic_prefix: str
) -> None:
    command.environment["STREAMREC_TOPIC_PREFIX"] = f"{topic_prefix}-other"
    assert "run `streamrec topics create`" in command.run("models", "list", code=2).stderr
    command.environment["STREAMREC_KAFKA_BOOTSTRAP_SERVERS"] = f"127.0.0.1:{free_port()}"
    assert "does not answer" in command.run("models", "list", code=2).stderr
    assert "does not answer" in command.run("models", "add", bundles[0], code=2).stderr
