"""A review's value from its text: terms, past means, the fit, and the graph that serves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.review_value import export_review_value, open_review_value, review_value_graph
from models.domain.errors import EncoderError, ParityError, TrainingError
from models.domain.events import Item
from models.domain.review_text import BUCKETS, F32, MAX_CHARACTERS, hashed_terms
from models.encoders.bundle import Bundle
from models.encoders.review_value import OnnxReviewValue
from models.learning.past_values import COLUMNS, DAY_MS, NO_KIN, Kin, PastValues
from models.learning.review_value_weights import ReviewValueWeights, from_state, from_text

EMBEDDING, PAST, LEVELS = 12, 7, 4
GOLDEN = [700, 5180, 6063, 17841, 25135, 26477, 45701, 55993, 60487, 62466]
TEXTS = ("", "great, GREAT sound!", "  ", "it broke after a week. Don't buy", "好极了，声音很好", "x" * 5_000)


def made_weights(embedding: int = EMBEDDING) -> ReviewValueWeights:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> F32:
        return rng.normal(size=shape).astype(np.float32)

    return ReviewValueWeights(
        idf=np.where(rng.random(BUCKETS) < 0.9, 1 + 5 * rng.random(BUCKETS), 0).astype(np.float32),
        words=normal(BUCKETS, LEVELS),
        embedding=normal(embedding, LEVELS) / np.float32(np.sqrt(embedding)),
        text_bias=normal(LEVELS),
        state_past=normal(PAST, LEVELS),
        state_bias=normal(LEVELS),
        base=0.2,
        steps=np.full(LEVELS, 0.2, np.float32),
    )


def served(weights: ReviewValueWeights) -> OnnxReviewValue:
    return open_review_value(review_value_graph(weights))


def ids_of(text: str) -> set[int]:
    return set(hashed_terms([text]).ids.tolist())


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=80), max_size=6))
def test_a_text_has_the_same_terms_alone_and_in_any_batch(texts: list[str]) -> None:
    together = hashed_terms(texts)
    assert len(together.offsets) == len(texts) + 1
    assert together.offsets[-1] == len(together.ids) == len(together.counts)
    for at, text in enumerate(texts):
        alone = hashed_terms([text])
        part = slice(together.offsets[at], together.offsets[at + 1])
        np.testing.assert_array_equal(alone.ids, together.ids[part])
        np.testing.assert_array_equal(alone.counts, together.counts[part])
        assert np.all(np.diff(alone.ids) > 0)
        assert np.all((alone.ids >= 0) & (alone.ids < BUCKETS))
        assert np.all(alone.counts >= 1)


def test_many_texts_are_hashed_in_chunks_that_leave_no_trace() -> None:
    texts = [f"review number {n} says {'good' if n % 3 else 'bad'}" for n in range(600)]
    whole = hashed_terms(texts)
    for at in (0, 255, 256, 511, 599):
        np.testing.assert_array_equal(
            whole.ids[whole.offsets[at] : whole.offsets[at + 1]], hashed_terms([texts[at]]).ids
        )


def test_terms_are_those_that_stored_weights_were_fitted_on() -> None:
    """A change of the hash makes every bundle's weights meaningless: it must be seen."""
    assert hashed_terms(["Not bad!"]).ids.tolist() == GOLDEN


def test_case_and_the_kind_of_apostrophe_make_no_other_words() -> None:
    assert ids_of("DON\u2019T buy") == ids_of("don't buy")
    assert ids_of("don't") != ids_of("don t")


def test_order_and_repetition_are_seen() -> None:
    assert ids_of("not good") != ids_of("good not")
    counts = hashed_terms(["ab " * 20]).counts
    assert counts.max() == 20


def test_scripts_without_spaces_share_words() -> None:
    assert len(ids_of("声音很好") & ids_of("很好听")) >= 3  # two characters and their pair
    assert ids_of("ดีมาก") & ids_of("ไม่ดี")
    assert ids_of("👍") & ids_of("ok 👍")


def test_what_stands_beyond_the_limit_is_not_read() -> None:
    text = "word " * (MAX_CHARACTERS // 5)
    assert ids_of(text) == ids_of(text + "surprise")


def test_a_past_row_is_read_from_the_past_alone() -> None:
    rng = np.random.default_rng(1)
    n = 200
    users, items = [f"u{k}" for k in rng.integers(0, 9, n)], [f"i{k}" for k in rng.integers(0, 9, n)]
    times = np.sort(rng.integers(0, 40, n) * 86_400_000).tolist()
    values = np.where(rng.random(n) < 0.2, -1, rng.random(n)).tolist()
    lengths = rng.integers(0, 50, n).tolist()

    def rows_of(values: list[float]) -> F32:
        past, rows = PastValues(), []
        for user, item, time_ms, value, length in zip(users, items, times, values, lengths, strict=True):
            rows.append(past.row(user, item, time_ms))
            past.update(user, item, time_ms, value if value >= 0 else None, length)
        return np.array(rows)

    rows = rows_of(values)
    assert rows.shape == (n, COLUMNS)
    assert np.isfinite(rows).all()
    later = rows_of([*values[:100], *([0.0] * 100)])
    np.testing.assert_array_equal(rows[:101], later[:101])
    assert not np.array_equal(rows[101:], later[101:])


def test_reading_a_past_row_changes_nothing() -> None:
    past = PastValues()
    past.update("u", "i", 0, 1.0, 0)
    before = past.row("u", "i", 5)
    past.row("stranger", "thing", 7)
    np.testing.assert_array_equal(past.row("u", "i", 5), before)
    assert not np.array_equal(before, past.row("stranger", "i", 5))


def test_a_generous_user_and_a_poor_item_move_their_means() -> None:
    past = PastValues()
    for k in range(20):
        past.update("generous", f"i{k}", k, 1.0, 0)
        past.update(f"u{k}", "poor", k, 0.2, 0)
    assert past.row("generous", "new", 99)[3] > 0.1
    assert past.row("new", "poor", 99)[6] < -0.1


def test_an_item_is_foreseen_by_its_kin_until_it_has_values_of_its_own() -> None:
    past = PastValues()
    cable, drum = Kin(("cables",), "acme"), Kin(("drums",), "thump")
    for k in range(60):
        past.update(f"u{k}", f"cable{k}", k, 0.2, 0, cable)
        past.update(f"v{k}", f"drum{k}", k, 1.0, 0, drum)
    bad, good, stranger = (past.row("new", "thing", 99, kin)[-2:] for kin in (cable, drum, Kin(("harps",), "string")))
    assert (bad < -0.1).all()
    assert (good > 0.05).all()
    assert (stranger == 0.0).all()
    np.testing.assert_allclose(
        past.row("new", "thing", 99, Kin(("cables", "drums"), ""))[-2], (bad[0] + good[0]) / 2, rtol=1e-5
    )
    past.update("w", "thing", 98, 0.8, 0, drum)
    own = past.row("new", "thing", 99, cable)[-2:]
    np.testing.assert_allclose(own, bad * 8 / 9, rtol=0.02)


def test_kin_is_what_the_catalogue_declares() -> None:
    item = Item(item_id="i", title="Fender FC-5 Pedal", categories=("Pedals", "Switches"))
    assert Kin.of(item) == Kin(("Pedals", "Switches"), "fender")
    assert Kin.of(Item(item_id="j")) == NO_KIN


def test_values_of_an_earlier_time_stamp_are_not_of_this_one() -> None:
    past, without = PastValues(), PastValues()
    for one in (past, without):
        one.update("u", "i", 0, 1.0, 0)
        one.update("u", "j", DAY_MS, None, 0)
    past.update("u", "k", DAY_MS, 0.2, 0)
    same, other = without.row("u", "l", DAY_MS), without.row("u", "l", DAY_MS + 1)
    np.testing.assert_allclose(same, other, atol=1e-6)
    assert not np.allclose(past.row("u", "l", DAY_MS), past.row("u", "l", DAY_MS + 1), atol=1e-2)


def test_the_longest_untouched_users_are_forgotten() -> None:
    past = PastValues(capacity=2)
    for user in ("a", "b", "c"):
        past.update(user, "i", 0, 0.2, 0)
    unknown = past.row("nobody", "i", 1)
    np.testing.assert_array_equal(past.row("a", "i", 1), unknown)
    assert not np.array_equal(past.row("b", "i", 1), unknown)


@pytest.mark.parametrize("batch", [0, 1, 2, 17])
def test_the_graph_gives_what_the_weights_give(batch: int) -> None:
    weights, rng = made_weights(), np.random.default_rng(2)
    texts = [TEXTS[k % len(TEXTS)] for k in range(batch)]
    vectors = rng.normal(size=(batch, EMBEDDING)).astype(np.float32)
    data, worst = export_review_value(weights, texts, vectors)
    assert worst <= 1e-5
    head = open_review_value(data)
    values = head.expect_many(texts, vectors)
    assert values.dtype == np.float32
    told = values[[bool(text.strip()) for text in texts]]
    assert np.all((told >= 0.2) & (told <= 1.0 + 1e-6))
    np.testing.assert_allclose(values, from_text(weights, texts, vectors), atol=1e-5)
    for at, text in enumerate(texts):
        np.testing.assert_allclose(head.expect_many([text], vectors[at : at + 1])[0], values[at], atol=1e-6)
    levels = head.read_many(texts, vectors)
    stars = np.arange(1, 6) / 5
    nearest = stars[np.abs(values[:, None] - stars).argmin(1)]
    np.testing.assert_allclose(levels, np.where(values < 0, -1, nearest), atol=1e-6)


def test_a_text_without_words_has_no_value() -> None:
    assert served(made_weights()).read_many(["", " . "], np.ones((2, EMBEDDING), np.float32)).tolist() == [-1, -1]


def test_shapes_that_do_not_fit_are_refused() -> None:
    head = served(made_weights())
    for texts, shape in ((["a"], (1, EMBEDDING + 1)), (["a", "b"], (1, EMBEDDING))):
        with pytest.raises(EncoderError, match="`embedding` of shape"):
            head.read_many(texts, np.zeros(shape, np.float32))


def test_another_graph_is_no_review_head(bundle: Bundle) -> None:
    with pytest.raises(EncoderError, match="review value"):
        OnnxReviewValue(bundle.ranker._session)


def test_weights_that_are_no_numbers_are_not_exported() -> None:
    weights = made_weights()
    broken = replace(weights, text_bias=np.full(LEVELS, np.nan, np.float32))
    with pytest.raises(ParityError):
        export_review_value(broken, ["a"], np.ones((1, EMBEDDING), np.float32))


GOOD, BAD = ("lovely", "superb", "perfect"), ("broken", "awful", "returned")
N, FIT, VALIDATION = 1_200, 800, 950


def reviews(seed: int = 0) -> tuple[list[str], F32, F32, F32]:
    """Texts whose words say the value, embeddings that say a little, past columns of which one says a little."""
    rng = np.random.default_rng(seed)
    values = rng.choice([0.2, 0.4, 0.6, 0.8, 1.0], N, p=[0.1, 0.1, 0.1, 0.2, 0.5]).astype(np.float32)
    neutral = [f"word{k}" for k in range(60)]
    texts = []
    for value in values:
        verdict = [str(rng.choice(GOOD if rng.random() < value else BAD)) for _ in range(4)]
        words = [*verdict, *(str(word) for word in rng.choice(neutral, 8))]
        texts.append(" ".join(words[k] for k in rng.permutation(len(words))))
    embeddings = rng.normal(size=(N, EMBEDDING)).astype(np.float32)
    embeddings[:, 0] += 2 * values
    past = rng.normal(size=(N, PAST)).astype(np.float32)
    past[:, 1] += 2 * values
    return texts, embeddings, values, past


def rmse(predicted: F32, values: F32) -> float:
    return float(np.sqrt(np.mean((predicted - values)[VALIDATION:] ** 2)))


@pytest.mark.train
def test_text_and_embedding_each_say_something_and_shuffled_text_nothing() -> None:
    pytest.importorskip("torch")
    from models.learning.review_value import fit_review_value

    texts, embeddings, values, past = reviews()

    def fitted(texts: list[str], embeddings: F32) -> tuple[float, float]:
        weights = fit_review_value(texts, embeddings, values, past, fit_end=FIT, validation_end=VALIDATION)
        return rmse(from_text(weights, texts, embeddings), values), rmse(from_state(weights, past), values)

    spread = float(values[VALIDATION:].std())
    nothing = np.zeros((N, 1), np.float32)
    (both, state), (words, _) = fitted(texts, embeddings), fitted(texts, nothing)
    shuffled = [texts[k] for k in np.random.default_rng(1).permutation(N)]
    control, _ = fitted(shuffled, nothing)
    assert both < words < 0.8 * spread
    assert state < 0.9 * spread
    assert control > 0.98 * spread


@pytest.mark.train
def test_the_same_past_gives_the_same_weights_whatever_comes_after() -> None:
    pytest.importorskip("torch")
    from models.learning.review_value import fit_review_value

    texts, embeddings, values, past = reviews()
    first = fit_review_value(texts, embeddings, values, past, fit_end=FIT, validation_end=VALIDATION)
    late = N - VALIDATION
    other = fit_review_value(
        [*texts[:VALIDATION], *(["nothing alike"] * late)],
        np.concatenate([embeddings[:VALIDATION], np.ones((late, EMBEDDING), np.float32)]),
        np.concatenate([values[:VALIDATION], np.zeros(late, np.float32)]),
        np.concatenate([past[:VALIDATION], np.ones((late, PAST), np.float32)]),
        fit_end=FIT,
        validation_end=VALIDATION,
    )
    for name in ("idf", "words", "embedding", "text_bias", "state_past", "state_bias", "steps"):
        np.testing.assert_array_equal(getattr(first, name), getattr(other, name))
    assert first.metrics == other.metrics


@pytest.mark.train
def test_events_without_value_or_text_are_left_out_and_a_fine_scale_is_cut() -> None:
    pytest.importorskip("torch")
    from models.learning.review_value import MAX_LEVELS, fit_review_value

    texts, embeddings, values, past = reviews()
    rng = np.random.default_rng(4)
    values = np.clip(values - 0.2 * rng.random(N), 0, 1).astype(np.float32)
    known = values.copy()
    values[rng.random(N) < 0.2] = -1
    texts = ["" if rng.random() < 0.2 else text for text in texts]
    weights = fit_review_value(texts, embeddings, values, past, fit_end=FIT, validation_end=VALIDATION)
    assert len(weights.steps) == MAX_LEVELS - 1
    assert np.all(weights.steps > 0)
    assert weights.base + weights.steps.sum() <= 1
    read = from_text(weights, texts, embeddings)
    without = np.array([not text for text in texts])
    assert np.all(read[without] == -1)
    late = ~without & (np.arange(N) >= VALIDATION)
    assert np.sqrt(np.mean((read - known)[late] ** 2)) < 0.9 * known.std()


@pytest.mark.train
def test_too_few_or_equal_values_are_refused() -> None:
    pytest.importorskip("torch")
    from models.learning.review_value import fit_review_value

    texts, _, _, past = reviews()
    with pytest.raises(TrainingError, match="texts with a value"):
        fit_review_value(texts, None, np.full(N, -1, np.float32), past, fit_end=FIT, validation_end=VALIDATION)
    with pytest.raises(TrainingError, match="all values are the same"):
        fit_review_value(texts, None, np.ones(N, np.float32), past, fit_end=FIT, validation_end=VALIDATION)


@pytest.mark.train
def test_newtons_method_ends_where_the_gradient_vanishes() -> None:
    torch = pytest.importorskip("torch")
    from models.learning.logistic import Design, Weights, fit_logistic, scores, sparse

    rng = np.random.default_rng(5)
    full = np.where(rng.random((300, 40)) < 0.1, rng.normal(size=(300, 40)), 0).astype(np.float32)
    rows, columns = np.nonzero(full)
    offsets = np.searchsorted(rows, np.arange(301))
    words = sparse(torch.tensor(columns), torch.tensor(full[rows, columns]), torch.tensor(offsets), 40)
    matrix, dense = torch.tensor(full), torch.tensor(rng.normal(size=(300, 5)).astype(np.float32))
    probe = torch.tensor(rng.normal(size=(40, 2)).astype(np.float32))
    torch.testing.assert_close(words.times(probe), matrix @ probe)
    torch.testing.assert_close(words.transposed_times(matrix @ probe), matrix.T @ (matrix @ probe))

    above = torch.tensor((rng.random((300, 2)) < 0.4).astype(np.float32))
    design, penalty = Design(words, dense), torch.full((5,), 0.5)
    found = fit_logistic(design, above, 2.0, penalty)
    w, d = found.words.clone().requires_grad_(), found.dense.clone().requires_grad_()

    def loss(w: object, d: object) -> object:
        odds = matrix @ w + dense @ d
        fit = torch.nn.functional.binary_cross_entropy_with_logits(odds, above, reduction="sum")
        return fit + w.square().sum() + 0.25 * d.square().sum()

    at_end = torch.autograd.grad(loss(w, d), (w, d))
    zero = (torch.zeros(40, 2, requires_grad=True), torch.zeros(5, 2, requires_grad=True))
    at_start = torch.autograd.grad(loss(*zero), zero)
    for end, start in zip(at_end, at_start, strict=True):
        assert end.norm() < 0.03 * start.norm()
    torch.testing.assert_close(scores(design, found), matrix @ found.words + dense @ found.dense)
    again = fit_logistic(design, above, 2.0, penalty, Weights(*found))
    torch.testing.assert_close(scores(design, again), scores(design, found), atol=0.05, rtol=0.05)
