"""A bundle's directory as one thing: written whole beside its place, renamed into it, found sound. Knows no content."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.domain.errors import BundleError
from models.encoders.manifest import read_files, read_manifest

# Workers of one machine that put the same bundle at the same moment; each one's turn takes a millisecond.
ATTEMPTS = 100
# What renaming to a directory with something in it fails with, depending on the file system.
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
# What a killed process left beside a bundle's place. Nobody takes that long to write a bundle that he will still put.
STALE_SECONDS = 24 * 60 * 60


def put_bundle(
    out: Path, files: Iterable[tuple[str, bytes | Path]], *, keep: Callable[[Path], bool] = lambda directory: False
) -> None:
    """Write the files beside `out`, then put them there in place of what is there.

    Args:
        files: names, and contents or a file with them on the same machine, which is linked where it can be: the two are
            one file then, which nobody may change.
        keep: whether a directory that lies at `out` is to stay, since another process may be reading it.
    Raises: OSError; BundleError when other processes keep writing it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out.parent, f".{out.name}-")
    with _beside(out, "new") as whole:
        for name, data in files:
            if isinstance(data, Path):
                _link(data, whole / name)
            else:
                write_file(whole / name, data)
        sync_directory(whole)
        whole.chmod(0o755)
        _rename(whole, out, keep)
        sync_directory(out.parent)


def _link(there: Path, path: Path) -> None:
    try:
        os.link(there, path)
    except OSError:  # another file system, one that knows no links, or one that has too many of this file
        write_file(path, there.read_bytes())


def _rename(whole: Path, out: Path, keep: Callable[[Path], bool]) -> None:
    """Rename `whole` to `out`; whoever else does the same at this moment, a whole bundle lies there afterwards."""
    with _beside(out, "old") as aside:
        former: Path | None = None
        for attempt in range(ATTEMPTS):
            try:
                whole.rename(out)
                return
            except OSError as error:
                if error.errno not in OCCUPIED:
                    if former is not None and former.exists():
                        former.rename(out)
                    raise
            if keep(out):
                return
            # A directory cannot be renamed over a full one: the old one steps aside first.
            former = aside / str(attempt)
            with suppress(FileNotFoundError):
                out.rename(former)
                if keep(former):  # another process put it there between the lines above
                    _put_back(former, out)
                    return
        raise BundleError(f"cannot write the bundle {out}: other processes keep writing it")


def _put_back(former: Path, out: Path) -> None:
    try:
        former.rename(out)
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise


@contextmanager
def _beside(out: Path, what: str) -> Iterator[Path]:
    """A directory on the same file system, hidden from whoever lists bundles; gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix=f".{out.name}-{what}-", dir=out.parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def is_sound(directory: Path, version: str, *, all_files: bool = True) -> bool:
    """Whether a whole, undamaged bundle of that version lies there.

    Args:
        all_files: every file of the checksums, or only those that serving needs.
    """
    try:
        manifest = read_manifest(directory)
        if manifest.version != version:
            return False
        read_files(directory, manifest, None if all_files else manifest.files())
    except BundleError:
        return False
    return True


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is not there yet; on the disk when this returns. Raises: OSError."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """What was renamed or made in the directory is on the disk when this returns. Raises: OSError."""
    if os.name == "nt":  # Windows opens no directories; NTFS journals renames
        return
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_stale(directory: Path, prefix: str) -> None:
    """Remove what processes that were killed left behind, once it is old enough to be nobody's."""
    oldest = time.time() - STALE_SECONDS
    with suppress(OSError):
        for left in directory.iterdir():
            with suppress(OSError):
                if left.name.startswith(prefix) and left.stat().st_mtime < oldest:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
