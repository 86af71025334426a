"""New items in whole lists: how often the product finds what nobody had chosen yet, early in its life and later.

    python -m tests.benchmarks.new_item_lists write EVENTS.jsonl FOLDER [--seed 0]
    streamrec backtest FOLDER/events.jsonl --items ITEMS.jsonl --train --protocol p2 --lists with.jsonl
    streamrec backtest FOLDER/events.jsonl --train --protocol p2 --lists without.jsonl
    python -m tests.benchmarks.new_item_lists score FOLDER with.jsonl without.jsonl

`write` leaves out the events on a tenth of the items before the last fifth of the log, and as many of its end that what
was not touched is a fifth again. Without ITEMS no item has a text. `tests.benchmarks.new_items` asks the encoder alone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.domain.evaluation import hit, ndcg

HELD_OUT, TOUCHED = 0.1, 0.8
LIVES = {"0": (0, 1), "1-4": (1, 5), "5-19": (5, 20), "1-19": (1, 20), "20+": (20, 1 << 30)}


def lines(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [json.loads(line) for line in file]


def write(events: Path, folder: Path, seed: int) -> None:
    log = lines(events)
    items = sorted({event["item_id"] for event in log if event.get("item_id")})
    chosen = np.random.default_rng(seed).random(len(items)) < HELD_OUT
    held = {item_id for item_id, out in zip(items, chosen, strict=True) if out}
    border = int(TOUCHED * len(log))
    begin = [event for event in log[:border] if event.get("item_id") not in held]
    asked = int(len(begin) * (1 - TOUCHED) / TOUCHED)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "events.jsonl").open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in [*begin, *log[border : border + asked]])
    (folder / "held_out.json").write_text(json.dumps(sorted(held)))
    print(
        f"{len(held)} of {len(items):,} items held out, {len(begin):,} events before {min(asked, len(log) - border):,}"
    )


def score(folder: Path, lists: Sequence[Path]) -> None:
    log, held = lines(folder / "events.jsonl"), set(json.loads((folder / "held_out.json").read_text()))
    listed = [{each["event_id"]: each["items"] for each in lines(path)} for path in lists]
    # Whoever has no items of a catalogue is not asked before an item's first event.
    both = set.intersection(*(set(each) for each in listed))
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    lived: Counter[str] = Counter()
    for event in log:
        item_id = event.get("item_id")
        life = lived[item_id]
        lived[item_id] += 1
        if event["event_id"] not in both:
            continue
        asked = event["event_id"], item_id
        rows["all"].append(asked)
        rows["new" if item_id in held else "others"].append(asked)
        if item_id in held:
            for name, (least, most) in LIVES.items():
                if least <= life < most:
                    rows[f"new, events {name} of its life"].append(asked)
    for path, items in zip(lists, listed, strict=True):
        print(path)
        for name, asked_events in rows.items():
            places = [
                items[event_id].index(item_id) + 1 if item_id in items[event_id] else 0
                for event_id, item_id in asked_events
            ]
            hits, gains = np.mean([hit(place) for place in places]), np.mean([ndcg(place) for place in places])
            print(f"  {name:30} {len(places):6,}  HR@10 {hits:.4f}  nDCG@10 {gains:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("events", type=Path)
    writing.add_argument("folder", type=Path)
    writing.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score")
    scoring.add_argument("folder", type=Path)
    scoring.add_argument("lists", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "write":
        write(given.events, given.folder, given.seed)
    else:
        score(given.folder, given.lists)


if __name__ == "__main__":
    main()
