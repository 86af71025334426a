"""A version on trial: who is drawn, that two models share what they share, that a shadow leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest

from models.domain.batch import BatchResult, Incoming
from models.domain.evaluation import CUTOFF
from models.domain.pipeline import Pipeline
from models.domain.ports import F32
from models.domain.releases import Release, Rollout
from models.domain.trial import compare, is_drawn
from tests.domain.helpers import (
    BankEncoder,
    LearnedRanker,
    Player,
    catalogue_of,
    click,
    decode,
    forget,
    make_pipeline,
    records,
    run,
    search,
    text_vector,
)

USERS = [f"u{n}" for n in range(20)]


def log_of(events: int, seed: int = 0) -> list[Incoming]:
    drawn = random.Random(seed)
    return records(
        [
            click(drawn.choice(USERS), f"i{drawn.randrange(30)}", 10 * at, event_id=f"{seed}-{at}")
            for at in range(events)
        ],
        start=1_000 * seed,
    )


def other_vector(item_id: str) -> F32:
    return np.append(text_vector(f"another model's {item_id}"), np.float32(0.0))


def tried_beside(pipeline: Pipeline) -> Pipeline:
    """A learned model with item vectors of its own over the same catalogue."""
    vectors = pipeline.catalogue.attach(other_vector)
    for at, item_id in enumerate(pipeline.catalogue.ids):
        vectors.hold_place(at, item_id)
    return pipeline.beside(BankEncoder(), LearnedRanker(), "m2", None, None, vectors)


def test_a_share_of_the_users_is_drawn_always_the_same_ones_and_others_for_another_version() -> None:
    users = [f"user-{n}" for n in range(4_000)]
    first, second = ({user for user in users if is_drawn(user, version, 0.1)} for version in ("v1", "v2"))
    assert 300 < len(first) < 500
    assert len(first & second) < 100
    assert first == {user for user in users if is_drawn(user, "v1", 0.1)}
    assert first < {user for user in users if is_drawn(user, "v1", 0.2)}
    assert all(is_drawn(user, "v1", 1.0) for user in users)
    assert isinstance(is_drawn("\ud800", "v1", 0.5), bool), "ids are whatever JSON can hold"


def test_a_trial_lasts_from_the_promotion_on_and_a_rollback_has_none() -> None:
    release = Release(sequence=2, version="b", previous="a", action="promote", by="trainer", reason="", at_ms=5_000)
    assert Rollout("canary", 0.1, 1_000).until_ms(release) == 6_000
    assert Rollout("shadow", 0.1, 1_000).until_ms(release) == 6_000
    assert Rollout("at_once").until_ms(release) == 0
    assert Rollout("canary").until_ms(None) == 0
    back = Release(sequence=3, version="a", previous="b", action="rollback", by="operator", reason="", at_ms=5_000)
    assert Rollout("canary").until_ms(back) == 0


def test_two_models_play_one_batch_over_the_same_statistics() -> None:
    whole, served = make_pipeline(catalogue_of(30)), make_pipeline(catalogue_of(30))
    tried = tried_beside(served)
    log = log_of(400)
    of_tried = {user for user in USERS if is_drawn(user, "m2", 0.5)}
    assert of_tried
    assert of_tried != set(USERS)
    result = BatchResult(len(log))
    for pipeline, mine in ((served, set(USERS) - of_tried), (tried, of_tried)):
        positions = [at for at, one in enumerate(log) if str(one.event.user_id) in mine]
        assert run(pipeline, log, positions=positions, into=result) is result
    alone = run(whole, log)
    assert result.outcomes == alone.outcomes
    assert set(result.states) == set(alone.states)
    assert sorted(made.position for made in result.published) == [made.position for made in alone.published]
    for made in result.published:
        version = "m2" if made.user_id in of_tried else "m1"
        assert decode(made.data).model_version == result.states[made.user_id].model_version == version
    assert sorted(result.touch_positions) == alone.touch_positions
    # Touches commute but for who came first at an item, which is by the user's own first choice here.
    items = len(whole.catalogue)
    np.testing.assert_array_equal(
        served.statistics.dump()["touches"][:items], whole.statistics.dump()["touches"][:items]
    )
    assert result.weights is not None, "the served model's alone: the tried one has weights of its own"


def test_an_item_that_an_event_names_first_has_its_place_with_both_models() -> None:
    served = make_pipeline(catalogue_of(3))
    tried = tried_beside(served)
    run(served, records([click("u", "undeclared", 1)]))
    at = served.catalogue.index["undeclared"]
    np.testing.assert_array_equal(tried.vectors.rows[at], other_vector("undeclared"))
    assert served.vectors is served.catalogue.served
    assert not served.vectors.present[at]
    run(tried, records([click("v", "undeclared", 2)]))
    assert served.statistics.dump()["touches"][at] == 2


def test_a_shadow_scores_both_models_on_the_same_choices_and_leaves_no_trace() -> None:
    played, twin = (Player(make_pipeline(catalogue_of(30))) for _ in range(2))
    tried = tried_beside(played.pipeline)
    for player in (played, twin):
        player.play(log_of(300))
    # Two of a user's in one batch, an unknown item, a seen one, what is no choice at all.
    later = log_of(100, seed=1)
    extra = [search("u1", "rain", 2_000), forget("u2", 2_001), click("new", "never heard of", 2_002)]
    batch = [*records(extra, start=5_000), *later]
    before = played.fingerprint()
    scores = compare([played.pipeline, tried], batch, played.states, lambda user: user != "u3")
    assert played.fingerprint() == before
    assert {score.list for score in scores} == {"shadow"}
    of_served = [score for score in scores if score.model_version == "m1"]
    of_tried = [score for score in scores if score.model_version == "m2"]
    assert [score.position for score in of_served] == [score.position for score in of_tried]
    assert [score.place for score in of_served] != [score.place for score in of_tried]
    chosen = [batch[score.position].event for score in of_served]
    users = [str(event.user_id) for event in chosen]
    assert len(set(users)) == len(users) > 5
    assert not {"u1", "u2", "u3", "new"} & set(users), "their first records are no choices, or they are not drawn"

    # Nothing has happened since the batch began for the first choice in it: its place is that of the list asked then.
    at = min(score.position for score in of_served)
    asked = run(twin.pipeline, [batch[at]], twin.states).asked[0]
    item_id = str(chosen[0].item_id)  # type: ignore[union-attr]
    assert of_served[0].place == (asked.index(item_id) + 1 if item_id in asked[:CUTOFF] else 0)


@pytest.mark.parametrize("repeated", ["offset", "event"])
def test_a_shadow_looks_at_nothing_that_is_not_folded(repeated: str) -> None:
    player = Player(make_pipeline(catalogue_of(30)))
    player.play(log_of(50))
    first = click("u1", "i29", 5_000, event_id="once")
    player.play(records([first], start=7_000))
    state = player.states["u1"]
    unseen = next(f"i{n}" for n in range(30) if player.pipeline.catalogue.hashes[n] not in state.seen)
    again = (
        records([click("u1", unseen, 5_001)], start=7_000)
        if repeated == "offset"
        else records([click("u1", unseen, 5_001, event_id="once")], start=7_001)
    )
    assert compare([player.pipeline], again, player.states, lambda _: True) == []
    fresh = records([click("u1", unseen, 5_001)], start=7_001)
    assert len(compare([player.pipeline], fresh, player.states, lambda _: True)) == 1
