"""The best of what co-visitation reaches, against a plain sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.candidates import COVISIT_80, COVISITED, SOURCE_COUNT, _best_covisited, new_scratch, turns_of
from models.domain.statistics import Statistics

ITEMS = 600


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, ITEMS),
    st.sampled_from([0.0, 1.0, 20.0]),
    st.sampled_from([1, 3, ITEMS]),
    st.floats(0.0, 1.0),
)
def test_the_best_are_those_of_a_sort(seed: int, touched: int, spread: float, distinct: int, share: float) -> None:
    """Ties in the order in which the items were met; over any range of sums, and however few may be proposed."""
    rng = np.random.default_rng(seed)
    arrays, scratch = Statistics(ITEMS).arrays, new_scratch(ITEMS)
    arrays.pairs.inverse_root[:] = 1.0
    members = rng.permutation(ITEMS)[:touched].astype(np.int32)
    sums = np.exp(rng.normal(size=distinct) * spread).astype(np.float32)[rng.integers(0, distinct, touched)]
    scratch.touched[:touched] = members
    scratch.covisit[members, COVISIT_80] = sums
    available = rng.random(ITEMS) < share
    scratch.stamp[0] = 1
    scratch.excluded[rng.integers(0, ITEMS, 50)] = 1
    allowed = available[members] & (scratch.excluded[members] != 1)
    got = _best_covisited(arrays, scratch, available, touched)
    order = np.argsort(-sums[allowed], kind="stable")[:COVISITED]
    assert scratch.covisited[:got].tolist() == members[allowed][order].tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.05, 0.25, 0.5, 0.77, 1.0]), min_size=SOURCE_COUNT, max_size=SOURCE_COUNT))
def test_turns_go_to_the_source_whose_next_place_costs_least(worth: list[float]) -> None:
    depth = 40
    given_out = [0] * SOURCE_COUNT
    for source in turns_of(np.array(worth), depth).tolist():
        costs = [(given + 1) / each if given < depth else np.inf for given, each in zip(given_out, worth, strict=True)]
        assert source == costs.index(min(costs))
        given_out[source] += 1
    assert given_out == [depth] * SOURCE_COUNT
