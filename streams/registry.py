"""The registry of bundles: model versions on any fsspec URL, each written once and never changed. Knows no release.

Layout `<url>/<version>/<file>`. A version's `manifest.json` is written last and removed first: without it a version
does not exist, whatever else lies there. Calls block; an event loop uses an executor.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from models.domain.errors import BundleError, RecommenderError
from models.encoders.bundle_directory import is_sound, put_bundle, remove_stale, sync_directory, write_file
from models.encoders.manifest import (
    MANIFEST,
    Manifest,
    check_content,
    decode_manifest,
    encode_manifest,
    read_files,
    read_manifest,
)
from streams.settings import without_password

log = logging.getLogger(__name__)

# `<name>-<digest>` as manifests have them: nothing else may become a path, since versions also come from a topic.
VERSION = re.compile(r"[a-z0-9][a-z0-9-]{0,63}-[0-9a-f]{12}")
PART = ".part-"
# What another attempt cannot mend: rights, a URL that means nothing, a driver that is not installed.
_FINAL = (
    PermissionError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    ImportError,
    ValueError,
    TypeError,
    AttributeError,
)


class RegistryError(RecommenderError):
    """The registry cannot be reached, or holds no such sound version. `retryable`: the same call may succeed later."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class UnknownVersionError(RegistryError):
    """No such version in the registry."""

    def __init__(self, version: str, where: str) -> None:
        super().__init__(f"{version[:100]!r} is not in the registry {where}", retryable=False)
        self.version = version


class Registry:
    """Bundles under one URL; a plain path is a directory. Opening it reads nothing. Threads may share it.

    Raises: RegistryError when the URL means nothing, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url, self._where = url, without_password(url)
        with self._answering():
            self._files, root = fsspec.url_to_fs(url)
        self._root = str(root).rstrip("/")

    def __str__(self) -> str:
        return self._where

    def versions(self) -> list[str]:
        """Every version that is whole, in the order of their names; none where nothing was published yet."""
        with self._answering():
            # Drivers of object stores remember listings; another process may have published since.
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            names = {str(path).rstrip("/").rpartition("/")[2] for path in found}
            return sorted(n for n in names if VERSION.fullmatch(n) and self._files.exists(self._path(n, MANIFEST)))

    def manifest(self, version: str) -> Manifest:
        """Raises: UnknownVersionError; RegistryError, not retryable when what lies there is no manifest of it."""
        data = self._content(version, MANIFEST)
        try:
            found = decode_manifest(data, f"{self._where}/{version}")
        except BundleError as error:
            raise RegistryError(str(error), retryable=False) from error
        if found.version != version:
            raise RegistryError(f"{self._where}/{version} holds {found.version}", retryable=False)
        return found

    def manifests(self, damaged: Callable[[RegistryError], object]) -> list[Manifest]:
        """Of every version; where something lies there that is no manifest of it, `damaged` is told."""
        found = []
        for version in self.versions():
            try:
                found.append(self.manifest(version))
            except RegistryError as error:
                if error.retryable:
                    raise
                damaged(error)
        return found

    def read(self, manifest: Manifest, name: str) -> bytes:
        """One file of a version, checked. Raises: UnknownVersionError; RegistryError, not retryable when damaged."""
        data = self._content(manifest.version, name)
        try:
            check_content(f"{self._where}/{manifest.version}", manifest, name, data)
        except BundleError as error:
            raise RegistryError(str(error), retryable=False) from error
        return data

    def publish(self, bundle: Path) -> str:
        """Put the bundle of a directory into the registry, every file of its checksums. Returns: its version.

        Killed anywhere, the version is whole or does not exist; the next call does the rest. Two processes may publish
        the same version at the same moment.
        Raises: BundleError when the bundle is damaged; RegistryError, not retryable when another content has its
            version.
        """
        manifest = read_manifest(bundle)
        files = read_files(bundle, manifest)
        version = manifest.version
        if self._published(manifest):
            return version
        with self._answering():
            for name, data in files.items():
                self._write(version, name, data)
            self._write(version, MANIFEST, encode_manifest(manifest))
        log.info("published", extra={"version": version, "registry": self._where})
        return version

    def fetch(self, version: str, into: Path, *, training: bool = False) -> Path:
        """Have the version at `into/<version>`: downloaded beside it, every checksum verified, then renamed.

        A version that is there and sound is not downloaded again, and of another one only the files that no version at
        `into` has: of a newly trained model one in a hundred bytes, since the text encoder stays. Several processes may
        fetch at once.

        Args:
            training: also the files that only training reads.
        Returns: the bundle's directory.
        Raises: UnknownVersionError; RegistryError, not retryable when the version is damaged.
        """
        self._check_version(version)
        place = into / version

        def sound(directory: Path) -> bool:
            return is_sound(directory, version, all_files=training)

        if sound(place):
            return place
        manifest = self.manifest(version)
        names = manifest.checksums if training else dict.fromkeys(manifest.files())
        there = _contents(into)

        def files() -> Iterator[tuple[str, bytes | Path]]:
            # One file in memory at a time; the manifest last, as everywhere.
            for name in names:
                known = there.get(manifest.checksums[name])
                if known is not None and _has(known, manifest, name):
                    yield name, known
                else:
                    yield name, self.read(manifest, name)
            yield MANIFEST, encode_manifest(manifest)

        try:
            put_bundle(place, files(), keep=sound)
        except (OSError, BundleError) as error:
            raise RegistryError(f"{version} cannot be written to {into}: {error}", retryable=True) from error
        return place

    def delete(self, version: str) -> None:
        """Remove the version, and what an interrupted publication or deletion left of it. None there is no error."""
        self._check_version(version)
        with self._answering():
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(version, MANIFEST))
            self._files.invalidate_cache()
            with suppress(FileNotFoundError):
                self._files.rm(self._path(version), recursive=True)

    def _published(self, manifest: Manifest) -> bool:
        """Whether this content is published. Raises: RegistryError where its version means another content."""
        try:
            there = self.manifest(manifest.version)
        except UnknownVersionError:
            return False
        except RegistryError as error:
            if error.retryable:
                raise
            # On storage that shows half-written files a publisher was killed in its last line.
            log.warning("published again over what is no bundle: %s", error)
            return False
        if there.checksums != manifest.checksums:
            differing = sorted(
                name
                for name in {*there.checksums, *manifest.checksums}
                if there.checksums.get(name) != manifest.checksums.get(name)
            )
            raise RegistryError(
                f"{self._where} holds {manifest.version} with other contents of {', '.join(differing)};"
                " a version is never changed",
                retryable=False,
            )
        return True

    def _content(self, version: str, name: str) -> bytes:
        self._check_version(version)
        with self._answering():
            try:
                data: bytes = self._files.cat_file(self._path(version, name))
                return data
            except FileNotFoundError as error:
                if name == MANIFEST or not self._files.exists(self._path(version, MANIFEST)):
                    raise UnknownVersionError(version, self._where) from error
                raise RegistryError(f"{self._where}/{version}: {name} is missing", retryable=False) from error

    def _write(self, version: str, name: str, data: bytes) -> None:
        """Write one file so that it is seen whole or not at all."""
        if isinstance(self._files, LocalFileSystem):
            _write_local(Path(self._path(version, name)), data)
            return
        # An object appears when its upload is complete. Folders are made only where storage wants them: asking an
        # object store for one may need the right to make buckets.
        try:
            self._files.pipe_file(self._path(version, name), data)
        except FileNotFoundError:
            self._files.makedirs(self._path(version), exist_ok=True)
            self._files.pipe_file(self._path(version, name), data)

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _check_version(self, version: str) -> None:
        if not VERSION.fullmatch(version):
            raise UnknownVersionError(version, self._where)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Wraps what storage raises. Drivers have error classes of their own: what is not known may pass."""
        try:
            yield
        except RecommenderError:
            raise
        except Exception as error:
            said = f"the registry {self._where}: {type(error).__name__}: {error}".replace(self._url, self._where)
            raise RegistryError(said, retryable=not isinstance(error, _FINAL)) from error


def _contents(directory: Path) -> dict[str, Path]:
    """Checksum -> file, of the versions that lie in the directory, by what their manifests say."""
    found: dict[str, Path] = {}
    for place in directory.iterdir() if directory.is_dir() else ():
        if VERSION.fullmatch(place.name):
            with suppress(BundleError):
                found |= {checksum: place / name for name, checksum in read_manifest(place).checksums.items()}
    return found


def _has(path: Path, manifest: Manifest, name: str) -> bool:
    """Whether the file really is what the manifest says of `name`."""
    try:
        check_content(str(path), manifest, name, path.read_bytes())
    except (OSError, BundleError):
        return False
    return True


def _write_local(path: Path, data: bytes) -> None:
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent.parent)
    remove_stale(path.parent, PART)
    part = path.with_name(f"{PART}{uuid.uuid4().hex}")
    try:
        write_file(part, data)
        os.replace(part, path)
        sync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)
