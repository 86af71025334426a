"""Our listwise network, a log-linear ranker, their sum and gradient-boosted trees on the same past lists.

`python -m tests.benchmarks.quality.rankers EVENTS ITEMS [--json FILE]`, in .venv-train; the trees run in .venv-peers.
The lists are those that the product's own training asked on the first 80% of the events. All rankers are fitted on
what lies before the latest tenth of these and compared on that tenth; what is chosen is chosen before it.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from export.ranker_graph import ranker_graph
from models.domain.features import FEATURES, PRESENCE
from models.domain.protocol import scored_from
from models.encoders.ranker import OnnxRanker
from models.encoders.session import CPU, open_session
from models.learning.ranker import ListwiseRanker, LogLinearRanker
from models.learning.ranker_fit import Fitted, fit
from models.learning.ranker_trainer import RankerConfig, RankerTrainer
from models.learning.training import use_threads
from tests.benchmarks.quality.loaders import REPOSITORY
from tests.benchmarks.quality.past import open_past, tell
from tests.benchmarks.quality.past_lists import (
    CHOSEN_FROM,
    TESTED_FROM,
    PastLists,
    is_written,
    microseconds_a_list,
    read_lists,
    scored,
    write_lists,
)

PEERS = REPOSITORY / ".venv-peers" / "bin" / "python"
F32 = np.ndarray[Any, np.dtype[np.float32]]


def of_network(net: ListwiseRanker) -> Callable[[F32], F32]:
    """As a worker scores."""
    session = open_session("ranker", ranker_graph(net.weights(), PRESENCE), [CPU], 1)
    served = OnnxRanker(session, features=FEATURES, initial_weights=None, candidates=1, source_weights=None)
    return lambda features: served.score(features, None)


def of_weights(net: LogLinearRanker) -> Callable[[F32], F32]:
    weights = (net.weight.detach() * net.scale).numpy()
    return lambda features: features @ weights


RANKERS: dict[str, tuple[Any, Callable[[Any], Callable[[F32], F32]]]] = {
    "network": (ListwiseRanker, of_network),
    "log-linear": (LogLinearRanker, of_weights),
}
SERVED = "both, served"


def make_lists(events: Path, items: Path, seed: int) -> PastLists:
    """Train as `backtest --train` does, on the first 80%, and keep the lists it asked."""
    past = open_past(events, items, seed)
    end = scored_from(past.events)
    past.training.fit(past.player, end)
    return PastLists(**vars(past.training.lists.lists), asked=past.training.asked, end=end)


def measure(name: str, lists: PastLists, seeds: list[int]) -> dict[str, Any]:
    """How long to train is chosen by the first seed; then each seed is fitted on all training lists."""
    make, make_scores = RANKERS[name]
    config = RankerConfig()
    early, late, tested = lists.rows(0, CHOSEN_FROM), lists.rows(CHOSEN_FROM, TESTED_FROM), lists.rows(TESTED_FROM, 1)
    training = np.concatenate([early, late])
    updates = config.at_most(config.updates, len(training))

    def fitted(seed: int, rows: npt.NDArray[np.int64], **how: Any) -> Fitted[Any]:
        return fit(make, config, seed, lists, rows, **how)

    chosen = fitted(seeds[0], early, updates=updates, validation=late).report
    tell(f"{name}: {chosen.updates:,} updates, nDCG@10 {chosen.validation:.4f} where the choice is in the list")
    found = []
    for seed in seeds:
        started = time.process_time()
        net = fitted(seed, training, updates=chosen.updates).served
        found.append(compared(make_scores(net), lists, tested, time.process_time() - started))
    return gathered(found) | {"updates": chosen.updates}


def measure_served(lists: PastLists, seeds: list[int]) -> dict[str, Any]:
    """The sum of both, each as long as it pays off and with the share that the latest lists give it."""
    tested = lists.rows(TESTED_FROM, 1)
    known, found = lists.until(int(tested[0])), []
    for seed in seeds:
        trainer, started = RankerTrainer(RankerConfig(), seed), time.process_time()
        trainer.fit_latest(known, len(lists.rows(0, CHOSEN_FROM)))
        found.append(compared(of_network(trainer.served), lists, tested, time.process_time() - started))
    return gathered(found)


def compared(
    score: Callable[[F32], F32], lists: PastLists, tested: npt.NDArray[np.int64], seconds: float
) -> dict[str, float]:
    ndcg, hits = lists.figures(lists.places(scored(score, lists, tested), tested), TESTED_FROM, 1)
    each = microseconds_a_list(score, lists, tested)
    return {"ndcg_at_10": ndcg, "hr_at_10": hits, "cpu_seconds": seconds, "us_a_list": each}


def gathered(found: list[dict[str, float]]) -> dict[str, Any]:
    return {**found[0], "ndcg_at_10_by_seed": [row["ndcg_at_10"] for row in found]}


def trees(folder: Path, python: Path, seed: int) -> dict[str, Any]:
    """LightGBM's rows. Raises: CalledProcessError."""
    call = [str(python), "-m", "tests.benchmarks.quality.peers.trees", str(folder), "--seed", str(seed)]
    done = subprocess.run(call, check=True, cwd=REPOSITORY, stdout=subprocess.PIPE)
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


def show(name: str, row: dict[str, Any]) -> None:
    print(
        f"| {name} | {row['ndcg_at_10']:.4f} | {row['hr_at_10']:.4f} | {row['cpu_seconds']:.0f} "
        f"| {row['us_a_list']:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.rankers", description=__doc__)
    parser.add_argument("events", type=Path)
    parser.add_argument("items", type=Path)
    parser.add_argument("--lists", type=Path, help="where the lists are kept, and read from if they are there")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the Python that has LightGBM")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="the lists and the trees take the first"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.lists or REPOSITORY / "benchmark-results" / "quality" / "past-lists" / arguments.events.stem
    use_threads(1)
    if not is_written(folder):
        write_lists(folder, make_lists(arguments.events, arguments.items, arguments.seeds[0]))
    lists = read_lists(folder)
    tell(f"{len(lists.rows(0, TESTED_FROM)):,} lists to learn from, {len(lists.rows(TESTED_FROM, 1)):,} to compare on")
    print("| ranker | nDCG@10 | HR@10 | CPU s | us a list |\n|---|---|---|---|---|", flush=True)
    rows: dict[str, dict[str, Any]] = {}
    for name in RANKERS:
        rows[name] = measure(name, lists, arguments.seeds)
        show(name, rows[name])
    rows[SERVED] = measure_served(lists, arguments.seeds)
    show(SERVED, rows[SERVED])
    rows |= (of_trees := trees(folder, arguments.peers, arguments.seeds[0]))
    for name, row in of_trees.items():
        show(name, row)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")


if __name__ == "__main__":
    main()
