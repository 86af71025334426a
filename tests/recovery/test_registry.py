"""A registry whose processes are killed at every single step, or write at the same moment: whole versions or none."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.encoders.bundle_directory import is_sound
from models.encoders.manifest import read_manifest
from streams.registry import Registry, RegistryError
from tests.services.bundles import LARGEST_FILE_BYTES, small_bundle

pytestmark = pytest.mark.recovery

ROOT = Path(__file__).parents[2]
# More changes of the file system than one publication or fetch makes.
MANY = 100
TIMEOUT_SECONDS = 120


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.services.registry_process", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object) -> int:
    process = start(*arguments)
    _, said = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode in (0, -signal.SIGKILL, -signal.SIGXFSZ), said
    return process.returncode


def is_whole_or_absent(url: Path, version: str, into: Path) -> bool:
    """Whether the version exists; where it does, all of it can be fetched."""
    registry = Registry(str(url))
    if registry.versions() == []:
        with pytest.raises(RegistryError):
            registry.fetch(version, into)
        return False
    return is_sound(registry.fetch(version, into, training=True), version)


def test_a_publication_killed_at_any_step_leaves_the_version_whole_or_absent(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    version = read_manifest(bundle).version
    existed = []
    for step in range(1, MANY):
        url, into = tmp_path / f"registry-{step}", tmp_path / f"into-{step}"
        code = run("publish", url, bundle, "--kill-at", step)
        existed.append(is_whole_or_absent(url, version, into))
        assert run("publish", url, bundle) == 0
        assert is_whole_or_absent(url, version, into)
        if code == 0:
            break
    assert existed == sorted(existed)
    assert 2 * len(read_manifest(bundle).checksums) < len(existed) < MANY
    assert existed[-1]


def test_a_fetch_killed_at_any_step_leaves_a_sound_bundle_or_none(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    url, into = tmp_path / "registry", tmp_path / "into"
    version = Registry(str(url)).publish(bundle)
    place = into / version
    for step in range(1, MANY):
        # Every second time a damaged bundle is in its way.
        shutil.rmtree(place, ignore_errors=True)
        if step % 2:
            shutil.copytree(bundle, place)
            (place / "text.onnx").write_bytes(b"damaged")
        code = run("fetch", url, version, into, "--training", "--kill-at", step)
        untouched = step % 2 and (place / "text.onnx").exists() and (place / "text.onnx").read_bytes() == b"damaged"
        assert is_sound(place, version) or not place.exists() or untouched
        if code == 0:
            break
    assert is_sound(into / version, version)
    assert len(read_manifest(bundle).checksums) < step < MANY


@pytest.mark.parametrize("written", [1, 4_096, LARGEST_FILE_BYTES - 1])
def test_a_process_killed_in_the_middle_of_a_file_leaves_nothing_half_written(tmp_path: Path, written: int) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    version = read_manifest(bundle).version
    url, into = tmp_path / "registry", tmp_path / "into"
    assert run("publish", url, bundle, "--kill-at-bytes", written) == -signal.SIGXFSZ
    assert not is_whole_or_absent(url, version, into)
    assert run("publish", url, bundle) == 0
    assert run("fetch", url, version, into, "--kill-at-bytes", written) == -signal.SIGXFSZ
    assert not (into / version).exists()
    assert run("fetch", url, version, into) == 0
    assert is_sound(into / version, version, all_files=False)


def test_processes_that_fetch_the_same_version_at_once_all_get_it(tmp_path: Path) -> None:
    url, into = tmp_path / "registry", tmp_path / "into"
    version = Registry(str(url)).publish(small_bundle(tmp_path / "bundle"))
    for _ in range(3):
        # Half of them ask for less: what is put in its place by one must not be taken away from another.
        processes = [start("fetch", url, version, into, *(["--training"] if n % 2 else [])) for n in range(4)]
        for process in processes:
            _, said = process.communicate(timeout=TIMEOUT_SECONDS)
            assert process.returncode == 0, said
        assert is_sound(into / version, version)
        assert [path.name for path in into.iterdir()] == [version]
        (into / version / "text.onnx").write_bytes(b"damaged")


def test_processes_that_publish_the_same_version_at_once_all_succeed(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    url = tmp_path / "registry"
    processes = [start("publish", url, bundle) for _ in range(4)]
    for process in processes:
        _, said = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == 0, said
    version = read_manifest(bundle).version
    assert is_whole_or_absent(url, version, tmp_path / "into")
    assert {path.name for path in (url / version).iterdir()} == {path.name for path in bundle.iterdir()}
