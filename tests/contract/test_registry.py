"""The registry holds to its word on each kind of storage: whole versions or none, never changed, verified when fetched.

Run over a directory and over fsspec's storage in memory, which like an object store has objects and no renames. No S3:
neither its driver nor a server to test it against is among the project's packages.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from models.domain.errors import BundleError
from models.encoders.manifest import MANIFEST, read_files, read_manifest
from streams.registry import Registry, RegistryError, UnknownVersionError
from tests.services.small_bundles import TRAINING, small_bundle


@pytest.fixture(params=["directory", "file-url", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        name = f"registry-{uuid.uuid4().hex}"
        yield f"memory://{name}"
        files = fsspec.filesystem("memory")
        if files.exists(f"/{name}"):
            files.rm(f"/{name}", recursive=True)
    else:
        place = str(tmp_path / "registry")
        yield place if request.param == "directory" else f"file://{place}"


@pytest.fixture
def registry(url: str) -> Registry:
    return Registry(url)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "bundle")


def spoil(url: str, version: str, name: str, data: bytes | None) -> None:
    files, root = fsspec.url_to_fs(url)
    if data is None:
        files.rm(f"{root}/{version}/{name}")
    else:
        files.pipe_file(f"{root}/{version}/{name}", data)


def test_nothing_was_published_yet(registry: Registry) -> None:
    assert registry.versions() == []
    with pytest.raises(UnknownVersionError, match="is not in the registry"):
        registry.manifest("small-0123456789ab")


def test_a_published_bundle_is_listed_and_its_manifest_is_the_bundles(registry: Registry, bundle: Path) -> None:
    version = registry.publish(bundle)
    assert registry.versions() == [version]
    assert registry.manifest(version) == read_manifest(bundle)
    assert registry.read(registry.manifest(version), TRAINING) == (bundle / TRAINING).read_bytes()


def test_publishing_the_same_bundle_again_changes_nothing(registry: Registry, url: str, bundle: Path) -> None:
    version = registry.publish(bundle)
    spoil(url, version, "step.onnx", b"seen to be left alone")
    assert registry.publish(bundle) == version
    with pytest.raises(RegistryError, match=r"step\.onnx is damaged"):
        registry.read(registry.manifest(version), "step.onnx")


def test_a_damaged_bundle_is_not_published(registry: Registry, bundle: Path) -> None:
    (bundle / "step.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"step\.onnx is damaged"):
        registry.publish(bundle)
    assert registry.versions() == []


def test_a_worker_fetches_what_serving_needs_and_a_trainer_everything(
    registry: Registry, bundle: Path, tmp_path: Path
) -> None:
    version, manifest = registry.publish(bundle), read_manifest(bundle)
    into = tmp_path / "bundles"
    place = registry.fetch(version, into)
    assert place == into / version
    assert {path.name for path in place.iterdir()} == {*manifest.files(), MANIFEST}
    read_files(place, manifest, manifest.files())
    assert registry.fetch(version, into, training=True) == place
    assert read_files(place, read_manifest(place)) == read_files(bundle, manifest)
    assert [path.name for path in into.iterdir()] == [version]


def test_a_version_that_is_there_and_sound_is_not_fetched_again(
    registry: Registry, bundle: Path, tmp_path: Path
) -> None:
    version = registry.publish(bundle)
    place = registry.fetch(version, tmp_path / "bundles", training=True)
    made = {path.name: path.stat().st_ino for path in place.iterdir()}
    registry.delete(version)
    registry.fetch(version, tmp_path / "bundles")
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == made


def test_what_another_fetched_version_has_is_linked_and_not_downloaded(
    registry: Registry, url: str, bundle: Path, tmp_path: Path
) -> None:
    first, into = registry.publish(bundle), tmp_path / "bundles"
    registry.fetch(first, into)
    other = small_bundle(tmp_path / "other", seed=1)
    second = registry.publish(other)
    spoil(url, second, "text.onnx", b"damaged")  # it would be refused
    place = registry.fetch(second, into)
    assert (place / "text.onnx").samefile(into / first / "text.onnx")
    assert (place / "step.onnx").read_bytes() == (other / "step.onnx").read_bytes()
    read_files(place, read_manifest(place), read_manifest(place).files())


def test_a_damaged_file_of_another_version_is_not_linked(registry: Registry, bundle: Path, tmp_path: Path) -> None:
    first, into = registry.publish(bundle), tmp_path / "bundles"
    (registry.fetch(first, into) / "text.onnx").write_bytes(b"damaged")
    place = registry.fetch(registry.publish(small_bundle(tmp_path / "other", seed=1)), into)
    read_files(place, read_manifest(place), read_manifest(place).files())


def test_a_place_that_is_damaged_is_put_right(registry: Registry, bundle: Path, tmp_path: Path) -> None:
    version = registry.publish(bundle)
    place = registry.fetch(version, tmp_path / "bundles", training=True)
    (place / "text.onnx").write_bytes(b"damaged")
    registry.fetch(version, tmp_path / "bundles")
    read_files(place, read_manifest(place), read_manifest(place).files())


@pytest.mark.parametrize("data", [b"damaged", None])
def test_a_version_that_is_damaged_in_the_registry_is_never_put_in_its_place(
    registry: Registry, url: str, bundle: Path, tmp_path: Path, data: bytes | None
) -> None:
    version = registry.publish(bundle)
    spoil(url, version, "text.onnx", data)
    with pytest.raises(RegistryError, match=r"text\.onnx is (damaged|missing)") as raised:
        registry.fetch(version, tmp_path / "bundles")
    assert not raised.value.retryable
    assert list((tmp_path / "bundles").iterdir()) == []


def test_a_version_without_its_manifest_does_not_exist_and_can_be_published(
    registry: Registry, url: str, bundle: Path, tmp_path: Path
) -> None:
    version = registry.publish(bundle)
    spoil(url, version, MANIFEST, None)
    assert registry.versions() == []
    with pytest.raises(UnknownVersionError):
        registry.fetch(version, tmp_path / "bundles")
    spoil(url, version, "step.onnx", b"half")
    registry.publish(bundle)
    registry.fetch(version, tmp_path / "bundles", training=True)


def test_a_manifest_that_says_nothing_is_refused_and_published_over(
    registry: Registry, url: str, bundle: Path, tmp_path: Path
) -> None:
    version = registry.publish(bundle)
    spoil(url, version, MANIFEST, (bundle / MANIFEST).read_bytes()[:100])
    with pytest.raises(RegistryError, match="malformed") as raised:
        registry.fetch(version, tmp_path / "bundles")
    assert not raised.value.retryable
    registry.publish(bundle)
    registry.fetch(version, tmp_path / "bundles")


def test_a_manifest_of_another_version_is_refused(registry: Registry, url: str, bundle: Path, tmp_path: Path) -> None:
    version = registry.publish(bundle)
    other = small_bundle(tmp_path / "other", seed=1)
    spoil(url, version, MANIFEST, (other / MANIFEST).read_bytes())
    with pytest.raises(RegistryError, match=f"holds {read_manifest(other).version}"):
        registry.manifest(version)


def test_a_deleted_version_is_gone_and_the_others_stay(registry: Registry, bundle: Path, tmp_path: Path) -> None:
    version = registry.publish(bundle)
    other = registry.publish(small_bundle(tmp_path / "other", seed=1))
    registry.delete(version)
    registry.delete(version)
    assert registry.versions() == [other]
    assert registry.publish(bundle) == version
    assert registry.versions() == sorted([version, other])


@pytest.mark.parametrize("version", ["", ".", "..", "../small-0123456789ab", "small/0123456789ab", "small", "a" * 300])
def test_a_version_from_a_topic_leads_nowhere_else(
    registry: Registry, bundle: Path, tmp_path: Path, version: str
) -> None:
    registry.publish(bundle)
    for call in (registry.manifest, registry.delete, lambda name: registry.fetch(name, tmp_path / "bundles")):
        with pytest.raises(UnknownVersionError):
            call(version)
    assert len(registry.versions()) == 1
    assert not (tmp_path / "bundles").exists()


def test_what_else_lies_in_the_registry_is_no_version(registry: Registry, url: str, bundle: Path) -> None:
    version = registry.publish(bundle)
    files, root = fsspec.url_to_fs(url)
    for name in ("notes", "small-0123456789ab"):
        files.makedirs(f"{root}/{name}", exist_ok=True)
        files.pipe_file(f"{root}/{name}/readme.txt", b"hello")
    files.pipe_file(f"{root}/small-ba9876543210", b"a file")
    assert registry.versions() == [version]


def test_a_bundle_that_was_fetched_is_published_elsewhere(registry: Registry, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle", training=False)
    version = registry.publish(bundle)
    copy = Registry(str(tmp_path / "copy"))
    assert copy.publish(registry.fetch(version, tmp_path / "bundles")) == version
    assert copy.manifest(version) == registry.manifest(version)


@pytest.mark.parametrize(("url", "reason"), [("nothing://x", "nothing"), ("s3://bucket/models", "s3fs")])
def test_a_url_that_nothing_serves_is_refused_with_the_reason(url: str, reason: str) -> None:
    if url.startswith("s3:") and find_spec("s3fs") is not None:
        pytest.skip("the driver of S3 is installed here")
    with pytest.raises(RegistryError, match=reason) as raised:
        Registry(url)
    assert not raised.value.retryable


def test_a_registry_without_rights_says_so_and_hides_its_password(tmp_path: Path, bundle: Path) -> None:
    place = tmp_path / "file"
    place.write_text("no directory")
    with pytest.raises(RegistryError) as raised:
        Registry(str(place)).publish(bundle)
    assert not raised.value.retryable
    assert "secret" not in str(Registry("memory://key:secret@bucket/models"))
