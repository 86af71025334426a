"""`streamrec backtest`: its lists scored again by other code, its protocols, its files. In processes of its own."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.services.command import Command

USERS, ITEMS, EVENTS = 40, 120, 800


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """With a data directory of its own, where the first call makes the bootstrap bundle."""
    directory = tmp_path_factory.mktemp("backtest")
    return Command(directory, data_dir=str(directory))


def made_up_events() -> list[dict[str, Any]]:
    """Users who like one of three groups of items, popular items first; several events share a stamp."""
    rng = random.Random(7)
    events = []
    for number in range(EVENTS):
        user = rng.randrange(USERS)
        item = (user % 3) + 3 * min(int(rng.expovariate(0.1)), ITEMS // 3 - 1)
        events.append(
            {
                "type": "rating",
                "event_id": f"e{number}",
                "user_id": f"u{user}",
                "item_id": f"i{item}",
                "event_time_ms": 1_700_000_000_000 + 60_000 * (number // 2),
                "value": float(rng.randint(1, 5)),
            }
        )
    events[5]["text"] = "a review that is read"
    return events


@pytest.fixture(scope="module")
def files(command: Command) -> tuple[Path, Path]:
    events, items = command.directory / "events.jsonl", command.directory / "items.jsonl"
    events.write_text("".join(json.dumps(event) + "\n" for event in made_up_events()))
    catalogue: list[dict[str, Any]] = [
        {"item_id": f"i{n}", "title": f"Thing {n}", "categories": [f"group {n % 3}"]} for n in range(ITEMS)
    ]
    gone = {"item_id": "i0", "removed": True}
    items.write_text("".join(json.dumps(item) + "\n" for item in [*catalogue, gone, catalogue[0]]) + "no json\n")
    return events, items


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_figures_are_those_of_its_lists_scored_by_another_program(
    command: Command, files: tuple[Path, Path]
) -> None:
    lists, figures_file = command.directory / "lists.jsonl", command.directory / "figures.json"
    done = command.run("backtest", files[0], "--items", files[1], "--lists", lists, "--json", figures_file)
    figures, rows = json.loads(figures_file.read_text()), read(lists)
    events = {event["event_id"]: event for event in made_up_events()}

    assert "nDCG@10" in done.stdout
    assert "items.jsonl:123: invalid_json" in done.stderr
    assert figures["protocol"] == "p2"
    assert figures["events"] == EVENTS
    assert figures["scored_events"] == len(rows) > 10
    assert figures["bad_item_lines"] == 1
    assert figures["model_version"].startswith("bootstrap-")
    assert figures["events_per_second"] > 0
    assert {"seconds", "seed"} <= figures.keys()
    for name, prefix in (("items", ""), ("items_last_published", "last_published_")):
        places = [
            row[name].index(item) if (item := events[row["event_id"]]["item_id"]) in row[name] else -1 for row in rows
        ]
        assert figures[f"{prefix}hr_at_10"] == pytest.approx(sum(at >= 0 for at in places) / len(rows))
        gains = [1 / math.log2(2 + at) for at in places if at >= 0]
        assert figures[f"{prefix}ndcg_at_10"] == pytest.approx(sum(gains) / len(rows))
    assert figures["hr_at_10"] > 0.2
    # Scored are first choices of the last fifth, and a list never holds what its user had before.
    assert all(int(row["event_id"][1:]) >= 0.8 * EVENTS for row in rows)
    for row in rows:
        assert len(row["items"]) == len(set(row["items"])) <= 10
        number, user = int(row["event_id"][1:]), events[row["event_id"]]["user_id"]
        had = {event["item_id"] for event in made_up_events()[:number] if event["user_id"] == user}
        assert not had & set(row["items"])


def test_a_shuffled_packed_file_with_bad_lines_gives_the_same_figures(
    command: Command, files: tuple[Path, Path]
) -> None:
    def by_stamp(event: dict[str, Any]) -> int:
        return int(event["event_time_ms"])

    events = made_up_events()
    # In another order, but for events of one stamp, whose order is the file's.
    shuffled = sorted(events[400:] + events[:400], key=lambda event: (by_stamp(event) // 60_000) % 5)
    packed, plain = command.directory / "shuffled.jsonl.gz", command.directory / "plain.json"
    text = "\n".join([*(json.dumps(event) for event in shuffled), '{"type": "rating"}', ""])
    packed.write_bytes(gzip.compress(text.encode()))
    other = command.directory / "other.json"
    done = command.run("backtest", packed, "--json", other)
    command.run("backtest", files[0], "--json", plain)
    assert "shuffled.jsonl.gz:801: invalid_field" in done.stderr
    found, wanted = json.loads(other.read_text()), json.loads(plain.read_text())
    assert found.pop("bad_lines") == 1
    assert wanted.pop("bad_lines") == 0
    for name in ("seconds", "events_per_second"):
        del found[name], wanted[name]
    assert found == wanted


@pytest.mark.parametrize("protocol", ["p1", "p1-strict"])
def test_the_frozen_protocols_score_the_same_part(command: Command, files: tuple[Path, Path], protocol: str) -> None:
    out, lists = command.directory / f"{protocol}.json", command.directory / f"{protocol}.jsonl"
    command.run("backtest", files[0], "--items", files[1], "--protocol", protocol, "--json", out, "--lists", lists)
    figures = json.loads(out.read_text())
    assert figures["protocol"] == protocol
    assert figures["scored_events"] == len(read(lists)) > 10
    assert all(int(row["event_id"][1:]) >= 0.8 * EVENTS for row in read(lists))


def test_files_that_cannot_be_used_are_named(command: Command, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("nothing here\n")
    assert "no valid event" in command.run("backtest", empty, code=2).stderr
    assert "absent.jsonl cannot be read" in command.run("backtest", tmp_path / "absent.jsonl", code=2).stderr
    assert "no directory" in command.run("backtest", empty, "--lists", tmp_path / "no" / "lists", code=2).stderr
    assert "--protocol" in command.run("backtest", empty, "--protocol", "p3", code=2).stderr


def test_a_file_in_which_nothing_is_scored_has_no_figures(command: Command, tmp_path: Path) -> None:
    events, out = tmp_path / "one.jsonl", tmp_path / "one.json"
    events.write_text(json.dumps(made_up_events()[0]) + "\n")
    command.run("backtest", events, "--json", out)
    figures = json.loads(out.read_text())
    assert figures["scored_events"] == 0
    assert figures["ndcg_at_10"] is None
    assert figures["ndcg_at_10_interval"] == [None, None]
