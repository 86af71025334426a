"""A run on disk: figures as JSON, places and lists as .npz, rows of scores as .npy while fusions need them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from tests.benchmarks.quality.protocol import BLOCK_ROWS, Part, Ranked
from tests.benchmarks.quality.stream import F32, Stream


class Run(NamedTuple):
    stream: str
    system: str
    protocol: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.stream}-{self.system}-{self.protocol}-s{self.seed}"


class Results:
    """The folder of all runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def figures_path(self, run: Run) -> Path:
        return self.folder / "runs" / f"{run.name}.json"

    def write(self, run: Run, figures: dict[str, Any], stream: Stream, answers: Ranked) -> Path:
        """Whole or not at all: the arrays first, the JSON that makes the run count last."""
        path = self.figures_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path.with_suffix(".npz"),
            event_ids=np.array([stream.event_ids[k] for k in answers.positions]),
            positions=answers.positions,
            ranks=answers.ranks,
            lists=answers.lists.astype(np.int32),
        )
        _write_json(path, {**run._asdict(), **figures, "commit": commit()})
        return path

    def answers(self, run: Run) -> Ranked:
        with np.load(self.figures_path(run).with_suffix(".npz")) as kept:
            return Ranked(kept["positions"], kept["ranks"], kept["lists"].astype(np.int64))

    def all(self) -> Iterator[dict[str, Any]]:
        for path in sorted((self.folder / "runs").glob("*.json")):
            yield msgspec.json.decode(path.read_bytes())

    def choice(self, name: str) -> dict[str, Any] | None:
        path = self.folder / "choices" / f"{name}.json"
        return msgspec.json.decode(path.read_bytes()) if path.exists() else None

    def write_choice(self, name: str, choice: dict[str, Any]) -> None:
        path = self.folder / "choices" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(path, choice)

    def rows_path(self, run: Run, part: Part) -> Path:
        return self.folder / "rows" / f"{run.name}-{part.fitted}-{part.stop}.npy"

    def rows(self, run: Run, part: Part) -> F32 | None:
        """float32[S, N] of a finished pass, from disk page by page."""
        path = self.rows_path(run, part)
        return np.load(path, mmap_mode="r") if path.exists() else None

    def keep_rows(self, run: Run, part: Part, blocks: Iterable[F32]) -> F32:
        """All rows of a pass, written as they come; the name appears once the pass is whole."""
        path = self.rows_path(run, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        shape = (len(part.scored), part.stream.catalogue_size)
        kept = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
        done = 0
        for block in blocks:
            kept[done : done + len(block)] = block
            done += len(block)
        if done != len(kept):
            raise ValueError(f"{run.name}: {done} rows of scores for {len(kept)} events")
        kept.flush()
        os.replace(unfinished, path)
        return np.load(path, mmap_mode="r")


def in_blocks(rows: F32) -> Iterator[F32]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield np.asarray(rows[start : start + BLOCK_ROWS])


def commit() -> str:
    """The commit of the working tree, with "+" where it holds changes."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    os.replace(unfinished, path)
