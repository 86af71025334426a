"""The learned user encoder: gradients against autograd, bounded batches, the same seed the same weights, it learns."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.domain.errors import SettingsError
from models.learning.encoder_weights import gap_bucket, value_bucket
from models.learning.log import TrainingLog

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from models.learning.batches import batch_of, cut, cut_recent, histories  # noqa: E402
from models.learning.checkpoint import CheckpointError  # noqa: E402
from models.learning.encoder import EncoderNetwork, NetworkConfig  # noqa: E402
from models.learning.encoder_trainer import COLD_OFFSETS, COLD_TOUCHES, RIDGES, EncoderConfig, EncoderTrainer  # noqa: E402
from models.learning.first_vectors import NEAR, SHRINK, first_vectors  # noqa: E402
from models.learning.gated_recurrence import GatedRecurrence  # noqa: E402
from models.learning.losses import BLOCK, SoftmaxLoss, sampled_softmax_loss  # noqa: E402
from models.learning.passes import LOOKS, PassEvidence  # noqa: E402
from models.learning.places import mean_ndcg, places  # noqa: E402
from models.learning.tensorboard import TensorBoardProgress  # noqa: E402
from tests.model.logs import TEXT, evidence_for, made_log  # noqa: E402

SMALL = EncoderConfig(network=NetworkConfig(width=8, state=12, hidden=16, dropout=0.1), batch=8, chunk=10)


@pytest.fixture(scope="module")
def made() -> TrainingLog:
    return made_log()


@pytest.mark.parametrize("always", [True, False])
def test_the_recurrence_has_the_gradient_that_autograd_finds(always: bool) -> None:
    torch.manual_seed(0)
    start, taken, weight, bias = (
        torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (6, 3, 12), (4, 8), (4,))
    )
    live = torch.ones(6, 3).double() if always else torch.randint(0, 2, (6, 3)).double()
    assert torch.autograd.gradcheck(lambda *given: GatedRecurrence.apply(*given, live), (start, taken, weight, bias))


def test_the_recurrence_is_torch_s_own_gru_whose_reset_gate_hears_no_state() -> None:
    torch.manual_seed(1)
    gru, events, start = torch.nn.GRU(5, 7), torch.randn(9, 3, 5), torch.randn(3, 7)
    with torch.no_grad():
        gru.weight_hh_l0[:7] = 0
    reset_and_update, new = gru.bias_hh_l0.split([14, 7])
    taken = events @ gru.weight_ih_l0.T + gru.bias_ih_l0 + torch.cat([reset_and_update, torch.zeros(7)])
    found = GatedRecurrence.apply(start, taken, gru.weight_hh_l0[7:].T, new, torch.ones(9, 3))
    torch.testing.assert_close(found, gru(events, start.unsqueeze(0))[0])


def softmax_by_autograd(
    users: torch.Tensor, items: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    scores = (users @ items.T).masked_fill(hidden, -1e9).log_softmax(1)
    return -(scores.gather(1, labels) * weights).sum(1).mean()


def softmax_case(rows: int = 2 * BLOCK + 7, items: int = 40) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    users, table = (torch.randn(size, 6, requires_grad=True) for size in (rows, items))
    labels, weights = torch.randint(0, items, (rows, 3)), torch.rand(rows, 3)
    weights[::3, 2] = 0
    weights /= weights.sum(1, keepdim=True)
    hidden = (torch.rand(rows, items) < 0.2).scatter(1, labels, False)
    return users, table, labels, weights, hidden


def test_the_softmax_loss_and_its_gradients_are_those_of_autograd() -> None:
    users, items, labels, weights, hidden = softmax_case()
    excluded = hidden.flatten().nonzero().flatten()
    bounds = np.searchsorted(excluded.numpy() // len(items), np.arange(0, len(users) + BLOCK, BLOCK)).tolist()
    found = SoftmaxLoss.apply(users, items, excluded, bounds, labels, weights)
    wanted = softmax_by_autograd(users, items, hidden, labels, weights)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for left, right in zip(
        torch.autograd.grad(3 * found, (users, items)), torch.autograd.grad(3 * wanted, (users, items)), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_the_sampled_loss_over_every_item_is_the_full_one() -> None:
    users, items, labels, weights, hidden = softmax_case(rows=30)
    labels, weights = labels[:, :1], torch.ones(30, 1)
    hidden = hidden.scatter(1, labels, False)
    excluded = hidden.scatter(1, labels, True).flatten().nonzero().flatten()
    found = sampled_softmax_loss(users, items[labels], weights, items, torch.zeros(len(items)), excluded)
    wanted = softmax_by_autograd(users, items, hidden, labels, weights)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_sampled_partition_function_is_right_on_average() -> None:
    torch.manual_seed(2)
    rng = np.random.default_rng(2)
    users, items = torch.randn(4, 6) * 0.5, torch.randn(200, 6) * 0.5
    chance = rng.random(200) + 0.1
    chance /= chance.sum()
    totals = []
    for _ in range(400):
        drawn, times = np.unique(rng.choice(200, 64, p=chance), return_counts=True)
        log_count = torch.as_tensor(np.log(times / (64 * chance[drawn])), dtype=torch.float32)
        totals.append((users @ items[torch.as_tensor(drawn)].T + log_count).exp().sum(1))
    torch.testing.assert_close(torch.stack(totals).mean(0), (users @ items.T).exp().sum(1), rtol=0.05, atol=0)


def test_values_and_gaps_fall_into_their_buckets() -> None:
    value = np.array([-1, 0, 0.2, 0.3, 0.6, 0.7, 1, 7], np.float32)
    assert value_bucket(value).tolist() == [0, 1, 3, 4, 7, 8, 11, 11]
    gap = np.array([-1, 0, 0.9, 1, 22.9, 23, 40], np.float32)
    assert gap_bucket(gap).tolist() == [24, 0, 0, 1, 22, 23, 23]


def test_a_point_knows_what_was_before_it_and_nothing_after(made: TrainingLog) -> None:
    rng = np.random.default_rng(3)
    past = histories(made, 0, len(made), rng)
    chunks = cut(past, 7, rng)
    assert sorted(np.concatenate([np.arange(*pair) for pair in zip(*chunks, strict=True)])) == list(range(len(made)))
    for row in range(len(chunks)):
        batch = batch_of(made, past, chunks.take(np.array([row])), context=3, horizon=4, discount=0.5, items=made.items)
        first = max(int(past.first[chunks.begin[row]]), int(chunks.begin[row]) - 3)
        for number, point in enumerate(batch.point):
            place = first + int(point)  # the event that is foreseen
            event = past.event[place]
            user = made.user[event]
            start = past.first[place]
            own = past.event[start : past.user_start[np.searchsorted(past.user_start, place, side="right")]]
            before = [e for e in own[: place - start] if made.target[e]]
            after = [e for e in own[place - start :] if made.target[e]][:4]
            seen = batch.seen_item[batch.seen_row == number]
            assert sorted(seen) == sorted(made.item[before])
            labels = batch.label[number][batch.weight[number] > 0]
            assert labels.tolist() == made.item[after].tolist()
            assert not set(labels) & set(seen)
            assert (made.user[own] == user).all()
            assert batch.weight[number].sum() == pytest.approx(1)
            for time in range(int(point)):
                e = past.event[first + time]
                assert batch.sign[time, 0] == np.sign(made.strength[e])
                assert batch.item[time, 0] == (made.item[e] if made.item[e] >= 0 else made.items)


def test_events_of_one_stamp_are_shuffled_and_others_keep_their_order(made: TrainingLog) -> None:
    orders = [histories(made, 0, len(made), np.random.default_rng(seed)).event for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()
    for order in orders:
        for user in np.unique(made.user):
            times = made.time_ms[order[made.user[order] == user]]
            assert (np.diff(times) >= 0).all()


def test_recent_chunks_hold_every_new_event_once(made: TrainingLog) -> None:
    past = histories(made, 0, len(made), None)
    since = len(made) - 20
    chunks = cut_recent(past, since, 3, 6)
    events = past.event[np.concatenate([np.arange(*pair) for pair in zip(*chunks, strict=True)])]
    assert len(np.unique(events)) == len(events)
    assert set(range(since, len(made))) <= set(events.tolist())


def trainer(log: TrainingLog, seed: int = 0, config: EncoderConfig = SMALL) -> EncoderTrainer:
    return EncoderTrainer(
        config, items=log.items, kinds=len(log.kinds), text_dimension=log.item_text.shape[1], seed=seed
    )


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(made: TrainingLog) -> None:
    weights = []
    for seed in (0, 0, 1):
        one = trainer(made, seed)
        one.fit(made, 150, epochs=2)
        one.update(made, 150, 200)
        weights.append(one.served().arrays())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])
    assert (weights[0]["item_id"] != weights[2]["item_id"]).any()


def test_training_leaves_torch_s_own_generator_alone(made: TrainingLog) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    trainer(made).fit(made, 100, epochs=1)
    assert torch.rand(1) == wanted


def test_it_learns_a_cycle_of_ten_items_by_heart() -> None:
    log = made_log(users=30, events=900, cycle=True)
    one = trainer(log, config=EncoderConfig(network=SMALL.network, batch=8, chunk=10, horizon=1))
    report = one.fit(log, len(log), epochs=30, learning_rate=2e-2)
    assert report.losses[-1] < 0.5 * report.losses[0]
    users, items = one.users_before(log, 600, 900), one.served().item_vectors(log.item_text)
    assert mean_ndcg(places(users, items, log, 600, 900)) > 0.8


def test_it_learns_from_sampled_negatives_too() -> None:
    log = made_log(users=30, events=900, cycle=True)
    sampled = EncoderConfig(
        network=SMALL.network, batch=8, chunk=10, horizon=1, full_softmax_items=10, negatives=16, average=0.9
    )
    one = trainer(log, config=sampled)
    one.fit(log, len(log), epochs=30, learning_rate=2e-2)
    users, items = one.users_before(log, 600, 900), one.served().item_vectors(log.item_text)
    assert mean_ndcg(places(users, items, log, 600, 900)) > 0.7


def test_the_cold_offset_is_the_largest_that_costs_little_on_later_events(made: TrainingLog) -> None:
    one = trainer(made)
    one.fit(made, 200, epochs=3)
    before = one.network.cold[-1].clone()
    figures = {}
    for offset in COLD_OFFSETS:
        one.network.cold[-1] = before + offset
        figures[offset] = one.ndcg(made, 200, 300)
    one.network.cold[-1] = before
    chosen = one.choose_cold_offset(made, 200, 300, allowed_loss=0.05)
    assert one.network.cold[-1] == pytest.approx(before + chosen)
    assert chosen == max(offset for offset, ndcg in figures.items() if ndcg >= 0.95 * max(figures.values()))


@pytest.mark.parametrize("fitted_before", [False, True])
def test_the_passes_that_paid_are_those_whose_weights_foresee_best(made: TrainingLog, fitted_before: bool) -> None:
    # Every item has an event, so that none of them is left out.
    known = replace(made, item=np.minimum(made.item, 16), item_text=made.item_text[:17])
    figures: dict[int, np.ndarray] = {}

    def start() -> EncoderTrainer:
        """From nothing, or from weights whose biases come in part from the texts."""
        one = trainer(known)
        if fitted_before:
            one.fit(known, 100, epochs=2)
        return one

    seen = start()

    def look(done: int, _: int, loss: float) -> None:
        users, vectors = seen.users_before(known, 200, 260), seen.served().item_vectors(known.item_text)
        found = np.log2(places(users, vectors, known, 200, 260))
        figures[done] = found[~np.isnan(found)]

    seen.fit(known, 200, epochs=8, progress=look)
    wanted = PassEvidence()
    wanted.add({passes: figures[passes] for passes in (*LOOKS, 8)})
    one = start()
    one.fit(known, 200, epochs=8, looks=True)
    one.choose_passes(known, 200, 260)
    np.testing.assert_allclose(one.evidence.sums, wanted.sums, rtol=1e-3, atol=1e-3)
    assert one.passes == wanted.enough()
    assert (one.anew(1).evidence.sums == one.evidence.sums).all()
    kept = start()
    kept.evidence = evidence_for(4)
    kept.fit(known, 200, epochs=8, looks=True)
    users, vectors = kept.users_before(known, 200, 260), kept.served().item_vectors(known.item_text)
    assert np.nanmean(np.log2(places(users, vectors, known, 200, 260))) == pytest.approx(figures[4].mean())
    # What nobody asks about is left undone.
    short = start()
    short.evidence = evidence_for(4)
    assert short.fit(known, 200, epochs=8).epochs == 4
    for name, array in short.served().arrays().items():
        np.testing.assert_array_equal(array, kept.served().arrays()[name])


def test_a_fit_without_looks_tells_nothing(made: TrainingLog) -> None:
    one = trainer(made)
    one.fit(made, 200, epochs=2)
    assert one.passes is None
    one.evidence = evidence_for(2)
    one.choose_passes(made, 200, 300)
    assert one.passes == 2


@pytest.mark.parametrize(("passes", "replayed"), [(None, 6), (3, 3), (6, 6)])
def test_an_update_replays_less_where_fewer_passes_pay_off(
    made: TrainingLog, passes: int | None, replayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, passes=6, online_replay=6.0, online_passes=1, online_context=1, online_chunk=5)
    one = trainer(made, config=config)
    one.fit(made, 200, epochs=1)
    one.evidence = evidence_for(passes)
    seen: list[int] = []
    monkeypatch.setattr(one, "_pass", lambda log, past, chunks, *rest: seen.append(len(chunks)) or 0.0)
    one.update(made, 290, len(made))
    new = len(cut_recent(histories(made, 0, len(made), None), 290, 1, 5))
    assert seen == [new * (1 + replayed)]


def test_a_missing_or_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        EncoderTrainer.load(tmp_path, SMALL)
    (tmp_path / "encoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        EncoderTrainer.load(tmp_path, SMALL)


def test_curves_without_tensorboard_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match="tensorboard"):
        TensorBoardProgress(tmp_path)


def test_first_vectors_have_inner_products_near_the_information_of_pairs(made: TrainingLog) -> None:
    past = histories(made, 0, len(made), None)
    count = np.zeros((made.items, made.items))
    for user in np.unique(made.user):
        mine = past.event[(made.user[past.event] == user) & made.target[past.event] & (made.item[past.event] >= 0)]
        own = made.item[mine].tolist()
        for place, one in enumerate(own):
            for other in own[place + 1 : place + 1 + NEAR]:
                count[one, other] += 1
                count[other, one] += 1
    total = count.sum(1)
    information = np.log((count + SHRINK) / (np.outer(total, total) / total.sum() + SHRINK))
    wanted = np.where((count > 0) & (information > 0), information, 0.0)
    values, vectors = np.linalg.eigh(wanted)
    kept = np.maximum(np.where(np.arange(made.items) >= made.items - 4, values, 0.0), 0.0)
    found = first_vectors(past, made.items, 4, np.random.default_rng(0))
    np.testing.assert_allclose(found @ found.T, (vectors * kept) @ vectors.T, atol=1e-4)


def test_without_items_that_met_vectors_start_from_zero(made: TrainingLog) -> None:
    alone = replace(made, user=np.arange(len(made), dtype=np.int32))
    past = histories(alone, 0, len(alone), None)
    assert not first_vectors(past, alone.items, 4, np.random.default_rng(0)).any()


def test_validation_keeps_the_best_check(made: TrainingLog) -> None:
    config = EncoderConfig(network=SMALL.network, batch=8, chunk=10, check_every=1, patience=2)
    # Every item has an event: what new ones start from is settled after the last check.
    known = replace(made, item=np.minimum(made.item, 16), item_text=made.item_text[:17])
    one = trainer(known, config=config)
    seen: list[int] = []
    report = one.fit(known, 200, epochs=12, validation=(200, 260), progress=lambda done, _, loss: seen.append(done))
    assert seen == list(range(1, report.epochs + 1))
    assert report.epochs <= min(12, report.best_epoch + 2)
    assert one.ndcg(known, 200, 260) == pytest.approx(report.validation)


def test_items_without_an_event_have_their_text_and_what_rare_ones_have_in_common(made: TrainingLog) -> None:
    one = trainer(made)
    one.fit(made, 200, epochs=2)
    weights = one.served()
    cold = np.setdiff1d(np.arange(made.items), made.item[:200])
    assert len(cold)
    assert (np.column_stack([weights.item_id, weights.item_bias])[cold] == weights.cold).all()
    np.testing.assert_allclose(
        weights.item_vectors(made.item_text)[cold],
        weights.item_vectors(made.item_text[cold], np.full(len(cold), -1)),
        atol=1e-6,
    )


def test_the_first_items_of_the_catalogue_may_have_no_event(made: TrainingLog) -> None:
    """A place without a label names some item, which need not be among the trained ones."""
    later = np.where(made.item >= 0, made.item + 2, -1).astype(np.int32)
    shifted = replace(made, item=later, item_text=np.concatenate([made.item_text[:2], made.item_text]))
    one = trainer(shifted)
    one.fit(shifted, 200, epochs=1)
    one.update(shifted, 200, 260)
    assert np.isfinite(one.served().item_id).all()


def test_a_grown_catalogue_is_learned_online(made: TrainingLog) -> None:
    fewer = replace(
        made,
        item_text=made.item_text[:15],
        item=np.where(made.item >= 15, -1, made.item).astype(np.int32),
        target=made.target & (made.item < 15),
    )
    one = trainer(fewer)
    one.fit(fewer, 150, epochs=1)
    one.update(fewer, 150, 200)
    one.update(made, 200, 260)
    weights = one.served()
    assert len(weights.item_id) == made.items
    touched = np.unique(made.item[200:260])
    assert weights.item_id[touched[touched >= 15]].any(1).all()


def test_a_user_without_events_is_the_head_at_the_empty_state(made: TrainingLog) -> None:
    one = trainer(made)
    one.fit(made, 200, epochs=1)
    network = EncoderNetwork.of(one.served())
    empty = network.users(torch.zeros(1, SMALL.network.state)).detach().numpy()[0]
    first = int(np.flatnonzero(made.user == made.user[0])[0])
    np.testing.assert_allclose(one.users_before(made, 0, 50)[first, :-1], empty, atol=1e-6)


def test_a_saved_trainer_goes_on_as_if_it_had_not_stopped(made: TrainingLog, tmp_path: Path) -> None:
    one = trainer(made)
    one.evidence = evidence_for(3)
    one.fit(made, 150, epochs=1)
    one.save(tmp_path / "checkpoint")
    other = EncoderTrainer.load(tmp_path / "checkpoint", SMALL)
    for each in (one, other):
        each.update(made, 150, 220)
    for name, array in one.served().arrays().items():
        np.testing.assert_array_equal(array, other.served().arrays()[name])


def test_an_item_that_a_filled_in_history_names_can_be_told_from_others(made: TrainingLog) -> None:
    at = int(np.flatnonzero(made.item[:190] >= 0)[-1])
    named = int(made.item[at])
    rest = np.where((made.item == named) & (np.arange(len(made)) != at), (named + 1) % made.items, made.item)
    log = replace(made, item=rest.astype(np.int32))
    one = trainer(log)
    one.fit(log, 150, epochs=1)
    assert not one.trained[named]
    one.update(log, 200, 300)
    assert one.trained[named]


def test_new_items_are_rare_ones_with_another_text(made: TrainingLog) -> None:
    """Vectors of items that events named are the same whatever their texts foresee."""
    item = made.item.copy()
    for seldom in (0, 1):
        item[np.flatnonzero(item == seldom)[2:]] = 2
    made = replace(made, item=item)
    one = trainer(made)
    one.fit(made, 200, epochs=3)
    weights, known = one.served(), one.trained
    vectors, text = weights.item_vectors(made.item_text), made.item_text.astype(np.float64)
    rare = known & (np.bincount(made.item[:200][made.item[:200] >= 0], minlength=made.items) < COLD_TOUCHES)
    assert rare.sum() == 2
    middle, of_rare = text[known] - text[known].mean(0), text - text[rare].mean(0)
    for columns, ridge, lift in ((slice(None, -1), RIDGES[0], 0.0), (slice(-1, None), RIDGES[1], one.cold_offset)):
        wanted = vectors[known, columns] - vectors[known, columns].mean(0)
        told = np.linalg.solve(middle.T @ middle + ridge * np.eye(TEXT), middle.T @ wanted)
        foreseen = vectors[rare, columns].mean(0) + of_rare[~known] @ told + lift
        np.testing.assert_allclose(vectors[~known, columns], foreseen, atol=1e-5)
    assert np.abs(weights.foreseen[:, :-1]).max() > 0.01
    one._settle_cold(made, 100)
    np.testing.assert_allclose(one.served().item_vectors(made.item_text)[known], vectors[known], atol=1e-5)


def test_texts_tell_which_new_items_find_favour() -> None:
    """Items of one text are chosen often, those of the other seldom; new ones of either are foreseen to be alike."""
    log = made_log(users=30, events=900)
    favoured = np.arange(log.items) % 2 == 0
    rng = np.random.default_rng(0)
    text = np.where(favoured[:, None], np.eye(TEXT)[0], np.eye(TEXT)[1]) + rng.normal(0, 0.05, (log.items, TEXT))
    half = log.items // 2
    chosen = np.where(rng.random(len(log)) < 0.9, rng.choice(half, len(log)) // 2 * 2, rng.choice(half, len(log)))
    shaped = replace(log, item=chosen.astype(np.int32), item_text=text.astype(np.float32))
    one = trainer(shaped)
    one.fit(shaped, len(shaped), epochs=4)
    weights = one.served()
    bias = weights.item_vectors(shaped.item_text)[:, -1]
    new = np.arange(log.items) >= half
    assert bias[new & favoured].min() > bias[new & ~favoured].max() + 0.3
    assert (weights.item_bias[new] == weights.cold[-1]).all()
