"""The road from events to lists: cuts and replays change nothing, what is seen or gone is never recommended."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.batch import DUPLICATE, FOLDED, FORGOTTEN, REPLAYED, Incoming
from models.domain.candidates import SOURCES
from models.domain.catalogue import Catalogue
from models.domain.evaluation import hit, ndcg
from models.domain.events import Forget, Impression, Interaction, Request
from models.domain.features import BASE_FEATURES, FEATURES
from models.domain.habits import NO_HABITS
from models.domain.pipeline import Pipeline
from models.domain.ranking import bootstrap_weights
from models.domain.slices import COLD_EVENTS
from models.domain.state import SEEN_LENGTH, pack, unpack
from tests import strategies
from tests.domain.helpers import (
    LOG,
    OPTIONS,
    BankEncoder,
    LearnedRanker,
    LogLinearRanker,
    Player,
    catalogue_of,
    click,
    declare,
    decode,
    dump_bytes,
    forget,
    hide,
    lists_of,
    make_pipeline,
    ms,
    packed,
    records,
    request,
    run,
    search,
    text_vector,
)


def cold_catalogue() -> Catalogue:
    """Thirty items are declared, ten are known from behaviour only; five pairs share one vector."""
    catalogue = catalogue_of(30)
    for n in range(0, 10, 2):
        catalogue.set_vectors([n + 1], catalogue.vectors[[n]])
    return catalogue


def busy_log(events: int = 300, users: int = 12, items: int = 60, seed: int = 0) -> list[Incoming]:
    rng = np.random.default_rng(seed)
    kinds = ["view", "click", "purchase"]
    made = []
    for n in range(events):
        user, item = f"u{rng.integers(users)}", f"i{min(int(rng.exponential(items / 4)), items - 1)}"
        made.append(click(user, item, n * 30, event_id=f"e{n}", kind=kinds[rng.integers(3)]))
    return records(made)


# batches change nothing ---


@settings(max_examples=40, deadline=None)
@given(strategies.event_logs(max_size=90), st.data())
def test_however_a_log_is_cut_states_lists_statistics_and_weights_are_the_same(
    log: list[Incoming], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(log) - 1)), max_size=6)))
    whole = Player(make_pipeline(cold_catalogue())).play(log).fingerprint()
    cut = Player(make_pipeline(cold_catalogue())).play(log, [c for c in cuts if c < len(log)]).fingerprint()
    single = Player(make_pipeline(cold_catalogue())).play(log, range(1, len(log))).fingerprint()
    assert whole == cut
    assert whole == single


@pytest.mark.parametrize("ranker", [None, LogLinearRanker(own=bootstrap_weights()), LearnedRanker()])
def test_a_long_batch_equals_batches_of_one_where_the_catalogue_grows(ranker: LogLinearRanker | None) -> None:
    log = busy_log(400, users=9, items=300, seed=3)
    whole = Player(make_pipeline(Catalogue(BankEncoder.dimension, capacity=4), ranker=ranker)).play(log)
    single = Player(make_pipeline(Catalogue(BankEncoder.dimension, capacity=4), ranker=ranker))
    assert whole.fingerprint() == single.play(log, range(1, len(log))).fingerprint()


@settings(max_examples=20, deadline=None)
@given(strategies.event_logs(), st.data())
def test_a_learned_ranker_sees_the_same_however_the_log_is_cut(log: list[Incoming], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(log) - 1)), max_size=6)))
    whole = Player(make_pipeline(ranker=LearnedRanker())).play(log)
    cut = Player(make_pipeline(ranker=LearnedRanker())).play(log, [c for c in cuts if c < len(log)])
    assert whole.fingerprint() == cut.fingerprint()


def test_a_ranker_of_a_former_release_reads_the_first_features_and_is_served_as_before() -> None:
    class Former(LearnedRanker):
        features = FEATURES[:61]

        def __init__(self) -> None:
            LogLinearRanker.__init__(self, LearnedRanker()._own[:61])  # type: ignore[index]

    class Same(LearnedRanker):
        def __init__(self) -> None:
            own = LearnedRanker()._own
            LogLinearRanker.__init__(self, np.where(np.arange(len(FEATURES)) < 61, own, 0.0))

    log = busy_log(200, users=5, items=40, seed=6)
    former, same = (Player(make_pipeline(ranker=ranker)).play(log) for ranker in (Former(), Same()))
    assert [lists_of(result) for result in former.results] == [lists_of(result) for result in same.results]


def test_habits_come_back_from_the_store() -> None:
    """A user read back from a store gets the lists that he would have got from memory."""
    log = busy_log(300, users=5, items=40, seed=4)
    kept = Player(make_pipeline(ranker=LearnedRanker())).play(log[:200])
    read = Player(kept.pipeline)
    read.states = {
        user: unpack(user, pack(state, kept.pipeline.catalogue), kept.pipeline.catalogue)
        for user, state in kept.states.items()
    }
    assert any(state.habits is not NO_HABITS for state in kept.states.values())
    for user, state in kept.states.items():
        for one, other in zip(state.habits, read.states[user].habits, strict=True):
            np.testing.assert_array_equal(one, other)


def test_examples_are_the_lists_asked_before_a_choice_with_what_was_chosen() -> None:
    log = busy_log(200, users=6, items=40, seed=5)
    pipeline = make_pipeline(ranker=LearnedRanker(), options=OPTIONS._replace(examples=True))
    result = run(pipeline, log)
    examples = [e for e in result.examples if len(e.position)]
    asked = np.concatenate([e.asked for e in result.examples])
    assert asked.tolist() == sorted(result.asked)
    assert examples
    for one in examples:
        assert set(one.position.tolist()) <= set(asked.tolist())
        for position, features, size, chosen in zip(one.position, one.features, one.size, one.chosen, strict=True):
            assert 0 <= chosen < size
            assert features[:size].any(axis=1).all()
            assert not features[size:].any()
            assert position in result.asked


def test_items_with_the_same_vector_stand_in_the_same_order_however_many_lists_are_made_at_once() -> None:
    """Matrix products of different shapes round differently; equal items must not trade places for that."""
    catalogue = catalogue_of(203)
    for n in range(203):
        catalogue.set_vectors([n], catalogue.vectors[[n % 7]])
    log = records([click(f"u{n % 40}", f"i{n}", n) for n in range(120)])
    make = lambda: make_pipeline(_with_vectors(catalogue))  # noqa: E731
    assert Player(make()).play(log).published == Player(make()).play(log, range(1, len(log))).published


def _with_vectors(catalogue: Catalogue) -> Catalogue:
    copy = catalogue_of(len(catalogue))
    copy.set_vectors(range(len(catalogue)), catalogue.vectors[: len(catalogue)].copy())
    return copy


def test_a_list_made_for_a_query_is_not_what_is_asked_before_the_next_event() -> None:
    log = records(
        [
            *[click("u", f"i{n}", n) for n in range(3)],
            *[click("v", f"i{n}", 4) for n in (7, 8, 9)],
            request("u", 5, text="rain"),
            click("u", "i9", 5),
        ]
    )
    whole = Player(make_pipeline()).play(log)
    single = Player(make_pipeline()).play(log, range(1, len(log)))
    asked = [items for result in single.results for items in result.asked.values()]
    assert list(whole.results[0].asked.values()) == asked
    assert whole.fingerprint() == single.fingerprint()


@settings(max_examples=25, deadline=None)
@given(strategies.event_logs())
def test_the_states_handed_in_are_never_changed(log: list[Incoming]) -> None:
    player = Player(make_pipeline())
    half = len(log) // 2
    player.play(log[:half])
    states = dict(player.states)
    before = {user: packed(state, player.pipeline.catalogue) for user, state in states.items()}
    excluded = {user: state.excluded[: state.excluded_size].tolist() for user, state in states.items()}
    player.play(log[half:])
    assert {user: packed(state, player.pipeline.catalogue) for user, state in states.items()} == before
    assert {user: state.excluded[: state.excluded_size].tolist() for user, state in states.items()} == excluded


def test_a_state_holds_on_to_nothing_but_its_own_vectors() -> None:
    """A row of a whole wave's array would keep the wave alive as long as one of its users is cached."""
    player = Player(make_pipeline()).play(records([click(f"u{n}", "i1", n) for n in range(50)]))
    for state in player.states.values():
        assert state.memory.base is None or state.memory.base.nbytes == state.memory.nbytes
        assert state.user.base is None or state.user.base.nbytes == state.user.nbytes


def test_a_pipeline_keeps_the_catalogue_it_was_given_even_while_that_is_empty() -> None:
    catalogue = Catalogue(BankEncoder.dimension)
    assert make_pipeline(catalogue).catalogue is catalogue


# replay and duplicates ---


@settings(max_examples=40, deadline=None)
@given(strategies.event_logs(), st.data())
def test_running_the_same_records_again_changes_nothing_and_publishes_the_newest_list_again(
    log: list[Incoming], data: st.DataObject
) -> None:
    player = Player(make_pipeline()).play(log)
    before, topic = player.fingerprint(), dict(player.topic)
    start = data.draw(st.integers(0, len(log) - 1))
    # Redelivered in one piece or in several, to a worker whose statistics hold the records already.
    again = [one._replace(counted=False) for one in log[start:]]
    player.play(again, data.draw(st.sampled_from(([], [len(again) // 2]))))
    after = player.fingerprint()
    changed = {"outcomes", "published", "scores"}
    assert {k: v for k, v in after.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}
    assert after["published"] == before["published"]
    assert after["scores"] == before["scores"]
    assert set(after["outcomes"][len(log) :]) == {REPLAYED}
    assert player.topic == topic


def test_a_redelivered_forget_clears_the_topic_again() -> None:
    """The crash may have come between the state and the null on `recommendations`."""
    log = records([click("u", "i1", 1), forget("u", 2)])
    player = Player(make_pipeline()).play(log)
    player.topic["u"] = b"the list of before, which the crash left"
    player.play(log)
    assert player.topic == {"u": None}


def test_an_event_id_sent_twice_is_folded_once() -> None:
    pipeline = make_pipeline()
    player = Player(pipeline).play(records([click("u", "i1", 1, event_id="e"), click("u", "i2", 2, event_id="e")]))
    assert player.results[0].outcomes == [FOLDED, DUPLICATE]
    assert player.states["u"].events == 1
    assert player.states["u"].applied == {LOG: 1}
    assert pipeline.statistics.clock == 1
    assert len(player.published) == 1
    player.play(records([click("u", "i3", 3, event_id="e")], start=2))
    assert player.results[1].outcomes == [DUPLICATE]


def test_records_of_another_log_are_not_a_replay() -> None:
    player = Player(make_pipeline()).play(records([click("u", "i1", 1)]))
    player.play(records([click("u", "i2", 2)], log="events@2/0"))
    assert player.results[1].outcomes == [FOLDED]
    assert player.states["u"].applied == {LOG: 0, "events@2/0": 0}


# forget ---


def test_forgetting_in_the_middle_of_a_batch_starts_the_user_anew() -> None:
    pipeline = make_pipeline()
    log = records(
        [
            click("u", "i1", 1),
            click("v", "i2", 2),
            forget("u", 10),
            click("u", "i4", 9),
            click("u", "i5", 11),
            click("v", "i6", 12),
        ]
    )
    player = Player(pipeline).play(log)
    (result,) = player.results
    assert result.outcomes == [FOLDED, FOLDED, FOLDED, FORGOTTEN, FOLDED, FOLDED]
    assert [(made.position, made.user_id) for made in result.published] == [(1, "v"), (4, "u"), (5, "v")]
    assert result.forgotten == {"u"}
    state = player.states["u"]
    assert (state.events, [r.item_id for r in state.recent]) == (1, ["i5"])
    anew = Player(make_pipeline()).play(records([click("u", "i5", 11)])).states["u"]
    np.testing.assert_array_equal(state.memory, anew.memory)
    assert decode(result.published[1].data).sequence == 2


def test_lists_stored_before_forgetting_are_not_published_again() -> None:
    player = Player(make_pipeline()).play(records([click("u", "i1", 1)]))
    player.play([*records([click("u", "i1", 1)]), *records([forget("u", 2)], start=1)])
    assert player.results[1].outcomes == [REPLAYED, FOLDED]
    assert not player.results[1].republish
    assert player.topic == {"u": None}


# what each event does ---


def test_a_search_moves_the_user_towards_what_it_says() -> None:
    player = Player(make_pipeline()).play(records([search("u", "rain", 1)]))
    user = player.states["u"].user[:-1]
    cosine = user @ text_vector("rain") / np.linalg.norm(user)
    assert cosine == pytest.approx(1.0, abs=1e-5)
    assert len(player.published) == 1


def test_the_text_of_a_review_moves_the_user() -> None:
    log = records([click("u", "i1", 1, kind="review", text="good words"), click("v", "i1", 1, kind="review")])
    player = Player(make_pipeline()).play(log)
    said = player.states["u"].user[:-1] - player.states["v"].user[:-1]
    assert said @ text_vector("good words") > 0


def test_hiding_excludes_an_item_and_pushes_the_user_away_from_it() -> None:
    pipeline = make_pipeline()
    player = Player(pipeline).play(records([click("u", "i1", 1), click("v", "i2", 2)]))
    before = player.states["u"].user @ pipeline.catalogue.vectors[2]
    player.play(records([hide("u", "i2", 3), click("u", "i3", 4)], start=2))
    assert player.states["u"].user @ pipeline.catalogue.vectors[2] < before
    assert len(lists_of(player.results[1])) == 2
    for items in lists_of(player.results[1]):
        assert "i2" not in items
    assert pipeline.statistics.arrays.touches[2] == 1


def test_a_request_leaves_the_user_as_he_was_and_carries_its_id_and_length() -> None:
    player = Player(make_pipeline()).play(records([click("u", "i1", 1), click("u", "i2", 2)]))
    before = player.states["u"]
    memory, user, events = before.memory.tobytes(), before.user.tobytes(), before.events
    asked = records([request("u", 3, request_id="q", k=4, text="rain"), request("u", 3, request_id="p", k=25)])
    player.play([one._replace(log="requests@1/0") for one in asked])
    after = player.states["u"]
    assert (after.memory.tobytes(), after.user.tobytes(), after.events) == (memory, user, events)
    first, second = (decode(made.data) for made in player.results[1].published)
    assert (first.request_id, first.trigger_event_id, len(first.items), first.sequence) == ("q", None, 4, 3)
    assert (second.request_id, len(second.items), second.sequence) == ("p", 25, 4)
    assert first.event_time_ms == ms(3)
    assert after.last_list == player.results[1].published[1].data
    assert player.pipeline.statistics.clock == 2


def test_the_query_of_a_request_bends_its_list() -> None:
    items = [f"i{n}" for n in range(30)]
    catalogue = catalogue_of(items)
    catalogue.set_vectors([17], np.append(text_vector("rain"), np.float32(0))[None])
    player = Player(make_pipeline(catalogue, ranker=LogLinearRanker(own=_only("encoder_score"))))
    player.play(records([request("u", 1, text="rain"), request("u", 1)]))
    bent, plain = lists_of(player.results[0])
    assert bent[0] == "i17"
    assert "i17" not in plain


def _only(feature: str) -> list[float]:
    return [1.0 if name == feature else 0.0 for name in BASE_FEATURES]


def test_a_request_without_a_time_of_its_own_takes_the_streams() -> None:
    pipeline = make_pipeline()
    made = run(pipeline, records([request("u")]), stream_now_ms=ms(77)).published[0]
    assert decode(made.data).event_time_ms == ms(77)


def test_an_impression_is_taken_without_a_list() -> None:
    shown = Impression(type="impression", event_id="s", user_id="u", item_ids=("i1", "i2"), event_time_ms=ms(1))
    player = Player(make_pipeline()).play(records([shown, shown]))
    assert player.results[0].outcomes == [FOLDED, DUPLICATE]
    assert player.published == []
    assert player.states["u"].events == 0


def test_an_item_nobody_declared_is_recommended_to_others_from_its_first_touch_on() -> None:
    # Untaught, so that the one choice of an item nobody had touched does not decide what stands first.
    pipeline = make_pipeline(options=OPTIONS._replace(learn=False))
    player = Player(pipeline).play(records([click("u", "brand-new", 1), click("v", "i1", 2), click("u", "i2", 3)]))
    to_u, to_v, to_u_again = lists_of(player.results[0])
    assert "brand-new" in to_v
    assert "brand-new" not in to_u + to_u_again
    titles = [item.source for item in decode(player.published[1][1]).items if item.item_id == "brand-new"]
    assert set(titles) <= set(SOURCES)


def test_a_removed_item_is_never_recommended_until_it_is_declared_again() -> None:
    pipeline = make_pipeline()
    catalogue = pipeline.catalogue
    player = Player(pipeline).play(records([click("u", "i1", 1), click("u", "i2", 2)]))
    catalogue.remove("i1")
    player.play(records([click("v", "i3", 3), click("w", "i1", 4), click("v", "i4", 5)], start=2))
    assert not any("i1" in items for items in lists_of(player.results[1]))
    declare(catalogue, "i1")
    player.play(records([request("v", 6, k=30)], start=5))
    assert "i1" in lists_of(player.results[2])[0]


def test_an_unavailable_item_is_not_recommended() -> None:
    catalogue = catalogue_of(5)
    declare(catalogue, "i3", available=False)
    player = Player(make_pipeline(catalogue)).play(records([click("u", "i3", 1), click("v", "i1", 2)]))
    assert not any("i3" in items for items in lists_of(player.results[0]))


def test_after_a_repeatable_kind_an_item_may_come_again() -> None:
    options = OPTIONS._replace(repeatable_kinds=frozenset({"play"}))
    log = [click("u", "i1", 1, kind="play"), click("u", "i2", 2, kind="purchase")]
    player = Player(make_pipeline(options=options)).play(records(log))
    last = lists_of(player.results[0])[-1]
    assert "i1" in last
    assert "i2" not in last
    player.play(records([click("u", "i1", 3, kind="purchase")], start=2))
    assert "i1" not in lists_of(player.results[1])[0]


@settings(max_examples=40, deadline=None)
@given(strategies.event_logs())
def test_lists_hold_distinct_available_items_the_user_has_not_seen(log: list[Incoming]) -> None:
    pipeline = make_pipeline(cold_catalogue())
    pipeline.catalogue.remove("i3")
    (result,) = Player(pipeline).play(log).results
    made = {one.position: decode(one.data) for one in result.published}
    seen: dict[str, set[str]] = {}
    sequences: dict[str, int] = {}
    for position, one in enumerate(log):
        event, user = one.event, str(one.event.user_id)
        if result.outcomes[position] == FOLDED:
            if isinstance(event, Forget):
                seen[user] = set()
            elif (item := getattr(event, "item_id", None)) is not None:
                seen.setdefault(user, set()).add(item)
        if not (made_now := made.get(position)):
            sequences[user] = sequences.get(user, 0) + (result.outcomes[position] == FOLDED and _makes_a_list(event))
            continue
        items = [item.item_id for item in made_now.items]
        assert len(set(items)) == len(items) <= (event.k if isinstance(event, Request) else 10)
        assert not set(items) & (seen.get(user, set()) | {"i3"})
        assert [item.rank for item in made_now.items] == list(range(1, len(items) + 1))
        scores = [item.score for item in made_now.items]
        assert scores == sorted(scores, reverse=True)
        assert all(map(math.isfinite, scores))
        assert all(item.source in SOURCES and item.reason for item in made_now.items)
        assert made_now.sequence == sequences.get(user, 0) + 1
        sequences[user] = made_now.sequence


def _makes_a_list(event: object) -> bool:
    return not isinstance(event, Forget | Impression)


def test_an_item_seen_before_this_worker_knew_it_is_not_recommended_when_it_learns_it() -> None:
    """The state comes from the store; its item enters this worker's catalogue through another user's event."""
    stored = Player(make_pipeline(catalogue_of(3))).play(records([hide("u", "odd", 1), click("u", "i1", 2)]))
    record = pack(stored.states["u"], stored.pipeline.catalogue)
    events = [click("u", "i2", 3), click("v", "odd", 4), click("u", "i0", 5), click("u", "odd", 6)]
    log = records(events, start=2)
    for cuts in ([], [1, 2, 3]):
        pipeline = make_pipeline(catalogue_of(3))
        player = Player(pipeline)
        player.states["u"] = unpack("u", record, pipeline.catalogue)
        player.play(log, cuts)
        lists = [items for user, items in _by_user(player) if user == "u"]
        assert len(lists) == 3
        assert not any("odd" in items for items in lists)


def _by_user(player: Player) -> list[tuple[str, list[str]]]:
    return [(user, [item.item_id for item in decode(data).items]) for user, data in player.published]


def test_reasons_name_only_what_this_user_did() -> None:
    """What was said in other users' lists leaves no trace in this one."""
    log = records([click(f"u{n % 5}", f"i{(n * 7) % 11}", n, kind="rating", value=5.0) for n in range(60)])
    catalogue = [f"i{n}" for n in range(11)]
    alone = Player(make_pipeline(catalogue_of(catalogue))).play(log)
    beside = Player(make_pipeline(catalogue_of(catalogue))).play(log)
    for n in range(5):
        # Requests change neither statistics nor weights.
        beside.play([Incoming(request(f"u{n}", 60 + n, k=30), "requests@1/0", n)])
    last = records([click("new", "i3", 90, kind="rating", value=5.0)], start=len(log))
    assert _reasons(alone.play(last)) == _reasons(beside.play(last))
    assert any(reason.startswith("because you rated") for reason in _reasons(alone))


def _reasons(player: Player) -> list[str]:
    return [item.reason for item in decode(player.results[-1].published[-1].data).items]


def test_a_user_of_another_model_is_refolded_from_what_he_remembers() -> None:
    log = records([click("u", f"i{n}", n) for n in range(4)])
    stored = Player(make_pipeline(model_version="m0")).play(log).states["u"]
    stored.memory = np.full_like(stored.memory, 9)
    pipeline = make_pipeline(model_version="m1")
    (state,) = run(pipeline, records([request("u", 9)], log="requests@1/0"), {"u": stored}).states.values()
    same = Player(make_pipeline(model_version="m1")).play(log).states["u"]
    np.testing.assert_allclose(state.memory, same.memory, atol=1e-6)
    np.testing.assert_allclose(state.user, same.user, atol=1e-6)
    assert state.model_version == "m1"


def test_refolding_a_user_whose_items_fill_the_catalogue_works() -> None:
    stored = (
        Player(make_pipeline(model_version="m0")).play(records([click("u", f"i{n}", n) for n in range(9)])).states["u"]
    )
    catalogue = Catalogue(BankEncoder.dimension, capacity=1)
    catalogue.intern("i0")
    pipeline = make_pipeline(catalogue, model_version="m1")
    pipeline.refold(stored)
    assert len(pipeline.catalogue) == 9


# online scores ---


def test_online_scores_agree_with_a_count_by_hand() -> None:
    log = busy_log(250, users=6, items=40, seed=1)
    player = Player(make_pipeline(catalogue_of(20))).play(log, [100, 130])
    known = {f"i{n}" for n in range(20)}
    shown: dict[str, tuple[str, ...]] = {}
    touched: dict[str, list[str]] = {}
    by_hand: list[tuple[bool, int, int]] = []
    published = iter(player.published)
    asked = iter([items for result in player.results for _, items in sorted(result.asked.items())])
    for one in log:
        event = one.event
        assert isinstance(event, Interaction)
        user, item = str(event.user_id), str(event.item_id)
        history = touched.setdefault(user, [])
        if item in known and item not in history:
            by_hand.append((len(history) < COLD_EVENTS, _place(shown.get(user, ()), item), _place(next(asked), item)))
        known.add(item)
        history.append(item)
        shown[user] = tuple(i.item_id for i in decode(next(published)[1]).items)
    scores = [score for result in player.results for score in result.scores]
    for name, column in (("last_published", 1), ("asked", 2)):
        got = [(score.cold, score.place) for score in scores if score.list == name]
        assert got == [(row[0], row[column]) for row in by_hand]
        assert sum(hit(place) for _, place in got) > 0
        assert sum(ndcg(place) for _, place in got) > 0
    assert {score.model_version for score in scores} == {"m1"}


def _place(items: Sequence[str], item: str) -> int:
    return list(items).index(item) + 1 if item in items else 0


def test_an_asked_share_of_nothing_scores_only_what_was_published() -> None:
    log = busy_log(120)
    result = run(make_pipeline(options=OPTIONS._replace(asked_share=0.0)), log)
    assert not result.asked
    assert {score.list for score in result.scores} == {"last_published"}
    some = run(make_pipeline(options=OPTIONS._replace(asked_share=0.5)), log)
    everything = run(make_pipeline(), log)
    assert 0 < len(some.asked) < len(everything.asked)


# options ---


def test_records_the_statistics_hold_already_are_folded_but_not_counted_again() -> None:
    log = busy_log(80)
    counted = [one._replace(counted=n % 2 == 0) for n, one in enumerate(log)]
    pipeline = make_pipeline()
    result = run(pipeline, counted)
    assert pipeline.statistics.clock == 40
    assert result.touch_positions == list(range(0, 80, 2))
    assert sum(len(touches.item) for touches in result.touches) == 40
    assert len(result.published) == 80


def test_frozen_statistics_and_weights_stay_as_they_are() -> None:
    log = busy_log(120)
    pipeline = make_pipeline()
    player = Player(pipeline).play(log[:80])
    before = player.fingerprint()
    run(pipeline, log[80:], player.states, options=OPTIONS._replace(counts=False, learn=False))
    after = player.fingerprint()
    for name in before:
        assert after[name] == before[name]


def test_muted_events_are_folded_without_lists() -> None:
    log = busy_log(60)
    loud, muted = Player(make_pipeline()).play(log), make_pipeline(options=OPTIONS._replace(publish=False))
    quiet = Player(muted).play(log)
    assert quiet.published == []
    assert dump_bytes(muted.statistics) == dump_bytes(loud.pipeline.statistics)
    for user, state in quiet.states.items():
        assert state.memory.tobytes() == loud.states[user].memory.tobytes()
        assert (state.sequence, state.last_list) == (0, b"")


def test_the_movement_of_the_weights_is_what_a_batch_reports() -> None:
    pipeline = make_pipeline()
    start = np.array(bootstrap_weights(), np.float32).astype(float)
    results = Player(pipeline).play(busy_log(200), [70, 140]).results
    assert pipeline.weights is not None
    moved = sum(result.weights for result in results if result.weights is not None)
    np.testing.assert_allclose(start + moved, pipeline.weights.weights, atol=1e-12)
    assert np.any(moved != 0)


def test_a_ranker_with_weights_of_its_own_is_left_alone() -> None:
    pipeline = make_pipeline(ranker=LogLinearRanker(own=bootstrap_weights()))
    result = run(pipeline, busy_log(50))
    assert pipeline.weights is None
    assert (result.weights, result.squares) == (None, None)


def test_an_empty_batch_and_an_empty_catalogue_are_no_trouble() -> None:
    pipeline = Pipeline(encoder=BankEncoder(), ranker=LogLinearRanker(), model_version="m1", options=OPTIONS)
    assert run(pipeline, []).outcomes == []
    result = run(pipeline, records([request("u", 1), click("u", "i1", 2), search("u", "rain", 3)]))
    assert lists_of(result) == [[], [], []]


def test_a_user_who_has_seen_as_much_as_a_state_remembers_still_gets_lists() -> None:
    items = SEEN_LENGTH + 20
    pipeline = make_pipeline(catalogue_of([]))
    state = None
    log = records([click("u", f"i{n}", n) for n in range(items)])
    player = Player(pipeline)
    quiet = OPTIONS._replace(publish=False, asked_share=0.0)
    for at in range(0, items, 512):
        state = run(pipeline, log[at : at + 512], player.states, options=quiet).states["u"]
        player.states["u"] = state
    assert state is not None
    assert len(state.seen) == SEEN_LENGTH
    (result,) = player.play(records([click("v", "fresh", items), click("u", "last", items)], start=items)).results
    allowed = {f"i{n}" for n in range(21)} | {"fresh"}
    assert set(lists_of(result)[1]) <= allowed
    assert "fresh" in lists_of(result)[1]
