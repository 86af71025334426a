"""Online learning over Kafka, measured: `make online JSON=FILE`, or `python -m tests.benchmarks.online --json FILE`.

Parts (`--only`): `replay` frozen and learning workers on the last 60% of MovieLens-100K, beside the offline P2 figure;
`shift` a regime change; `staleness` what old weights and old states cost; `switching` 100 switches under load. A part
that is left out keeps the figures that the file has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from streams.demo.data import fetch_wheel, read_movielens
from streams.kafka.embedded_broker import BrokerProcess
from streams.settings import Settings
from tests.benchmarks.contest import machine
from tests.benchmarks.online.replayed import Block, over, replay
from tests.benchmarks.online.shift import swap_tastes
from tests.benchmarks.outside import ROOT
from tests.services.kafka import KafkaBroker, missing_tools

CACHE = ROOT / "data" / "demo"
TRAINED, SCORED = 0.4, 0.8
# The shift comes when the learning worker has had a while to learn.
SHIFTED = 0.6
SHIFT_SEED = 0
BLOCK = 500
# A block of choices is noisy: recovery is judged on the mean of as many.
RECOVERY_BLOCKS = 2
LEVEL_BLOCKS = 10
RECOVERED = 0.9
PARTS = ("replay", "shift", "staleness", "switching")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.online", description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmark-results" / "online.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rate", type=float, default=100.0, help="events a second while a trainer learns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1, help="rows of `staleness` at a time")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    found |= {"about": machine(), "seed": arguments.seed}
    with tempfile.TemporaryDirectory(prefix="streamrec-online-") as folder:
        bench = Bench(
            Path(folder), arguments.json.parent, arguments.rate, arguments.seed, max(1, arguments.side_by_side)
        )
        for part in arguments.only:
            found |= {
                "replay": bench.replayed,
                "shift": bench.shifted,
                "staleness": bench.staleness,
                "switching": bench.switching,
            }[part]()
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")
            say(f"{part}: written to {arguments.json}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Bench:
    """The data of one run, and its parts.

    Args:
        results: where plots go, beside the JSON file.
        side_by_side: rows of `staleness` at a time.
    """

    def __init__(self, folder: Path, results: Path, rate: float, seed: int, side_by_side: int = 1) -> None:
        self.folder, self.results, self.rate, self.seed = folder, results, rate, seed
        self.side_by_side = side_by_side
        films = read_movielens(fetch_wheel(CACHE))
        self.items = [json.loads(film.encode()) for film in films.films]
        self.events = [json.loads(rating.encode()) for rating in films.ratings]
        self.items_path = self._write("items.jsonl", self.items)
        self.events_path = self._write("events.jsonl", self.events)
        self._bundle: Path | None = None

    # parts ------------------------------------------------------------------------------------------------------------

    def replayed(self) -> dict[str, Any]:
        """Check 1: frozen at 40%, learning on, and a model trained offline on 80% and updated as P2 says."""
        frozen = self._play(self.events, learning=False)
        learning = self._play(self.events, learning=True)
        first = int(SCORED * len(self.events)) - int(TRAINED * len(self.events))
        last_frozen, last_learning = over(frozen[first // BLOCK :]), over(learning[first // BLOCK :])
        offline = self._backtest()
        return {
            "frozen_ndcg_at_10": last_frozen.ndcg,
            "frozen_hr_at_10": last_frozen.hit_rate,
            "online_ndcg_at_10": last_learning.ndcg,
            "online_hr_at_10": last_learning.hit_rate,
            "online_scored": last_learning.scored,
            "online_versions": over(learning).versions,
            "offline_p2_ndcg_at_10": offline["ndcg_at_10"],
            "offline_p2_hr_at_10": offline["hr_at_10"],
            "blocks": {"frozen": _curve(frozen), "online": _curve(learning), "events": BLOCK},
        }

    def shifted(self) -> dict[str, Any]:
        """Check 2: events after the shift until the learning worker is back at 90% of its level; the frozen one too."""
        at = int(SHIFTED * len(self.events))
        events = swap_tastes(self.events, at, SHIFT_SEED)
        shift_block = (at - int(TRAINED * len(self.events))) // BLOCK
        out: dict[str, Any] = {}
        for name, learning in (("frozen_", False), ("", True)):
            blocks = self._play(events, learning=learning)
            level = over(blocks[shift_block - LEVEL_BLOCKS : shift_block]).ndcg
            after = blocks[shift_block:]
            windows = [over(after[start : start + RECOVERY_BLOCKS]).ndcg for start in range(len(after) - 1)]
            back = next((n for n, ndcg in enumerate(windows) if ndcg >= RECOVERED * level), None)
            out |= {
                f"{name}recovery_events": None if back is None else (back + RECOVERY_BLOCKS) * BLOCK,
                f"{name}shift_level_ndcg_at_10": level,
                f"{name}shift_blocks": _curve(blocks),
            }
        return out

    def staleness(self) -> dict[str, Any]:
        """Check 3, without Kafka: intervals of event time cannot be waited for."""
        from tests.benchmarks.online.staleness import sweep, table, write_plot

        settings = Settings(data_dir=self.folder / "data")
        rows = sweep(
            settings,
            self.events_path,
            self.items_path,
            seed=self.seed,
            side_by_side=self.side_by_side,
            report=say,
        )
        say(table(rows))
        self.results.mkdir(parents=True, exist_ok=True)
        write_plot(rows, self.results / "staleness.png")
        return {"staleness": rows}

    def switching(self) -> dict[str, Any]:
        """Check 4, by the benchmark of switches."""
        out = self.folder / "switching.json"
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_switching", "--json", str(out)], cwd=ROOT, check=True
        )
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    # what parts share -------------------------------------------------------------------------------------------------

    def _play(self, events: Sequence[dict[str, Any]], *, learning: bool) -> list[Block]:
        return uvloop.run(self._replay(events, learning))

    async def _replay(self, events: Sequence[dict[str, Any]], learning: bool) -> list[Block]:
        start, blocks = int(TRAINED * len(self.events)), []
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            broker = _broker(Path(folder))
            broker.start()
            try:
                async with replay(broker, "online", Path(folder) / "deployment", self._trained()) as one:
                    # What the first model was trained on is no example any more; a trainer remembers it.
                    await one.start_worker(feedback=str(learning).lower(), candidates_share="0")
                    await one.declare(self.items)
                    await one.play(events[:start])
                    if learning:
                        one.worker.stop()
                        await one.start_worker(feedback="true")
                        await one.start_trainer()
                    for at in range(start, len(events), BLOCK):
                        blocks.append(await one.play(events[at : at + BLOCK], rate=self.rate if learning else 0.0))
                        if len(blocks) % 10 == 0:
                            done = over(blocks[-10:])
                            say(f"event {at + BLOCK:,}: nDCG@10 {done.ndcg:.4f}, {done.versions} switches")
                    if one.trainer is not None:
                        (self.folder / "trainer.log").write_bytes(one.trainer.log_path.read_bytes())
            finally:
                broker.stop()
        return blocks

    def _trained(self) -> Path:
        """A bundle trained on the first 40%."""
        if self._bundle is None:
            part = self._write("first.jsonl", self.events[: int(TRAINED * len(self.events))])
            self._bundle = self.folder / "bundle"
            self._streamrec("train", str(part), "--items", str(self.items_path), "--out", str(self._bundle))
        return self._bundle

    def _backtest(self) -> dict[str, Any]:
        out = self.folder / "backtest.json"
        self._streamrec(
            *("backtest", str(self.events_path), "--items", str(self.items_path), "--train", "--protocol", "p2"),
            *("--json", str(out)),
        )
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    def _streamrec(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "streams.cli.main", *arguments]
        if "--seed" not in arguments:
            command += ["--seed", str(self.seed)]
        subprocess.run([*command, "--data-dir", str(self.folder / "data")], cwd=ROOT, check=True)

    def _write(self, name: str, lines: Sequence[Any]) -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        return path


def _broker(folder: Path) -> BrokerProcess:
    if missing := missing_tools():
        raise SystemExit(missing)
    return KafkaBroker(folder / "broker")


def _curve(blocks: Sequence[Block]) -> list[float]:
    return [round(block.ndcg, 5) for block in blocks]


if __name__ == "__main__":
    main()
