"""The encoder over a slice: any number of users side by side gives what one event after the other gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.state import UserState
from models.domain.waves import Step, encode, log2_gap
from tests.domain.helpers import WIDTH, BankEncoder, text_vector

ENCODER = BankEncoder()


def new_state(user: str) -> UserState:
    return UserState(user, ENCODER.initial_state(), np.zeros(ENCODER.dimension, np.float32), "m1")


def steps_of(plan: list[tuple[int, int, bool]]) -> tuple[list[UserState], list[Step]]:
    """Rows of (user, item, keep)."""
    states = [new_state(f"u{n}") for n in range(5)]
    steps = [
        Step(
            position=10 + at,
            state=states[user],
            vector=np.append(text_vector(f"i{item}"), np.float32(0)) if item else None,
            text=text_vector("t") if item % 3 == 0 else None,
            kind=item % 4,
            strength=1.0 + item,
            value=float(item),
            log2_gap=float(at),
            keep=keep,
        )
        for at, (user, item, keep) in enumerate(plan)
    ]
    return states, steps


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), max_size=30))
def test_waves_equal_one_event_after_the_other(plan: list[tuple[int, int, bool]]) -> None:
    together, steps = steps_of(plan)
    before, after = encode(ENCODER, steps)
    apart, singles = steps_of(plan)
    for step in singles:
        one_before, one_after = encode(ENCODER, [step])
        np.testing.assert_array_equal(before[step.position], one_before[step.position])
        np.testing.assert_array_equal(after[step.position], one_after[step.position])
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.memory, other.memory)
        np.testing.assert_array_equal(one.user, other.user)


def test_a_step_that_is_not_kept_is_seen_and_leaves_no_trace() -> None:
    states, steps = steps_of([(0, 1, True), (0, 2, False), (0, 3, True)])
    before, after = encode(ENCODER, steps)
    np.testing.assert_array_equal(before[11], after[10])
    np.testing.assert_array_equal(before[12], after[10])
    assert np.any(after[11] != after[10])
    np.testing.assert_array_equal(states[0].user, after[12])
    assert states[0].memory.shape == (2 * WIDTH,)


def test_nothing_to_encode_is_nothing() -> None:
    assert encode(ENCODER, []) == ({}, {})


@pytest.mark.parametrize(
    ("previous", "now", "gap"),
    [(-1, 5_000, -1.0), (0, 0, 0.0), (1_000, 2_000, 1.0), (1_000, 8_000, 3.0), (9_000, 1_000, 0.0)],
)
def test_a_gap_is_in_seconds_by_powers_of_two_and_never_negative(previous: int, now: int, gap: float) -> None:
    assert log2_gap(previous, now) == pytest.approx(gap)
