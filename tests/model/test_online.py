"""Online learning without Kafka: a first model, promotions by rule, a way back, and nothing lost by a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from models.domain.batch import Incoming
from models.domain.events import Interaction
from models.domain.feedback import Feedback
from models.learning.checkpoint import CheckpointError
from models.learning.contenders import Challenger
from models.learning.encoder_config import EncoderConfig
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.gate import GateRule, WatchRule
from models.learning.lists import Lists
from models.learning.log import TrainingLog
from models.learning.online import OnlineTrainer, Round
from models.learning.online_config import OnlineConfig
from models.learning.ranker_trainer import RankerConfig, RankerTrainer
from models.learning.training_state import TrainingState
from streams.cli.training import serving
from tests.domain.helpers import (
    OPTIONS,
    WIDTH,
    BankEncoder,
    LearnedRanker,
    Player,
    catalogue_of,
    click,
    make_pipeline,
    records,
    text_vector,
)
from tests.services.shuffled import ShuffledTrainer

pytestmark = [pytest.mark.train, pytest.mark.slow]
USERS, ITEMS = 30, 60
KINDS = BankEncoder.kinds
IDS = [f"i{n}" for n in range(ITEMS)]
TEXTS = np.stack([text_vector(item_id) for item_id in IDS])
CONFIG = OnlineConfig(
    window=150,
    first_events=500,
    first_epochs=(4, 3, 2, 4),
    candidates=40,
    lists=600,
    refit_growth=0.5,
    encoder=EncoderConfig(passes=2),
    settling=150,
    ranker=RankerConfig(batch=32, sampled=16, updates=200),
    gate=GateRule(promote=0.9, least_records=100),
    watch=WatchRule(least_records=100),
)


def events(count: int, seed: int = 0) -> list[Interaction]:
    """Everybody walks through his half of the catalogue, in order, from a place of his own; now and then he strays.

    Users leave after some fifty clicks and others take their place, so that there is always something to foresee.
    """
    rng = np.random.default_rng(seed)
    place, name = rng.integers(0, ITEMS // 2, USERS), list(range(USERS))
    left, newest, made = rng.integers(5, 26, USERS), USERS, []
    for n in range(count):
        user = int(rng.integers(USERS))
        place[user] = (place[user] + 1) % (ITEMS // 2)
        item = 2 * int(place[user]) + name[user] % 2 if rng.random() < 0.9 else int(rng.integers(ITEMS))
        made.append(click(f"u{name[user]}", f"i{item}", 60 * n, event_id=f"e{n}"))
        left[user] -= 1
        if not left[user]:
            place[user], name[user], left[user] = rng.integers(0, ITEMS // 2), newest, 25
            newest += 1
    return made


def told(log: Sequence[Interaction]) -> list[Feedback]:
    """By a worker whose model was never trained."""
    pipeline = make_pipeline(
        catalogue_of(ITEMS), options=OPTIONS._replace(feedback=True, publish=False), ranker=LearnedRanker()
    )
    played = Player(pipeline)
    incoming: list[Incoming] = records(log)
    played.play(incoming, range(100, len(incoming), 100))
    found = [one.record for result in played.results for one in result.feedback]
    return [record for record in found if isinstance(record, Feedback)]


@pytest.fixture(scope="module")
def stream() -> list[Feedback]:
    return told(events(2_600))


def trainer(
    config: OnlineConfig = CONFIG,
    state: TrainingState | None = None,
    seed: int = 0,
    kind: type[OnlineTrainer] = OnlineTrainer,
) -> OnlineTrainer:
    made = kind(
        "m1", state, kinds=KINDS, text_dimension=WIDTH, options=OPTIONS, serving=serving(), config=config, seed=seed
    )
    made.declare(IDS, TEXTS)
    return made


def learn(
    online: OnlineTrainer, stream: Sequence[Feedback], *, start: int = 0, save: Path | None = None
) -> list[Round]:
    """As the trainer's process does: records in stretches of fifty, rounds when they are due."""
    rounds = []
    for first in range(start, len(stream), 50):
        online.observe(stream[first : first + 50], {}, position=first + 50)
        if online.due:
            rounds.append(online.round())
            if rounds[-1].action == "promote":
                online.promoted(f"online-{rounds[-1].number}")
            elif rounds[-1].action == "rollback":
                online.rolled_back()
            if save is not None:
                online.save(save)
    return rounds


@pytest.fixture(scope="module")
def learned(stream: list[Feedback]) -> tuple[OnlineTrainer, list[Round]]:
    online = trainer()
    return online, learn(online, stream)


def test_a_deployment_without_a_trained_model_gets_one_that_is_better_than_what_it_served(
    learned: tuple[OnlineTrainer, list[Round]],
) -> None:
    online, rounds = learned
    assert rounds[0].action == "first"
    assert rounds[0].records >= 500
    promoted = next(found for found in rounds if found.action == "promote")
    assert promoted.decision is not None
    assert promoted.challenger_ndcg > promoted.served_ndcg
    assert promoted.model is not None
    assert promoted.model.item_ids == tuple(IDS)
    assert online.champion.version.startswith("online-")
    assert all(found.unreadable == 0 for found in rounds)
    assert np.isfinite([found.loss for found in rounds[1:]]).all()


def test_what_is_published_is_what_was_evaluated_and_not_what_was_trained_after(
    stream: list[Feedback],
) -> None:
    online = trainer()
    rounds = learn(online, stream[:500])
    assert [found.action for found in rounds] == ["first"]
    assert online.challenger is not None
    before = online.challenger.encoders.served().item_id.copy()
    online.observe(stream[500:700], {})
    found = online.round()
    assert found.action == "promote"
    assert found.model is not None
    np.testing.assert_array_equal(found.model.encoder.item_id, before)
    assert not np.array_equal(online.challenger.encoders.served().item_id, before)
    assert online.champion.version == "m1", "until it is published"
    online.promoted("m2")
    assert online.champion.version == "m2"
    with pytest.raises(ValueError, match="promoted nothing"):
        online.promoted("m3")


def figures(rounds: Sequence[Round]) -> list[tuple[object, ...]]:
    return [
        (r.number, r.action, r.decision, r.records, r.served_ndcg, r.champion_ndcg, r.challenger_ndcg, r.loss)
        for r in rounds
    ]


def test_a_trainer_that_is_killed_goes_on_from_its_last_round_as_if_nothing_had_happened(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]], tmp_path: Path
) -> None:
    wanted = figures(learned[1])
    assert trainer_at(tmp_path) is None
    found = figures(learn(trainer(), stream[:1_130], save=tmp_path))
    for _ in range(2):  # the second time in the middle of what it had begun
        again = trainer_at(tmp_path)
        assert again is not None
        assert again.position <= 1_130
        (tmp_path / "round-999999999999.draft").mkdir(exist_ok=True)  # killed while it saved
    rest = learn(again, stream, start=again.position, save=tmp_path)
    np.testing.assert_equal([*found, *figures(rest)], wanted)
    last = trainer_at(tmp_path)
    assert last is not None
    assert last.champion.version == learned[0].champion.version
    assert len(list(tmp_path.glob("round-*"))) == 1
    next(tmp_path.glob("round-*")).joinpath("state.json").write_text("{}")
    with pytest.raises(CheckpointError):
        trainer_at(tmp_path)


def trainer_at(directory: Path) -> OnlineTrainer | None:
    return OnlineTrainer.load(directory, options=OPTIONS, serving=serving(), config=CONFIG)


def test_records_that_come_again_are_known_and_a_flood_of_one_user_brings_no_round_about(
    stream: list[Feedback],
) -> None:
    online = trainer(replace(CONFIG, user_limit=40, user_span=400))
    online.observe(stream[:300], {})
    assert online.observe(stream[:300], {}).known == 300
    flood = told([click("robot", f"i{n % 3}", n, event_id=f"robot-{n}") for n in range(1_000)])
    seen = online.observe(flood, {})
    assert (seen.taken, seen.refused) == (40, 960)
    assert not online.due


def test_a_spoiled_champion_goes_back_to_the_former_one(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]]
) -> None:
    state = learned[0].champion.state
    assert state is not None
    online = trainer(state=replace(state, until_ms=-1))
    rng = np.random.default_rng(0)
    weights = replace(state.encoder, item_id=rng.permutation(state.encoder.item_id))
    ranker = {name: -each if "last.weight" in name else each for name, each in state.ranker.items()}
    online.adopt("spoiled", replace(state, encoder=weights, ranker=ranker))
    rounds = learn(online, stream)
    assert rounds[0].action == "rollback" or rounds[1].action == "rollback"
    assert "spoiled" not in online.champion.version


def test_a_challenger_that_learns_from_shuffled_choices_is_not_promoted(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]]
) -> None:
    state = learned[0].champion.state
    assert state is not None
    # By the product's own rule: on fewer records than it asks for, to have seen what is popular now is a merit.
    config = replace(CONFIG, gate=GateRule())
    online = trainer(config, state=replace(state, until_ms=-1), kind=ShuffledTrainer)
    rounds: list[Round] = []
    for first in range(0, len(stream), 50):
        online.observe(stream[first : first + 50], {})
        if online.due:
            rounds.append(online.round())
            if rounds[-1].action == "discard":
                break
    assert "promote" not in [found.action for found in rounds]
    assert rounds[-1].action == "discard"
    assert rounds[-1].challenger_ndcg < rounds[-1].champion_ndcg


def test_a_challenger_that_is_fitted_anew_is_judged_at_once_by_rounds_that_it_had_not_seen(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = learned[0].champion.state
    assert state is not None
    fits: list[tuple[int, int]] = []
    replayed: list[tuple[int, set[int]]] = []
    told_passes: list[tuple[int, int]] = []
    refit, update, choose_passes = Challenger.refit, RankerTrainer.update, EncoderTrainer.choose_passes

    def noted_refit(self: Challenger, log: TrainingLog, end: int, ahead: int, **settings: Any) -> None:
        fits.append((end, ahead))
        refit(self, log, end, ahead, **settings)

    def noted_update(self: RankerTrainer, lists: Lists, new: Any, old: Any) -> None:
        replayed.append((len(new), set(np.asarray(old).tolist())))
        update(self, lists, new, old)

    def noted_passes(self: EncoderTrainer, log: TrainingLog, start: int, end: int) -> None:
        told_passes.append((start, end))
        choose_passes(self, log, start, end)

    monkeypatch.setattr(Challenger, "refit", noted_refit)
    monkeypatch.setattr(EncoderTrainer, "choose_passes", noted_passes)
    monkeypatch.setattr(RankerTrainer, "update", noted_update)
    never = GateRule(least_records=100, promote=2.0, discard=2.0)
    config = replace(CONFIG, refit_growth=0.3, ahead=450, gate=never, lists=5_000)
    online = trainer(config, state=replace(state, until_ms=-1, events=1_500))
    rounds: list[Round] = []
    for first in range(0, len(stream), 50):
        online.observe(stream[first : first + 50], {})
        if online.due:
            rounds.append(online.round())
            if fits:
                break
    ((events, ahead),) = fits
    newest = [window for window in online.recent if window.start >= events]
    held = sum(len(window.scene.records) for window in newest)
    assert 450 <= held < 450 + CONFIG.window
    assert events == newest[0].start == len(online.log) - held
    assert ahead == sum(len(window.scene.served.row) for window in newest)
    assert told_passes == [(events, len(online.log))]
    decision = rounds[-1].decision
    assert decision is not None
    # All that it met after it had settled, asked before it learned from them.
    settled = newest[-(-CONFIG.settling // CONFIG.window) :]
    assert decision.records == sum(len(window.asked) for window in settled)
    # The ranker replays no list of a round that it has yet to meet.
    kept = len(online.lists)
    first_ahead = kept - 2 * ahead
    for _, old in replayed[-len(newest) :]:
        assert not any(first_ahead <= row < first_ahead + ahead for row in old)


def test_what_a_forgotten_user_did_is_learned_from_no_more_and_stays_away_after_a_kill(
    stream: list[Feedback], tmp_path: Path
) -> None:
    online = trainer()
    learn(online, stream[:700], save=tmp_path)
    user = stream[10].user_id
    online.observe(stream[700:720], {})
    online.forget(user, stream[720].event_time_ms)
    online.save(tmp_path)
    again = trainer_at(tmp_path)
    assert again is not None
    for one in (online, again):
        assert not any(one.log.knows(record) for record in stream[:720] if record.user_id == user)
        assert user not in one.log.state()[1]["user_ids"]


def test_records_of_before_the_champion_was_fitted_are_remembered_and_are_no_examples(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]]
) -> None:
    state = learned[0].champion.state
    assert state is not None
    online = trainer(state=replace(state, until_ms=stream[999].event_time_ms))
    seen = online.observe(stream[:1_040], {})
    assert (seen.remembered, seen.taken) == (1_000, 40)
    assert online.observe(stream[:1_040], {}).known == 1_040
    assert online.pending == 40
    assert len(online.log) == 1_000
