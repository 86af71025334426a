"""Writes a bundle directory: whole beside its place first, then renamed into it. Knows no file's content."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from models.domain.errors import BundleError
from models.encoders.manifest import MANIFEST, Manifest, encode_manifest, read_files, read_manifest

# Workers of one machine that build the same bundle at the same moment; each one's turn takes a millisecond.
ATTEMPTS = 100


def write_bundle(out: Path, manifest: Manifest, files: Mapping[str, bytes], *, keep_same: bool = False) -> Path:
    """Put the bundle at `out`, in place of a bundle that is there.

    Args:
        keep_same: leave a sound bundle of the same version alone, since another process may be reading it.

    Returns: `out`.
    Raises: BundleError when `out` is something else than a bundle or an empty directory, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise BundleError(f"{out} exists and is no bundle; it is left alone")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        whole = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            for name, data in {**files, MANIFEST: encode_manifest(manifest)}.items():
                _write(whole / name, data)
            whole.chmod(0o755)
            _put(whole, out, manifest.version if keep_same else None)
        finally:
            shutil.rmtree(whole, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"cannot write the bundle {out}: {error}") from error
    return out


def _put(whole: Path, out: Path, keep_same: str | None) -> None:
    """Rename `whole` to `out`; whoever else does the same at this moment, a whole bundle lies there afterwards."""
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    try:
        for attempt in range(ATTEMPTS):
            if keep_same is not None and is_sound(out, keep_same):
                return
            # A directory cannot be renamed over a full one: the old one steps aside first.
            former = aside / str(attempt)
            with suppress(FileNotFoundError):
                out.rename(former)
            try:
                whole.rename(out)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    continue  # another process put its own here between the two lines above
                if former.exists():
                    former.rename(out)
                raise
            return
        raise BundleError(f"cannot write the bundle {out}: other processes keep writing it")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_sound(directory: Path, version: str) -> bool:
    """Whether a whole, undamaged bundle of that version lies there."""
    try:
        manifest = read_manifest(directory)
        if manifest.version != version:
            return False
        read_files(directory, manifest)
    except BundleError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
