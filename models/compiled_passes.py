"""Keeps compiled passes in step with their source.

numba keeps a compiled function until the file that defines it changes, whatever becomes of the functions that it calls
and has merged: after a `git pull` that changes only those, the old code would run on, and nobody would be told.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

STAMP = ".passes"
"""Beside the passes: the source that they were compiled from."""


def drop_stale(package: Path) -> bool:
    """Delete the compiled passes of a package and those below it, unless no file of theirs has changed since.

    Where the package cannot be written, numba keeps its passes elsewhere, and an installed package does not change.

    Returns: whether any could be stale.
    """
    files = sorted(package.rglob("*.py"))
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        found = file.stat()
        digest.update(f"{file.relative_to(package)} {found.st_mtime_ns} {found.st_size}\n".encode())
    source, mark = digest.hexdigest(), package / "__pycache__" / STAMP
    try:
        if mark.exists() and mark.read_text() == source:
            return False
        for compiled in package.rglob("__pycache__/*.nb[ic]"):
            compiled.unlink(missing_ok=True)
        mark.parent.mkdir(exist_ok=True)
        whole = mark.with_suffix(f".{os.getpid()}")
        whole.write_text(source)
        whole.replace(mark)
    except OSError:
        pass
    return True
