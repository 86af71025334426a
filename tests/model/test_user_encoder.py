"""The user encoder of the bootstrap bundle: its arithmetic, and that folding at once equals folding one by one."""

from __future__ import annotations

import numpy as np
import pytest

from export.graphs import DECAYS
from models.domain.errors import EncoderError
from models.domain.ports import F32, EventInputs, UserEncoder
from models.encoders.bundle import Bundle
from tests.model.conftest import event_inputs, unit_rows

BATCHES, LENGTHS = (1, 2, 17), (0, 1, 50)


def unit(rows: F32) -> F32:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def reference(state: F32, item: F32, projected_text: F32, strength: F32) -> tuple[F32, F32]:
    """The step in ten lines of numpy, one row at a time, in float64."""
    states, users = [], []
    for s, i, t, n in zip(state.astype(float), item.astype(float), projected_text.astype(float), strength, strict=True):
        banks, x = s.reshape(4, 64), i[:64] + t
        n = n if np.any(x) else 0.0
        for bank, decay in zip(banks, DECAYS, strict=True):
            bank[:] = decay ** max(n, 0.0) * bank + np.sign(n) * (1 - decay ** abs(n)) * x
        states.append(banks.ravel())
        users.append(np.append(unit(unit(banks).mean(axis=0)), 1.0))
    return np.array(states), np.array(users)


def one_by_one(encoder: UserEncoder, state: F32, inputs: EventInputs, mask: np.ndarray) -> tuple[F32, F32]:
    state = state.copy()
    users = np.zeros((len(state), encoder.dimension), np.float32)
    for time in range(mask.shape[1]):
        live = mask[:, time]
        if live.any():
            state[live], users[live] = encoder.step(state[live], EventInputs(*(field[live, time] for field in inputs)))
    return state, users


@pytest.mark.parametrize("batch", [0, 1, 2, 17, 256])
def test_a_step_keeps_its_shapes_and_types(bundle: Bundle, batch: int) -> None:
    encoder = bundle.user_encoder
    state = np.tile(encoder.initial_state(), (batch, 1))
    next_state, user = encoder.step(state, event_inputs(np.random.default_rng(0), batch))
    assert (next_state.shape, user.shape) == ((batch, encoder.state_size), (batch, encoder.dimension))
    assert (next_state.dtype, user.dtype) == (np.float32, np.float32)


def test_a_step_agrees_with_ten_lines_of_numpy(bundle: Bundle) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(1)
    inputs = event_inputs(rng, 200)
    state = rng.normal(0, 0.3, (200, 256)).astype(np.float32)
    state[:20] = 0
    projected = bundle.item_encoder.encode_many([""] * 200, inputs.text)[:, :64]
    expected_state, expected_user = reference(state, inputs.item, projected, inputs.strength)
    next_state, user = encoder.step(state, inputs)
    np.testing.assert_allclose(next_state, expected_state, atol=1e-6)
    np.testing.assert_allclose(user, expected_user, atol=2e-6)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_sequence_equals_its_steps(bundle: Bundle, batch: int, length: int) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(batch * 100 + length)
    inputs = event_inputs(rng, batch, length)
    state = rng.normal(0, 0.3, (batch, 256)).astype(np.float32)
    mask = np.arange(length) < rng.integers(0, length + 1, batch)[:, None]
    next_state, user = encoder.sequence(state, inputs, mask)
    expected_state, expected_user = one_by_one(encoder, state, inputs, mask)
    np.testing.assert_allclose(next_state, expected_state, atol=1e-5)
    some = mask.any(axis=1)
    np.testing.assert_allclose(user[some], expected_user[some], atol=1e-5)
    # Without an event a row is what it was, read off once more.
    nothing = event_inputs(rng, batch)._replace(strength=np.zeros(batch, np.float32))
    np.testing.assert_allclose(user[~some], encoder.step(state, nothing)[1][~some], atol=1e-5)


def test_a_masked_place_changes_nothing_whatever_it_holds(bundle: Bundle) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(3)
    inputs, state = event_inputs(rng, 4, 6), rng.normal(0, 0.3, (4, 256)).astype(np.float32)
    mask = np.arange(6) < np.array([[0], [2], [4], [6]])
    spoilt = EventInputs(*(field.copy() for field in inputs))
    for field in (spoilt.item, spoilt.text, spoilt.strength):
        field[~mask] = np.nan
    for left, right in zip(encoder.sequence(state, inputs, mask), encoder.sequence(state, spoilt, mask), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_row_does_not_depend_on_the_rows_beside_it(bundle: Bundle) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(4)
    inputs, state = event_inputs(rng, 64), rng.normal(0, 0.3, (64, 256)).astype(np.float32)
    together = encoder.step(state, inputs)
    for row in range(64):
        alone = encoder.step(state[row : row + 1], EventInputs(*(field[row : row + 1] for field in inputs)))
        for left, right in zip(alone, together, strict=True):
            np.testing.assert_allclose(left[0], right[row], atol=1e-6)


def test_an_event_without_vector_and_text_leaves_the_state_as_it_is(bundle: Bundle) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(5)
    state = rng.normal(0, 0.3, (8, 256)).astype(np.float32)
    inputs = event_inputs(rng, 8)._replace(
        item=np.zeros((8, 65), np.float32), text=np.zeros((8, 384), np.float32), strength=np.full(8, 3, np.float32)
    )
    np.testing.assert_array_equal(encoder.step(state, inputs)[0], state)


def test_a_user_without_a_past_has_a_zero_vector_with_the_bias_input(bundle: Bundle) -> None:
    encoder = bundle.user_encoder
    inputs = event_inputs(np.random.default_rng(6), 1)._replace(
        item=np.zeros((1, 65), np.float32), text=np.zeros((1, 384), np.float32)
    )
    _, user = encoder.step(encoder.initial_state()[None], inputs)
    np.testing.assert_array_equal(user[0], [0.0] * 64 + [1.0])


def test_user_vectors_are_unit_long_and_never_nan(bundle: Bundle) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(7)
    state = np.tile(encoder.initial_state(), (32, 1))
    for _ in range(300):
        state, user = encoder.step(state, event_inputs(rng, 32))
        assert np.isfinite(state).all()
    np.testing.assert_allclose(np.linalg.norm(user[:, :64], axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(user[:, 64], 1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e6])
def test_inputs_of_any_size_give_finite_outputs(bundle: Bundle, scale: float) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(8)
    inputs = event_inputs(rng, 16)
    inputs = inputs._replace(item=inputs.item * np.float32(scale), strength=inputs.strength * np.float32(scale))
    for _ in range(3):
        state, user = encoder.step(np.tile(encoder.initial_state(), (16, 1)), inputs)
    assert np.isfinite(state).all()
    assert np.isfinite(user).all()


def test_strength_two_moves_a_state_like_two_events(bundle: Bundle) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(9)
    state, inputs = rng.normal(0, 0.3, (5, 256)).astype(np.float32), event_inputs(rng, 5)
    twice = state
    for _ in range(2):
        twice, _ = encoder.step(twice, inputs._replace(strength=np.ones(5, np.float32)))
    once, _ = encoder.step(state, inputs._replace(strength=np.full(5, 2, np.float32)))
    np.testing.assert_allclose(once, twice, atol=1e-6)


def test_a_hidden_item_becomes_less_like_the_user_and_the_rest_of_the_taste_stays(bundle: Bundle) -> None:
    encoder, rng = bundle.user_encoder, np.random.default_rng(10)
    liked, hidden = unit_rows(rng, 1, 65), unit_rows(rng, 1, 65)
    liked[:, 64] = hidden[:, 64] = 0
    base = event_inputs(rng, 1)._replace(text=np.zeros((1, 384), np.float32), strength=np.ones(1, np.float32))
    state, before = encoder.step(encoder.initial_state()[None], base._replace(item=liked))
    _, after = encoder.step(state, base._replace(item=hidden, strength=-np.ones(1, np.float32)))
    assert float(after[0] @ hidden[0]) < float(before[0] @ hidden[0])
    assert float(after[0] @ liked[0]) > 0.5


def test_a_search_moves_the_state_toward_items_of_like_text(bundle: Bundle) -> None:
    encoder = bundle.user_encoder
    texts = ["science fiction film with space ships", "romantic comedy about a wedding"]
    items = bundle.item_encoder.encode_many(texts, bundle.text_encoder.encode_many(texts))
    inputs = event_inputs(np.random.default_rng(11), 1)._replace(
        item=np.zeros((1, 65), np.float32),
        text=bundle.text_encoder.encode_many(["star ship movie in outer space"]),
        strength=np.ones(1, np.float32),
    )
    _, user = encoder.step(encoder.initial_state()[None], inputs)
    to_space, to_wedding = items @ user[0]
    assert to_space > to_wedding + 0.1


def test_a_wrong_shape_or_type_is_an_encoder_error(bundle: Bundle) -> None:
    encoder, inputs = bundle.user_encoder, event_inputs(np.random.default_rng(12), 2)
    with pytest.raises(EncoderError):
        encoder.step(np.zeros((2, 255), np.float32), inputs)
    with pytest.raises(EncoderError):
        encoder.step(np.zeros((2, 256), np.float64), inputs)
