"""Online learning without Kafka: a first model, promotions by rule, a way back, and nothing lost by a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from models.domain.batch import Incoming
from models.domain.events import Interaction
from models.domain.feedback import Feedback
from models.learning.checkpoint import CheckpointError
from models.learning.encoder_config import EncoderConfig
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.gate import NOTHING, Evidence, GateRule, WatchRule
from models.learning.log import TrainingLog
from models.learning.online import OnlineTrainer, Round
from models.learning.online_config import OnlineConfig
from models.learning.ranker_trainer import RankerConfig
from models.learning.training_state import TrainingState
from models.learning.whole_fit import FitError, Fits, FitsInline, Fitted
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
from tests.services.slow_fits import SlowFits

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
    fits: Fits | None = None,
) -> OnlineTrainer:
    made = kind(
        "m1",
        state,
        kinds=KINDS,
        text_dimension=WIDTH,
        options=OPTIONS,
        serving=serving(),
        config=config,
        seed=seed,
        fits=fits,
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
    stream: list[Feedback], tmp_path: Path
) -> None:
    # A whole fit would begin anew: without one.
    config = replace(CONFIG, refit_growth=100.0)
    whole = trainer(config)
    wanted = figures(learn(whole, stream))
    assert trainer_at(tmp_path, config) is None
    found = figures(learn(trainer(config), stream[:1_130], save=tmp_path))
    for _ in range(2):  # the second time in the middle of what it had begun
        again = trainer_at(tmp_path, config)
        assert again is not None
        assert again.position <= 1_130
        (tmp_path / "round-999999999999.draft").mkdir(exist_ok=True)  # killed while it saved
    rest = learn(again, stream, start=again.position, save=tmp_path)
    np.testing.assert_equal([*found, *figures(rest)], wanted)
    last = trainer_at(tmp_path, config)
    assert last is not None
    assert last.champion.version == whole.champion.version
    assert len(list(tmp_path.glob("round-*"))) == 1
    next(tmp_path.glob("round-*")).joinpath("state.json").write_text("{}")
    with pytest.raises(CheckpointError):
        trainer_at(tmp_path, config)


def trainer_at(directory: Path, config: OnlineConfig = CONFIG) -> OnlineTrainer | None:
    return OnlineTrainer.load(directory, options=OPTIONS, serving=serving(), config=config)


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


def with_a_fit(
    stream: list[Feedback],
    learned: tuple[OnlineTrainer, list[Round]],
    fits: Fits,
    save: Path | None = None,
) -> Iterator[tuple[OnlineTrainer, Round]]:
    """Rounds of a trainer that begins with a trained model, releases nothing and comes to whole fits."""
    state = learned[0].champion.state
    assert state is not None
    never = GateRule(least_records=100, promote=2.0, discard=2.0)
    config = replace(CONFIG, refit_growth=0.3, ahead=250, gate=never, lists=5_000, catch_up=3, contest=300)
    begun = replace(state, until_ms=-1, events=1_000)
    online = trainer(config, state=begun, fits=fits)
    for first in range(0, len(stream), 50):
        online.observe(stream[first : first + 50], {}, position=first + 50)
        if online.due:
            found = online.round()
            if save is not None:
                online.save(save)
            yield online, found


def test_a_whole_fit_goes_on_beside_the_rounds_and_has_to_win_the_challengers_place(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: dict[int, list[tuple[int, int]]] = {}
    told_passes: list[tuple[int, int]] = []
    update, choose_passes = EncoderTrainer.update, EncoderTrainer.choose_passes

    def noted_update(self: EncoderTrainer, log: TrainingLog, start: int, end: int) -> float:
        met.setdefault(id(self), []).append((start, end))
        return update(self, log, start, end)

    def noted_passes(self: EncoderTrainer, log: TrainingLog, start: int, end: int) -> None:
        told_passes.append((start, end))
        choose_passes(self, log, start, end)

    monkeypatch.setattr(EncoderTrainer, "update", noted_update)
    monkeypatch.setattr(EncoderTrainer, "choose_passes", noted_passes)
    rounds: list[Round] = []
    begun_at = 0
    for online, found in with_a_fit(stream, learned, SlowFits(3)):
        rounds.append(found)
        if found.fit == "begun":
            begun_at = len(online.log)
        if found.fit in ("won", "lost"):
            break
    assert [found.fit for found in rounds if found.fit] in (["begun", "won"], ["begun", "lost"])
    compared = [found.records for found in rounds if np.isfinite(found.rival_ndcg)]
    assert 300 <= sum(compared) < 300 + 2 * CONFIG.window
    assert all(np.isfinite(found.loss) for found in rounds), "the challenger learned in every round"
    ((fitted_until, known),) = told_passes
    assert known == begun_at
    assert 250 <= begun_at - fitted_until < 250 + CONFIG.window
    # The encoder that was fitted has learned from each later event once, in order, as the challenger's has.
    (fitted,) = [spans for spans in met.values() if spans[0][0] == fitted_until]
    assert all(before[1] == after[0] for before, after in pairwise(fitted))
    assert fitted[-1][1] == len(online.log)


@pytest.mark.parametrize("better", [True, False])
def test_a_rival_that_wins_is_challenger_with_its_evidence_and_one_that_loses_is_gone(
    stream: list[Feedback],
    learned: tuple[OnlineTrainer, list[Round]],
    monkeypatch: pytest.MonkeyPatch,
    better: bool,
) -> None:
    monkeypatch.setattr(Evidence, "judge", lambda *_: NOTHING._replace(octaves=0.1 if better else -0.1))
    former, rival = None, None
    for online, found in with_a_fit(stream, learned, SlowFits(0)):
        if found.fit in ("won", "lost"):
            break
        former, rival = online.challenger, online.succession.rival or rival
        held = online.lists.appended
    assert former is not None
    assert rival is not None
    assert found.fit == ("won" if better else "lost")
    assert online.succession.rival is None
    if better:
        assert online.challenger is rival.challenger
        assert online.evidence is rival.evidence
        assert 0 < len(online.evidence) <= 300 + CONFIG.window
        assert online.challenger.lists is online.lists
        assert online.lists.appended > held + CONFIG.window, "its own lists, beside those of the round"
        assert online.challenger.events < len(online.log)
        assert online.challenger.learned == len(online.log) - online.challenger.events
    else:
        assert online.challenger is former
        assert former.learned == 0, "the next fit comes when as much has come again"


def test_a_fit_is_given_up_where_somebody_in_it_is_forgotten_and_begins_anew_after_a_kill(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]], tmp_path: Path
) -> None:
    played = with_a_fit(stream, learned, SlowFits(100), save=tmp_path)
    online = next(online for online, found in played if found.fit == "begun")
    assert online.succession.fits.busy
    again = OnlineTrainer.load(tmp_path, options=OPTIONS, serving=serving(), config=online.config)
    assert again is not None
    assert not again.succession.fits.busy
    rest = learn(again, stream, start=again.position)
    assert "begun" in [later.fit for later in rest]
    online.forget(stream[10].user_id, stream[-1].event_time_ms)
    assert not online.succession.fits.busy
    assert len(online.succession.recent) == 0


class FailingFits(FitsInline):
    def take(self) -> Fitted | None:
        self.abandon()
        raise FitError("no space left")


def test_a_fit_that_fails_leaves_the_challenger_and_the_next_one_comes_later(
    stream: list[Feedback], learned: tuple[OnlineTrainer, list[Round]]
) -> None:
    online = next(online for online, found in with_a_fit(stream, learned, FailingFits()) if found.fit == "failed")
    assert online.challenger is not None
    assert (online.succession.rival, online.challenger.learned) == (None, 0)


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
