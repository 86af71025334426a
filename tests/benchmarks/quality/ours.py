"""The project's own rows: the command `streamrec backtest` as a process, its lists scored by this folder's scorer."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec

from tests.benchmarks.quality.loaders import LOADERS, REPOSITORY
from tests.benchmarks.quality.protocol import test
from tests.benchmarks.quality.results import Results, Run
from tests.benchmarks.quality.scorer import figures, read_lists
from tests.benchmarks.quality.stream import Stream, write_records

SYSTEM = "streamrec"
COMMAND = REPOSITORY / ".venv-train" / "bin" / "streamrec"


def write_files(name: str, data: Path, folder: Path) -> tuple[Stream, Path, Path | None]:
    """A stream as events.jsonl and, where its catalogue is declared, items.jsonl."""
    events, items = LOADERS[name](data)
    events_path, items_path = folder / name / "events.jsonl", folder / name / "items.jsonl"
    write_records(events_path, events)
    if items is not None:
        write_records(items_path, items)
    return Stream.of_records(name, events, items), events_path, None if items is None else items_path


def run_ours(run: Run, data: Path, results: Results, command: Path = COMMAND) -> dict[str, Any]:
    """Train by the protocol's split, replay, score the lists. Raises: CalledProcessError with the command's output."""
    stream, events, items = write_files(run.stream, data, results.folder / "streams")
    answers = results.folder / "lists" / f"{run.name}.jsonl"
    answers.parent.mkdir(parents=True, exist_ok=True)
    reported = answers.with_suffix(".json")
    call = [str(command), "backtest", str(events), *(("--items", str(items)) if items else ())]
    call += ["--train", "--protocol", run.protocol, "--seed", str(run.seed)]
    call += ["--lists", str(answers), "--json", str(reported)]
    started = time.perf_counter()
    subprocess.run(call, check=True, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = round(time.perf_counter() - started, 1)
    more = {"reported": msgspec.json.decode(reported.read_bytes()), "seconds": {"train_and_test": seconds}}
    return score_file(run, stream, answers, results, more)


def score_file(run: Run, stream: Stream, lists: Path, results: Results, more: dict[str, Any]) -> dict[str, Any]:
    """A row from a file of lists of any system."""
    answers, wrong = read_lists(lists, test(stream, run.protocol))
    found = {**figures(stream, answers, whole_catalogue=False), "wrong": wrong, **more}
    results.write(run, found, stream, answers)
    return found
