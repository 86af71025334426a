"""The listwise ranker: torch and ONNX say the same, a seed decides it, and it learns what decides a choice."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from export.ranker_graph import ranker_graph  # noqa: E402
from models.domain.batch import Examples  # noqa: E402
from models.domain.features import FEATURE_COUNT, FEATURES, PRESENCE  # noqa: E402
from models.encoders.ranker import OnnxRanker  # noqa: E402
from models.encoders.session import CPU, open_session  # noqa: E402
from models.learning.lists import ListBuffer, Lists  # noqa: E402
from models.learning.ranker import ListwiseRanker, Standard  # noqa: E402
from models.learning.ranker_fit import enough, shares  # noqa: E402
from models.learning.ranker_trainer import RankerConfig, RankerTrainer  # noqa: E402

pytestmark = pytest.mark.train
CANDIDATES = 20
DECISIVE = FEATURES.index("covisit_80")


def past_lists(count: int, seed: int = 0) -> Lists:
    """Lists of which the candidate with the largest `covisit_80` was chosen."""
    rng = np.random.default_rng(seed)
    size = rng.integers(2, CANDIDATES + 1, count).astype(np.int32)
    features = rng.normal(size=(count, CANDIDATES, FEATURE_COUNT)).astype(np.float16)
    features[..., PRESENCE] = rng.uniform(-9, -1, features.shape[:2])
    there = np.arange(CANDIDATES) < size[:, None]
    features[~there] = 0
    chosen = np.where(there, features[..., DECISIVE], -np.inf).argmax(1).astype(np.int32)
    return Lists(np.arange(count), features, size, chosen)


def onnx(trainer: RankerTrainer) -> OnnxRanker:
    session = open_session("ranker", ranker_graph(trainer.weights(), PRESENCE), [CPU], 1)
    return OnnxRanker(session, features=FEATURES, initial_weights=None, candidates=CANDIDATES)


@pytest.mark.parametrize("batch", [1, 2, 17, 300])
def test_torch_and_onnx_agree_whatever_the_batch(batch: int) -> None:
    torch.manual_seed(3)
    lists = past_lists(batch, seed=batch)
    net = ListwiseRanker(Standard(np.full(FEATURE_COUNT, 0.3, np.float32), np.full(FEATURE_COUNT, 2.0, np.float32)))
    net.join(torch.randn(FEATURE_COUNT) / 10, (0.6, 0.7))
    session = open_session("ranker", ranker_graph(net.weights(), PRESENCE), [CPU], 1)
    features = lists.features.astype(np.float32)
    mask = np.arange(CANDIDATES) < lists.size[:, None]
    wanted = net(torch.from_numpy(features), torch.from_numpy(mask)).detach().numpy()
    found = OnnxRanker(session, features=FEATURES, initial_weights=None).score(features, None)
    np.testing.assert_allclose(found[mask], wanted[mask], atol=1e-5)
    assert (found[~mask] < -1e8).all()


def test_it_finds_what_decides_a_choice_and_the_seed_decides_the_weights() -> None:
    lists = past_lists(1_500)
    config = RankerConfig(batch=32, sampled=8)
    early, late = np.arange(1_000), np.arange(1_000, 1_500)
    fits = []
    for _ in range(2):
        trainer = RankerTrainer(config, seed=5)
        fit = trainer.fit(lists, early, updates=400, validation=late)
        assert fit.validation > 0.9
        assert fit.validation == pytest.approx(trainer.ndcg(lists, late))
        fits.append(trainer.weights())
    for one, other in zip(vars(fits[0]).values(), vars(fits[1]).values(), strict=True):
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (one, other)), strict=True):
            np.testing.assert_array_equal(a, b)
    served = onnx(trainer).score(lists.features[late].astype(np.float32), None)
    assert np.mean(served.argmax(1) == lists.chosen[late]) > 0.8


def test_layers_and_weights_share_a_score_by_what_each_foresaw() -> None:
    lists = past_lists(1_200)
    rows, latest = np.arange(1_000, 1_200), 1_000
    trainer = RankerTrainer(RankerConfig(batch=32, sampled=8, updates=200), seed=5)
    foreseen = trainer.fit_latest(lists, latest)
    assert foreseen is not None
    assert len(foreseen.places) == 200
    assert trainer.served.straight.abs().argmax() == DECISIVE
    served = onnx(trainer).score(lists.features[rows].astype(np.float32), None)
    there = np.arange(CANDIDATES) < lists.size[rows][:, None]
    np.testing.assert_allclose(served[there], trainer.scores(lists, rows)[there], atol=1e-4)
    before = trainer.served.straight.clone()
    trainer.update(lists, rows, np.arange(latest))
    assert not torch.equal(trainer.served.straight, before), "both are learned on"


def test_who_foresees_nothing_has_no_share() -> None:
    lists = past_lists(600)
    rows, rng = np.arange(600), np.random.default_rng(1)
    noise = rng.normal(size=(600, CANDIDATES)).astype(np.float32)
    of_feature, of_noise = shares(lists.features[..., DECISIVE].astype(np.float32), noise, lists, rows)
    assert of_feature > 2.0
    assert abs(of_noise) < 0.2
    few = shares(noise[:1], noise[:1], lists, rows[:1])
    assert few == pytest.approx((0.5, 0.5), abs=0.1)


def test_of_looks_that_cannot_be_told_apart_the_latest_is_meant() -> None:
    rng = np.random.default_rng(4)
    places, noise = 1.0 + 100.0 * rng.random(400), rng.normal(size=(3, 400))
    early, best, as_good = 1.2 * places, places, places * 2 ** (0.01 + 0.2 * noise[0])
    assert enough([early, best, as_good]) == 2
    assert enough([early, best, places * 2 ** (0.1 + 0.2 * noise[1])]) == 1, "worse beyond a standard error"
    assert enough([best]) == 0


def test_looks_are_judged_by_every_list_not_by_the_first_ten() -> None:
    places = np.tile([4.0, 20.0, 30.0, 50.0], 50)
    by_heart = np.tile([2.0, 80.0, 90.0, 190.0], 50)
    assert enough([places, by_heart]) == 0


def test_an_update_follows_a_stream_that_changed() -> None:
    before, after = past_lists(600), past_lists(600, seed=9)
    other = FEATURES.index("follow")
    there = np.arange(CANDIDATES) < after.size[:, None]
    chosen = np.where(there, after.features[..., other], -np.inf).argmax(1).astype(np.int32)
    lists = Lists(
        np.arange(1_200),
        np.concatenate([before.features, after.features]),
        np.concatenate([before.size, after.size]),
        np.concatenate([before.chosen, chosen]),
    )
    trainer = RankerTrainer(RankerConfig(batch=32, average=0.9), seed=0)
    trainer.fit(lists, np.arange(600), updates=300)
    late = np.arange(900, 1_200)
    frozen = trainer.ndcg(lists, late)
    for start in range(600, 900, 100):
        for _ in range(4):
            trainer.update(lists, np.arange(start, start + 100), np.arange(start))
    assert trainer.ndcg(lists, late) > frozen + 0.1


def test_the_buffer_holds_the_newest_lists_whatever_the_pieces_they_come_in() -> None:
    rng = np.random.default_rng(0)
    count, capacity = 700, 100
    whole = past_lists(count)
    for largest in (1, 30, 250):
        buffer, end = ListBuffer(capacity), 0
        while end < count:
            start, end = end, min(count, end + int(rng.integers(0, largest + 1)))
            piece = slice(start, end)
            buffer.append(
                Examples(
                    position=whole.at[piece],
                    features=whole.features[piece].astype(np.float32),
                    size=whole.size[piece],
                    chosen=whole.chosen[piece],
                    asked=np.empty(0, np.int64),
                    reached=np.empty(0, np.int64),
                    reachable=0,
                )
            )
            if not len(buffer):
                continue
            assert min(end, capacity) <= len(buffer) <= capacity * 5 // 4
            kept, newest = buffer.lists, slice(end - len(buffer), end)
            for name in ("at", "features", "size", "chosen"):
                np.testing.assert_array_equal(getattr(kept, name), getattr(whole, name)[newest])
