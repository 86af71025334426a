"""JSON Lines files for commands: plain or gzip, with progress, and a count of the lines that are no good.

It must not know what a line means.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.domain.errors import RecommenderError

GZIP_MAGIC = b"\x1f\x8b"
# Bad lines shown one by one: a file of the wrong kind has millions of them, and the first ones say it all.
LINES_SHOWN = 50


class FileError(RecommenderError):
    """A file of the command line that cannot be read or written."""


class Output(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> object: ...


class Line(NamedTuple):
    number: int
    """1-based."""
    data: bytes


def read_lines(path: Path, progress: Callable[[int], None] = lambda _: None) -> Iterator[Line]:
    """The lines of a file that are not blank; gzip is told by its first bytes, `-` is standard input.

    Args:
        progress: called with the bytes read so far, of the file as it lies on disk.
    Raises: FileError.
    """
    try:
        raw: IO[bytes] = sys.stdin.buffer if str(path) == "-" else path.open("rb")
        with raw:
            seekable = raw.seekable()
            head = raw.peek(2)[:2] if isinstance(raw, io.BufferedReader) else b""
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if head == GZIP_MAGIC else raw
            for number, data in enumerate(lines, 1):
                if seekable and number % 256 == 0:
                    progress(raw.tell())
                stripped = data.strip()
                if stripped:
                    yield Line(number, stripped)
    except (OSError, EOFError) as error:
        raise FileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def file_size(path: Path) -> int | None:
    """Bytes on disk, None where nobody knows."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


@contextmanager
def new_file(path: Path, *, private: bool = False) -> Iterator[Output]:
    """A file to write, gzip where its name ends so; `-` is standard output.

    Args:
        private: for this user alone, since it is about people.
    """
    try:
        if str(path) == "-":
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        mode = 0o600 if private else 0o666
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw, mode="wb") as packed:
                    yield packed
            else:
                yield raw
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """As JSON for people and programs."""
    with new_file(path) as out:
        out.write(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


def check_writable(*paths: Path | None) -> None:
    """Before long work: that its results have a place. Raises: FileError."""
    for path in paths:
        if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
            raise FileError(f"{path} cannot be written: there is no directory {path.absolute().parent}")


class BadLines:
    """Reports lines that are no good on standard error, and counts them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0

    def report(self, number: int, reason: object) -> None:
        self.count += 1
        if self.count <= LINES_SHOWN:
            print(f"{self._path}:{number}: {reason}", file=sys.stderr)
        elif self.count == LINES_SHOWN + 1:
            print(f"{self._path}: further bad lines are counted, not shown", file=sys.stderr)


@contextmanager
def progress_bar(what: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A bar on standard error where somebody looks at it. Gives: a function to call with how much is done."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
