"""Logarithms of many numbers at once, and places by a key, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.logarithms import exp_all, log_all
from models.domain.places import places


def test_logarithms_are_off_by_less_than_a_millionth() -> None:
    numbers = np.exp(np.random.default_rng(0).uniform(-80, 80, 100_000)).astype(np.float32)
    expected = np.log(numbers.astype(np.float64))
    log_all(numbers)
    np.testing.assert_allclose(numbers, expected, rtol=2e-7, atol=1e-7)


def test_the_logarithm_of_one_is_zero() -> None:
    ones = np.ones(37, np.float32)
    log_all(ones)
    assert not ones.any()


def test_exponentials_are_off_by_less_than_a_millionth() -> None:
    numbers = np.random.default_rng(0).uniform(-87, 80, 100_000).astype(np.float32)
    expected = np.exp(numbers.astype(np.float64))
    exp_all(numbers)
    np.testing.assert_allclose(numbers, expected, rtol=2e-7)


def test_the_exponential_of_nothing_is_one_and_of_very_little_next_to_nothing() -> None:
    numbers = np.array([0.0, -0.0, -88.0, -1e9, -np.inf], np.float32)
    exp_all(numbers)
    assert numbers[:2].tolist() == [1.0, 1.0]
    assert ((numbers[2:] > 0) & (numbers[2:] < 1e-37)).all()


@pytest.mark.parametrize("size", [0, 1, 2, 17, 300, 512, 513, 700])
def test_places_are_those_of_a_sort(size: int) -> None:
    keys = np.random.default_rng(size).permutation(size).astype(np.float32)
    assert places(keys).tolist() == (size - 1 - keys).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(-2, 2).map(float), st.just(-0.0), st.floats(width=32, allow_nan=False)), max_size=80)
)
def test_places_fall_with_the_keys_and_equal_ones_keep_their_order(drawn: list[float]) -> None:
    keys = np.array(drawn, np.float32)
    expected = np.empty(len(keys))
    expected[np.argsort(-keys, kind="stable")] = np.arange(len(keys))
    assert places(keys).tolist() == expected.tolist()
