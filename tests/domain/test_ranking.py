"""Selection against numpy references, and learning from choices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.features import BASE_COUNT, BASE_FEATURES
from models.domain.heaps import top_of
from models.domain.ranking import (
    BOOTSTRAP_WEIGHTS,
    FIRST_SQUARES,
    AdaptiveWeights,
    best_places,
    bootstrap_weights,
    inner_products,
    nearest,
)
from tests.domain.helpers import Player, catalogue_of, click, lists_of, make_pipeline, records, request

seeds = st.integers(0, 2**32)


def tied_scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Many equal values, so that ties are the rule."""
    return rng.integers(0, rng.choice([2, 5, 1_000]), shape).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_top_of_equals_a_sort_with_ties_by_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = tied_scores(rng, 60)
    members = rng.permutation(60).astype(np.int32)
    count, limit = int(rng.integers(0, 61)), int(rng.integers(1, 70))
    out = np.full(limit, -7, np.int32)
    got = top_of(keys, members, count, out)
    wanted = sorted(members[:count].tolist(), key=lambda i: (-keys[i], i))[:limit]
    assert out[:got].tolist() == wanted


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_best_places_equal_a_stable_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, candidates, wanted = int(rng.integers(1, 6)), 40, int(rng.integers(1, 41))
    scores = tied_scores(rng, rows, candidates)
    sizes = rng.integers(0, candidates + 1, rows).astype(np.int32)
    out = np.empty((rows, wanted), np.int32)
    best_places(scores, sizes, out)
    for row in range(rows):
        order = np.argsort(-scores[row, : sizes[row]], kind="stable")[:wanted].tolist()
        assert out[row].tolist() == order + [-1] * (wanted - len(order))


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_nearest_equals_a_sort_of_what_is_eligible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, items, depth = int(rng.integers(1, 5)), int(rng.integers(1, 80)), int(rng.integers(1, 30))
    scores, eligible = tied_scores(rng, rows, items), rng.random(items) < 0.8
    lengths = rng.integers(0, 20, rows)
    ends = np.cumsum(lengths)
    # -1 is no item, and an index beyond the scores is one the catalogue has learned since.
    excluded = rng.integers(-1, items + 3, int(ends[-1])).astype(np.int32)
    out = np.empty((rows, depth), np.int32)
    nearest(scores, eligible, excluded, (ends - lengths).astype(np.int64), ends.astype(np.int64), out)
    for row in range(rows):
        gone = set(excluded[ends[row] - lengths[row] : ends[row]].tolist())
        wanted = [i for i in range(items) if eligible[i] and i not in gone]
        wanted = sorted(wanted, key=lambda i: (-scores[row, i], i))[:depth]
        assert out[row].tolist() == wanted + [-1] * (depth - len(wanted))


@pytest.mark.parametrize(("users", "items", "dimension"), [(1, 1, 3), (5, 127, 65), (64, 300, 65)])
def test_inner_products_equal_numpys_and_do_not_depend_on_what_stands_beside(
    users: int, items: int, dimension: int
) -> None:
    rng = np.random.default_rng(0)
    user = rng.normal(size=(users, dimension)).astype(np.float32)
    vectors = rng.normal(size=(items, dimension)).astype(np.float32)
    out = np.empty((users, items), np.float32)
    inner_products(user, vectors, out)
    np.testing.assert_allclose(out, user @ vectors.T, atol=1e-4)
    for row in range(users):
        for count in (1, items // 2, items):
            alone = np.empty((1, count), np.float32)
            inner_products(user[row : row + 1], vectors, alone)
            np.testing.assert_array_equal(alone[0], out[row, :count])


def test_the_bootstrap_weights_name_features() -> None:
    assert set(BOOTSTRAP_WEIGHTS) <= set(BASE_FEATURES)
    assert len(bootstrap_weights()) == BASE_COUNT
    assert sum(weight != 0 for weight in bootstrap_weights()) == len(BOOTSTRAP_WEIGHTS)


def test_adaptive_weights_start_from_a_copy_and_add_up() -> None:
    initial = np.ones(BASE_COUNT, np.float32)
    weights = AdaptiveWeights(initial)
    weights.add(np.full(BASE_COUNT, 0.5), np.ones(BASE_COUNT))
    assert initial.tolist() == [1.0] * BASE_COUNT
    assert weights.weights.tolist() == [1.5] * BASE_COUNT
    assert weights.squares.tolist() == [FIRST_SQUARES + 1.0] * BASE_COUNT


def test_learning_raises_what_is_chosen_again_and_again() -> None:
    """Everybody takes the newest item, which the bootstrap weights put last: the ranker learns to put it first."""

    def stream(learn: bool) -> list[int]:
        pipeline = make_pipeline(catalogue_of([]))
        pipeline.options = pipeline.options._replace(learn=learn)
        player, offset, places = Player(pipeline), 0, []
        old = [click(f"old{n}", f"i{n % 40}", n) for n in range(200)]
        player.play(records(old))
        offset = len(old)
        for n in range(60):
            new = f"new{n}"
            at = 1_000 + n * 10
            player.play(records([click(f"author{n}", new, at), click(f"reader{n}", new, at + 5)], start=offset))
            offset += 2
            (asked,) = player.results[-1].asked.values()
            places.append(asked.index(new) + 1 if new in asked else 99)
        return places

    learned, frozen = stream(True), stream(False)
    assert np.mean(learned[-10:]) <= np.mean(frozen[-10:])
    assert np.mean(learned[-10:]) <= 2
    assert stream(True) == learned


def test_a_choice_becomes_more_likely_by_being_made() -> None:
    pipeline = make_pipeline()
    player = Player(pipeline).play(records([click(f"u{n % 4}", f"i{n}", n) for n in range(20)]))
    weights = pipeline.weights
    assert weights is not None
    ask = records([request("v", 30, k=20)], log="requests@1/0")
    player.play(ask)
    chosen = lists_of(player.results[-1])[0][-1]
    before = weights.weights.copy()
    player.play(records([click("v", chosen, 31)], start=20))
    moved = weights.weights - before
    assert np.any(moved != 0)
    assert np.abs(moved).max() <= 0.1 + 1e-9
    assert (weights.squares >= 1).all()
