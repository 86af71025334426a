"""The directory of an embedded deployment: its lock, its pointers, where each collection lies. It knows no engine."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from models.domain.errors import StoreError
from streams.stores.names import FIRST_GENERATION, collection_name, pointer_name, unescape, version_of

COLLECTIONS = "collections"
SIZES_FILE = "collection.json"


class Sizes(msgspec.Struct, frozen=True):
    """What a collection was made for; written last, so that a directory without it is a collection half made."""

    dimension: int
    state_size: int = 0
    text_dimension: int = 0


class _Pointers(msgspec.Struct, frozen=True):
    users: str = FIRST_GENERATION
    dropping: str | None = None


class EmbeddedDirectory:
    """`<data_dir>/collections`, held by one process at a time for each collection prefix. Every call blocks.

    Raises: StoreError from every method that finds the directory unusable or held by another process.
    """

    def __init__(self, data_dir: Path, prefix: str) -> None:
        self.root = Path(data_dir) / COLLECTIONS
        self._prefix = prefix
        self._lock_file = self.root / f"{pointer_name(prefix)}.lock"
        self._pointer_file = self.root / f"{pointer_name(prefix)}.json"
        self._lock: int | None = None

    @property
    def held(self) -> bool:
        return self._lock is not None

    def acquire(self) -> None:
        """Take the lock and finish what a crash left undone; nothing where the lock is already ours."""
        if self._lock is not None:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot use {self.root}: {error}", retryable=False) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"{self.root} is locked by another worker (process {owner}): one process owns an embedded store. "
                "Stop it, or run `streamrec store` and share its socket (STREAMREC_QDRANT_URL=unix:/path)",
                retryable=False,
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._lock = descriptor
        former = self._pointers().dropping
        if former is not None:
            self.remove("users", former)
            self._write(_Pointers(users=self.generation()))

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def path(self, kind: str, version: str) -> Path:
        return self.root / collection_name(self._prefix, kind, version)

    def sizes(self, kind: str, version: str) -> Sizes | None:
        """What the collection holds; None where it is absent or half made."""
        try:
            return msgspec.json.decode((self.path(kind, version) / SIZES_FILE).read_bytes(), type=Sizes)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.path(kind, version)} cannot be read: {error}", retryable=False) from error

    def write_sizes(self, kind: str, version: str, sizes: Sizes) -> None:
        _write_whole(self.path(kind, version) / SIZES_FILE, msgspec.json.encode(sizes))

    def remove(self, kind: str, version: str) -> None:
        """Remove a collection, its sizes first: what a crash leaves of it then counts as half made."""
        path = self.path(kind, version)
        (path / SIZES_FILE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    def collections(self) -> Iterator[tuple[str, str]]:
        """(kind, version) of each whole collection of this prefix."""
        for path in sorted(self.root.iterdir()):
            for kind in ("users", "items"):
                version = version_of(self._prefix, kind, path.name)
                if version is not None and (path / SIZES_FILE).is_file():
                    yield kind, unescape(version)

    def generation(self) -> str:
        return self._pointers().users

    def point_at(self, generation: str) -> str:
        """Make `generation` live. Returns: the former one, which the caller removes and then `dropped`."""
        former = self.generation()
        self._write(_Pointers(users=generation, dropping=former))
        return former

    def dropped(self) -> None:
        self._write(_Pointers(users=self.generation()))

    def _pointers(self) -> _Pointers:
        try:
            return msgspec.json.decode(self._pointer_file.read_bytes(), type=_Pointers)
        except FileNotFoundError:
            return _Pointers()
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(f"{self._pointer_file} cannot be read: {error}", retryable=False) from error

    def _write(self, pointers: _Pointers) -> None:
        _write_whole(self._pointer_file, msgspec.json.encode(pointers))


def _write_whole(path: Path, data: bytes) -> None:
    # Written beside, synced, renamed, and the directory synced: a reader finds the old file or the new one, never half.
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
