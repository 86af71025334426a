"""What a learned model costs on one thread: a step at batch 256; features and network of 300 candidates.

`python -m tests.benchmarks.learned_cost BUNDLE [--json FILE]`; the bundle is one that `streamrec train` wrote. The
statistics are those of a made stream (1,700 items, 100,000 touches), since their size decides the time. Each user has
fellows, items passed over and fifty excluded ones, as users of some standing have. Lists are made in a compiled loop,
as `play` makes them: a call from Python alone takes some twenty microseconds to hand its hundred arrays over.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numba import njit

from models.domain.candidates import LEARNED_QUERY_WINDOW, Query, clear, new_lists, new_scratch, propose, turns_of
from models.domain.features import FEATURE_COUNT, describe_list
from models.domain.fellows import FELLOW_LEVELS, FELLOWS, SIDES, describe_choosers, gather
from models.domain.habits import HABITS, NO_HABITS, PASSED_LENGTH, Habits, people_of
from models.domain.ports import EventInputs
from models.domain.statistics import PAIR_WINDOW, TOP_LIST_LENGTH, Statistics, Touches
from models.encoders.bundle import load_bundle

ITEMS, USERS, TOUCHES, EXCLUDED = 1_700, 1_000, 100_000, 50
BATCH, CANDIDATES, REPEATS = 64, 300, 20


def made_statistics(rng: np.random.Generator) -> Statistics:
    chance = 1.0 / (10.0 + np.arange(ITEMS))
    chance /= chance.sum()
    statistics = Statistics(ITEMS)
    for start in range(0, TOUCHES, 1_000):
        item = rng.choice(ITEMS, 1_000, p=chance).astype(np.int32)
        statistics.update(
            Touches(
                item,
                (np.arange(start, start + 1_000) * 60_000).astype(np.int64),
                rng.random(1_000).astype(np.float32),
                np.ones(1_000, np.bool_),
                rng.random(1_000) < 0.5,
                rng.choice(ITEMS, (1_000, PAIR_WINDOW), p=chance).astype(np.int32),
                rng.integers(0, 10**6, (1_000, PAIR_WINDOW)),
                rng.integers(1, USERS, 1_000).astype(np.int32),
                rng.integers(0, 500, 1_000).astype(np.int32),
                rng.integers(0, 10**8, 1_000),
            )
        )
    return statistics


def made_habits(rng: np.random.Generator) -> Habits:
    return NO_HABITS._replace(
        choice=rng.random(HABITS).astype(np.float32),
        passed=rng.choice(ITEMS, PASSED_LENGTH, replace=False).astype(np.int32),
        weight=rng.random((PASSED_LENGTH, 3)).astype(np.float32),
        fellow=(1 + rng.choice(USERS - 1, FELLOWS, replace=False)).astype(np.int32),
        closeness=rng.random((FELLOWS, SIDES)).astype(np.float32),
    )


@njit
def describe(arrays, scratch, vectors, available, query, people, turns, lists):  # type: ignore[no-untyped-def]
    """Candidates and features of every list."""
    for row in range(lists.size.shape[0]):
        describe_list(arrays, scratch, vectors, available, query, people, turns, lists, row)


@njit
def find_candidates(arrays, scratch, available, query, turns, lists):  # type: ignore[no-untyped-def]
    for row in range(lists.size.shape[0]):
        propose(arrays, scratch, available, query, lists, row, turns, True)
        clear(arrays, scratch, query, row)


@njit
def see_fellows(arrays, scratch, people, lists):  # type: ignore[no-untyped-def]
    levels, shares = np.empty((CANDIDATES, FELLOW_LEVELS), np.float32), np.empty(CANDIDATES, np.float32)
    for row in range(lists.size.shape[0]):
        slots, places, closeness = scratch.fellow_slots, scratch.fellow_places, people.closeness[row]
        gather(slots, places, people.fellow[row])
        items = lists.item[row, : lists.size[row]]
        describe_choosers(arrays.choosers, slots, places, closeness, items, 0.1, levels, shares)


def best_of(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the quickest run: what the machine can do while nobody else uses it."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    rng = np.random.default_rng(0)
    statistics = made_statistics(rng)
    dimension = bundle.user_encoder.dimension
    vectors = rng.normal(size=(ITEMS, dimension)).astype(np.float32)
    recent = np.stack([rng.choice(ITEMS, LEARNED_QUERY_WINDOW, replace=False) for _ in range(BATCH)]).astype(np.int32)
    statistics.reserve(ITEMS, 0)
    query = Query(
        user=rng.normal(size=(BATCH, dimension)).astype(np.float32),
        now_ms=np.full(BATCH, TOUCHES * 60_000),
        last_ms=np.full(BATCH, TOUCHES * 60_000 - 90_000),
        recent=recent,
        recent_ms=np.full(recent.shape, TOUCHES * 60_000 - 90_000) - 30_000 * np.arange(recent.shape[1]),
        liked=rng.random(recent.shape) < 0.5,
        history=np.full(BATCH, 50.0, np.float32),
        chosen=np.full(BATCH, 50.0, np.float32),
        person=np.arange(BATCH),
        target=np.full(BATCH, -1, np.int32),
        deep=np.ones(BATCH, np.bool_),
        encoder_top=np.stack([rng.choice(ITEMS, CANDIDATES // 2, replace=False) for _ in range(BATCH)]).astype(
            np.int32
        ),
        newest=np.empty(0, np.int32),
        excluded_from=np.arange(BATCH) * EXCLUDED,
        excluded_to=np.arange(1, BATCH + 1) * EXCLUDED,
        excluded=rng.choice(ITEMS, BATCH * EXCLUDED).astype(np.int32),
    )
    lists = new_lists(BATCH, FEATURE_COUNT, CANDIDATES)
    people = people_of([made_habits(rng) for _ in range(BATCH)])
    scratch, available = new_scratch(statistics.capacity), np.ones(ITEMS, np.bool_)
    worth = bundle.ranker.source_weights
    turns = turns_of(np.ones(lists.reached.shape[1]) if worth is None else worth.astype(np.float64), TOP_LIST_LENGTH)

    arrays = statistics.arrays
    whole = (arrays, scratch, vectors, available, query, people, turns, lists)
    describe(*whole)
    find_candidates(arrays, scratch, available, query, turns, lists)
    see_fellows(arrays, scratch, people, lists)
    user = bundle.user_encoder
    inputs = EventInputs(
        item=rng.normal(size=(256, dimension)).astype(np.float32),
        text=np.zeros((256, user.text_dimension), np.float32),
        kind=np.ones(256, np.int64),
        strength=np.ones(256, np.float32),
        value=np.full(256, 0.8, np.float32),
        log2_gap=np.full(256, 5.0, np.float32),
    )
    states = np.zeros((256, user.state_size), np.float32)
    found = {
        "candidates": int(lists.size.mean()),
        "features_us_a_list": best_of(lambda: describe(*whole)) / BATCH * 1e6,
        "of_it_candidates": best_of(lambda: find_candidates(arrays, scratch, available, query, turns, lists))
        / BATCH
        * 1e6,
        "of_it_fellows": best_of(lambda: see_fellows(arrays, scratch, people, lists)) / BATCH * 1e6,
        "network_us_a_list": best_of(lambda: bundle.ranker.score(lists.features, None)) / BATCH * 1e6,
        "step_us_an_event": best_of(lambda: user.step(states, inputs), 200) / 256 * 1e6,
    }
    for name, value in found.items():
        print(f"{name:<20} {value:8.1f}")
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


if __name__ == "__main__":
    main()
