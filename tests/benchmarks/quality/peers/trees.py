"""Gradient-boosted trees (LightGBM) on past lists.

`tests.benchmarks.quality.rankers` writes FOLDER and calls `python -m tests.benchmarks.quality.peers.trees FOLDER` in
.venv-peers. Trials differ in objective, leaves, rate and rounds; they are compared on the latest tenth of the training
lists, and the best one of each objective is fitted on all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import msgspec
import numpy as np
import numpy.typing as npt

from tests.benchmarks.quality.past_lists import (
    CHOSEN_FROM,
    TESTED_FROM,
    K,
    PastLists,
    microseconds_a_list,
    read_lists,
    scored,
    spread,
)

# Candidates of a list that are learned from, the chosen one and others at random: as many as an update of ours sees.
SAMPLED = 32
OBJECTIVES = ("lambdarank", "rank_xendcg")
LEAVES_AND_RATE = ((7, 0.1), (15, 0.1), (31, 0.05))
ROUNDS = (50, 100, 200, 300, 400)
# Lists a trial is fitted on, spread evenly (on all of those of films one trial took three minutes), and lists it is
# compared on, as many as `RankerTrainer` looks at.
SEARCHED_LISTS, CHECKED_LISTS = 15_000, 3_000

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class Trial(NamedTuple):
    objective: str
    leaves: int
    rate: float
    rounds: int
    ndcg: float


def sample(lists: PastLists, rows: I64, rng: np.random.Generator) -> lightgbm.Dataset:
    """Rows of the chosen candidate and of `SAMPLED` - 1 others of each list, drawn evenly once and for all."""
    features, labels, groups = [], [], []
    for start in range(0, len(rows), 1_000):
        some = rows[start : start + 1_000]
        kept = lists.draw(some, SAMPLED, rng)
        there = kept < lists.size[some][:, None]
        features.append(lists.features[some][np.arange(len(some))[:, None], kept][there].astype(np.float32))
        labels.append((kept == lists.chosen[some][:, None])[there])
        groups.append(there.sum(1))
    return lightgbm.Dataset(
        np.concatenate(features), np.concatenate(labels).astype(np.float32), group=np.concatenate(groups)
    )


def fit(data: lightgbm.Dataset, objective: str, leaves: int, rate: float, rounds: int, seed: int) -> lightgbm.Booster:
    options: dict[str, Any] = {
        "objective": objective,
        "num_leaves": leaves,
        "learning_rate": rate,
        "min_data_in_leaf": 50,
        "num_threads": 1,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }
    return lightgbm.train(options, data, rounds)


def score(booster: lightgbm.Booster, features: F32, first: int = 0, rounds: int = -1) -> F32:
    """float32[B, K] of the trees [first, first + rounds). Args: features: float32[B, K, F]."""
    flat = features.reshape(-1, features.shape[2])
    found = booster.predict(flat, start_iteration=first, num_iteration=rounds, raw_score=True, num_threads=1)
    return np.asarray(found, np.float32).reshape(features.shape[:2])


def tried(lists: PastLists, data: lightgbm.Dataset, objective: str, leaves: int, rate: float, seed: int) -> list[Trial]:
    """One fit, looked at after each of `ROUNDS`."""
    rows = spread(lists.rows(CHOSEN_FROM, TESTED_FROM), CHECKED_LISTS)
    started = time.process_time()
    booster = fit(data, objective, leaves, rate, ROUNDS[-1], seed)
    seconds = time.process_time() - started
    found = np.zeros((len(rows), lists.features.shape[1]), np.float32)
    trials = []
    for first, until in zip((0, *ROUNDS), ROUNDS, strict=False):
        found += scored(partial(score, booster, first=first, rounds=until - first), lists, rows)
        places = lists.places(found, rows)
        trials.append(Trial(objective, leaves, rate, until, float(((places <= K) / np.log2(1 + places)).mean())))
        print(*trials[-1], f"{seconds:.0f} s", file=sys.stderr, flush=True)
    return trials


def choose(lists: PastLists, objective: str, seed: int) -> Trial:
    """Leaves and rate on some of the lists, rounds on all of them: more lists bear more rounds."""
    early = lists.rows(0, CHOSEN_FROM)
    data = sample(lists, spread(early, SEARCHED_LISTS), np.random.default_rng(seed))
    trials = [trial for leaves, rate in LEAVES_AND_RATE for trial in tried(lists, data, objective, leaves, rate, seed)]
    best = max(trials, key=lambda trial: trial.ndcg)
    data = sample(lists, early, np.random.default_rng(seed))
    return max(tried(lists, data, objective, best.leaves, best.rate, seed), key=lambda trial: trial.ndcg)


def measure(lists: PastLists, trial: Trial, seed: int) -> dict[str, Any]:
    """The trial fitted on all training lists, asked once on the tested ones."""
    rows = lists.rows(TESTED_FROM, 1.0)
    started = time.process_time()
    data = sample(lists, lists.rows(0, TESTED_FROM), np.random.default_rng(seed))
    booster = fit(data, trial.objective, trial.leaves, trial.rate, trial.rounds, seed)
    seconds = time.process_time() - started
    ndcg, hits = lists.figures(lists.places(scored(partial(score, booster), lists, rows), rows), TESTED_FROM, 1.0)
    each = microseconds_a_list(partial(score, booster), lists, rows)
    return {"ndcg_at_10": ndcg, "hr_at_10": hits, "cpu_seconds": seconds, "us_a_list": each, "trial": trial._asdict()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.peers.trees", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lists = read_lists(arguments.folder)
    found = {
        f"LightGBM, {objective}": measure(lists, choose(lists, objective, arguments.seed), arguments.seed)
        for objective in OBJECTIVES
    }
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
