"""Writes a bundle directory: whole beside its place first, then renamed into it. Knows no file's content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.domain.errors import BundleError
from models.encoders.bundle_directory import is_sound, put_bundle
from models.encoders.manifest import MANIFEST, Manifest, encode_manifest


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
        put_bundle(
            out,
            {**files, MANIFEST: encode_manifest(manifest)}.items(),
            keep=lambda there: keep_same and is_sound(there, manifest.version),
        )
    except OSError as error:
        raise BundleError(f"cannot write the bundle {out}: {error}") from error
    return out
