"""What a trainer is told of each interaction: the record fits the event, and is joined to what the user was shown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.batch import FOLDED, Incoming, PipelineOptions
from models.domain.candidates import SOURCE_COUNT
from models.domain.errors import EventDecodeError
from models.domain.events import Forget, Impression, Interaction
from models.domain.features import BASE_COUNT, FEATURE_COUNT
from models.domain.feedback import (
    Feedback,
    Forgotten,
    decode_feedback,
    encode_feedback,
    pack_features,
    unpack_features,
)
from models.domain.state import RECENT_LENGTH, StoredBody, pack, unpack
from tests import strategies
from tests.domain.helpers import (
    OPTIONS,
    LearnedRanker,
    LogLinearRanker,
    Player,
    catalogue_of,
    click,
    decode,
    forget,
    hide,
    make_pipeline,
    ms,
    records,
    request,
    run,
    search,
)

TELLING = OPTIONS._replace(feedback=True)


def player(*, options: PipelineOptions = TELLING, ranker: LogLinearRanker | None = None) -> Player:
    return Player(make_pipeline(catalogue_of(60), options=options, ranker=ranker))


def told(played: Player) -> list[Feedback]:
    found = [one.record for result in played.results for one in result.feedback]
    return [record for record in found if isinstance(record, Feedback)]


def published(played: Player) -> list[dict[str, object]]:
    return [msgspec.json.decode(made.data) for result in played.results for made in result.published]


def impression(user: str, items: Sequence[str], at: int, **fields: str) -> Impression:
    return Impression(
        type="impression",
        event_id=f"seen-{user}-{at}",
        user_id=user,
        event_time_ms=ms(at),
        item_ids=tuple(items),
        **fields,
    )


def lively_log(events: int, *, users: int = 5, seed: int = 0) -> list[Incoming]:
    """Interactions that name lists, requests, impressions or nothing, in bursts of one stamp too."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(events):
        user, at = f"u{rng.integers(users)}", (n // 3) * 7
        item = f"i{min(int(rng.exponential(12)), 59)}"
        match rng.integers(10):
            case 0:
                made.append(request(user, at, request_id=f"r{n}", k=int(rng.integers(1, 20))))
            case 1:
                seen = [f"i{k}" for k in rng.integers(60, size=rng.integers(1, 90))]
                made.append(impression(user, seen, at + n % 3, request_id=f"r{n - int(rng.integers(12))}"))
            case 2:
                made.append(search(user, "rain", at))
            case 3:
                made.append(hide(user, item, at))
            case _:
                name = {"request_id": f"r{n - int(rng.integers(12))}"} if rng.integers(2) else {}
                made.append(click(user, item, at, event_id=f"e{n}", **name))
    return records(made)


# records fit the events ---


@settings(max_examples=25, deadline=None)
@given(strategies.event_logs())
def test_every_interaction_folded_and_every_forgetting_is_told_once_in_order(log: list[Incoming]) -> None:
    (result,) = player().play(log).results
    expected = [
        at
        for at, one in enumerate(log)
        if result.outcomes[at] == FOLDED and isinstance(one.event, Interaction | Forget)
    ]
    assert [one.position for one in result.feedback] == expected
    for one in result.feedback:
        event = log[one.position].event
        assert (one.record.user_id, one.record.event_time_ms) == (event.user_id, event.event_time_ms)
        assert isinstance(one.record, Forgotten if isinstance(event, Forget) else Feedback)
        assert decode_feedback(encode_feedback(one.record)) == one.record


def test_a_record_says_what_happened_and_what_came_before() -> None:
    log = records(
        [
            click("u", "i1", 1, kind="rating", value=4.0, event_id="e1"),
            click("u", "i2", 2, kind="review", text="Fine " * 100, event_id="e2"),
            click("u", "i1", 3, event_id="e3"),
            click("v", "i1", 4, event_id="e4"),
        ]
    )
    first, second, third, other = told(player().play(log))
    assert (first.event_id, first.item_id, first.kind, first.value, first.model_version) == (
        "e1",
        "i1",
        "rating",
        4.0,
        "m1",
    )
    assert (first.history, first.shown) == ((), None)
    assert second.text == ("Fine " * 100)[:320]
    assert [past[:4] for past in third.history] == [
        ("i1", "rating", 4.0, ms(1)),
        ("i2", "review", None, ms(2)),
    ]
    assert (first.first, third.first, other.first) == (True, False, True)
    assert (third.candidates, other.history) == (None, ())


def test_an_item_that_nobody_knew_is_told_without_candidates() -> None:
    (record,) = told(player().play(records([click("u", "stranger", 1)])))
    assert (record.first, record.candidates) == (False, None)


def test_the_history_is_as_long_as_a_state_remembers() -> None:
    *_, last = told(player().play(records([click("u", f"i{n % 60}", n) for n in range(RECENT_LENGTH + 9)])))
    assert [past[3] for past in last.history] == [ms(n) for n in range(8, RECENT_LENGTH + 8)]


def test_nothing_is_told_unless_it_is_asked_for() -> None:
    (result,) = player(options=OPTIONS).play(lively_log(60)).results
    assert result.feedback == []


def test_a_record_played_again_is_not_told_again_and_a_duplicate_never() -> None:
    played = player().play(records([click("u", "i1", 1, event_id="e"), click("u", "i1", 2, event_id="e")]))
    again = run(played.pipeline, records([click("u", "i1", 1, event_id="e")]), played.states)
    assert (len(told(played)), again.feedback) == (1, [])


# what is served stays the same ---


@pytest.mark.parametrize("ranker", [None, LearnedRanker()])
def test_telling_changes_neither_lists_nor_scores_nor_statistics(ranker: LogLinearRanker | None) -> None:
    log = lively_log(300)
    quiet = player(options=OPTIONS, ranker=ranker).play(log).fingerprint()
    loud = player(ranker=ranker).play(log).fingerprint()
    for part in quiet.keys() - {"states"}:
        assert quiet[part] == loud[part], part


@settings(max_examples=20, deadline=None)
@given(strategies.event_logs(), st.data())
def test_however_a_log_is_cut_the_same_is_told(log: list[Incoming], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(log) - 1)), max_size=6)))
    whole, cut = player().play(log), player().play(log, [c for c in cuts if c < len(log)])
    assert told(whole) == told(cut)
    assert whole.fingerprint() == cut.fingerprint()


@pytest.mark.parametrize("ranker", [None, LearnedRanker()])
@pytest.mark.parametrize("seed", range(3))
def test_a_long_batch_tells_what_batches_of_one_tell(ranker: LogLinearRanker | None, seed: int) -> None:
    log = lively_log(330, seed=seed)
    whole, single = player(ranker=ranker).play(log), player(ranker=ranker).play(log, range(1, len(log)))
    for one, other in zip(told(whole), told(single), strict=True):
        assert one == other
    assert whole.fingerprint() == single.fingerprint()
    assert {record.shown.named_by for record in told(whole) if record.shown} == {"request", "latest"}


# joined to what was shown ---


def test_an_interaction_is_joined_to_the_list_that_its_recommendation_id_names() -> None:
    played = player().play(records([click("u", "i1", 1), click("u", "i2", 2), click("u", "i3", 3)]))
    made = published(played)[1]
    items = [item["item_id"] for item in made["items"]]  # type: ignore[attr-defined]
    played.play(records([click("u", items[3], 4, recommendation_id=made["recommendation_id"])], start=3))
    shown = told(played)[-1].shown
    assert shown is not None
    assert (shown.named_by, shown.recommendation_id, shown.model_version) == (
        "recommendation",
        made["recommendation_id"],
        "m1",
    )
    assert (list(shown.items), shown.place) == (items, 4)
    assert list(shown.sources) == [item["source"] for item in made["items"]]  # type: ignore[attr-defined]


def test_an_interaction_is_joined_to_the_list_made_for_its_request() -> None:
    log = records(
        [request("u", 1, request_id="page", k=5), click("u", "i1", 2), click("u", "i2", 3, request_id="page")]
    )
    played = player().play(log)
    shown = told(played)[-1].shown
    assert shown is not None
    assert (shown.named_by, len(shown.items)) == ("request", 5)
    assert shown.recommendation_id == published(played)[0]["recommendation_id"]


def test_an_interaction_is_joined_to_the_impression_of_its_request() -> None:
    log = records([click("u", "i1", 1), impression("u", ["i7", "i8"], 2, request_id="own"), click("u", "i8", 3)])
    assert told(player().play(log))[-1].shown.named_by == "latest"  # type: ignore[union-attr]
    log[2] = log[2]._replace(event=click("u", "i8", 3, request_id="own"))
    shown = told(player().play(log))[-1].shown
    assert shown is not None
    assert (shown.named_by, shown.items, shown.place) == ("request", ("i7", "i8"), 2)
    assert (shown.model_version, shown.sources, shown.recommendation_id) == ("", (), None)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2)])
def test_an_impression_of_a_list_of_ours_has_its_model_and_sources_in_the_order_shown(cuts: tuple[int, ...]) -> None:
    first = player().play(records([click("u", "i1", 1)]))
    (made,) = published(first)
    items = [str(item["item_id"]) for item in made["items"]]  # type: ignore[attr-defined]
    by = {item["item_id"]: item["source"] for item in made["items"]}  # type: ignore[attr-defined]
    identifier = str(made["recommendation_id"])
    seen = [items[4], items[2]]
    log = records(
        [
            click("u", "i1", 1),
            impression("u", seen, 2, recommendation_id=identifier),
            click("u", items[2], 3, recommendation_id=identifier),
        ]
    )
    shown = told(player().play(log, cuts))[-1].shown
    assert shown is not None
    assert (list(shown.items), shown.place, shown.model_version) == (seen, 2, "m1")
    assert list(shown.sources) == [by[item] for item in seen]


def test_an_interaction_that_names_nothing_known_is_joined_to_the_newest_list() -> None:
    log = records([click("u", "i1", 1), *[impression("u", ["i9"], 2 + n) for n in range(9)]])
    played = player().play(log)
    made = published(played)[-1]
    played.play(records([click("u", "i9", 20, recommendation_id="?", request_id="?")], start=len(log)))
    shown = told(played)[-1].shown
    assert shown is not None
    assert (shown.named_by, shown.recommendation_id) == ("latest", made["recommendation_id"])


def test_what_a_state_keeps_of_impressions_is_bounded() -> None:
    pages = [impression("u", [f"i{n}-{k}" for k in range(200)], n) for n in range(6)]
    state = player().play(records([click("u", "i1", 0), *pages, click("u", "i2", 9)])).states["u"]
    assert sum(len(one.items) for one in state.shown) <= 200 + 4 * OPTIONS.list_length
    assert len(state.shown) <= 4


# candidates ---


def test_candidates_are_the_examples_a_ranker_on_the_spot_learns_from() -> None:
    played = player(options=TELLING._replace(examples=True), ranker=LearnedRanker()).play(lively_log(250))
    (result,) = played.results
    records_at = {one.position: one.record for one in result.feedback}
    seen = 0
    for examples in result.examples:
        for position, features, size, chosen in zip(
            examples.position, examples.features, examples.size, examples.chosen, strict=True
        ):
            record = records_at[int(position)]
            assert isinstance(record, Feedback)
            assert record.candidates is not None
            found = unpack_features(record.candidates.features, len(record.candidates.items))
            np.testing.assert_array_equal(found, features[:size].astype(np.float16))
            assert record.candidates.chosen == chosen
            assert record.candidates.items[chosen] == record.item_id
            assert any(record.candidates.reached)
            seen += 1
    with_features = [r for r in told(played) if r.candidates is not None and r.candidates.features]
    assert seen == len(with_features) > 20


def test_the_candidates_of_a_list_asked_say_where_the_served_ranker_put_the_choice() -> None:
    played = player().play(lively_log(250))
    (result,) = played.results
    places = {score.position: score.place for score in result.scores if score.list == "asked"}
    asked = {one.position: one.record for one in result.feedback if getattr(one.record, "candidates", None)}
    assert set(asked) == set(places)
    for position, record in asked.items():
        assert isinstance(record, Feedback)
        assert record.candidates is not None
        assert record.candidates.place == places[position]
        assert len(record.candidates.reached) == SOURCE_COUNT
        if record.candidates.chosen < 0:
            assert (record.candidates.features, record.candidates.place) == (b"", 0)


def test_a_log_linear_ranker_tells_every_feature_as_a_learned_one_would_see_it() -> None:
    found = [record.candidates for record in told(player().play(lively_log(250))) if record.candidates is not None]
    found = [one for one in found if one.features]
    assert found
    for one in found:
        features = unpack_features(one.features, len(one.items))
        assert features.shape == (len(one.items), FEATURE_COUNT)
        assert features[:, BASE_COUNT:].any(axis=1).all()
    passed = np.concatenate([unpack_features(one.features, len(one.items))[:, -1] for one in found])
    assert passed.any(), "habits are features, and kept"


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_candidates_of_a_share_of_the_lists_travel(share: float) -> None:
    log = lively_log(400)
    everything = {r.event_id for r in told(player().play(log)) if r.candidates is not None}
    asked = TELLING._replace(candidates_share=share)
    some = {r.event_id for r in told(player(options=asked).play(log)) if r.candidates is not None}
    assert some <= everything
    assert len(some) == pytest.approx(share * len(everything), abs=0.15 * len(everything))
    halved = asked._replace(asked_share=0.5)
    fewer = {r.event_id for r in told(player(options=halved).play(log)) if r.candidates is not None}
    assert fewer <= some
    assert len(fewer) == pytest.approx(0.5 * len(some), abs=0.15 * len(everything))


@pytest.mark.parametrize("ranker", [None, LearnedRanker()])
def test_candidates_that_travel_are_the_same_whatever_share_does(ranker: LogLinearRanker | None) -> None:
    log = lively_log(400)
    everything = {r.event_id: r for r in told(player(ranker=ranker).play(log))}
    some = told(player(options=TELLING._replace(candidates_share=0.4), ranker=ranker).play(log))
    travelling = [r for r in some if r.candidates is not None]
    assert travelling
    for record in travelling:
        assert record == everything[record.event_id]


def test_features_beyond_half_precision_are_cut_and_stay_numbers() -> None:
    features = np.array([[1e6, -1e30, 0.5]], np.float32)
    assert unpack_features(pack_features(features), 1).tolist() == [[65504.0, -65504.0, 0.5]]


@pytest.mark.parametrize("data", [b"", b"\x00", b"[]", encode_feedback(Forgotten(2, "u", 1))])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(EventDecodeError):
        decode_feedback(data)


# states ---


def test_a_state_read_back_joins_as_the_one_that_was_packed() -> None:
    log = lively_log(200)
    kept = player().play(log[:150])
    read = Player(kept.pipeline)
    catalogue = kept.pipeline.catalogue
    read.states = {user: unpack(user, pack(state, catalogue), catalogue) for user, state in kept.states.items()}
    assert {user: state.shown for user, state in read.states.items()} == {
        user: state.shown for user, state in kept.states.items()
    }
    assert any(one.impression for state in kept.states.values() for one in state.shown)


def test_a_state_packed_by_the_former_release_is_read_and_its_last_list_joined_to() -> None:
    played = player().play(records([click("u", "i1", 1)]))
    catalogue = played.pipeline.catalogue
    record = pack(played.states["u"], catalogue)
    fields = msgspec.msgpack.decode(record.body)
    former_fields = StoredBody.__struct_fields__.index("shown")
    former = msgspec.structs.replace(record, body=msgspec.msgpack.encode(fields[:former_fields]))
    played.states["u"] = unpack("u", former, catalogue)
    assert played.states["u"].shown == ()
    played.play(records([click("u", "i2", 2)], start=1))
    shown = told(played)[-1].shown
    assert shown is not None
    items = tuple(item.item_id for item in decode(played.results[0].published[0].data).items)
    assert (shown.named_by, shown.items, shown.recommendation_id, shown.sources) == ("latest", items, None, ())


def test_lists_published_while_nobody_told_are_not_joined_to_later() -> None:
    played = player().play(records([click("u", "i1", 1)]))
    played.pipeline.options = OPTIONS
    played.play(records([click("u", "i2", 2)], start=1))
    played.pipeline.options = TELLING
    played.play(records([click("u", "i3", 3)], start=2))
    shown = told(played)[-1].shown
    assert shown is not None
    assert shown.items == tuple(item.item_id for item in decode(played.results[1].published[0].data).items)


def test_nothing_shown_is_left_of_who_asked_to_be_forgotten() -> None:
    played = player().play(records([click("u", "i1", 1), impression("u", ["i5"], 2), forget("u", 3)]))
    assert played.states["u"].shown == ()
    assert played.results[0].feedback[-1].record == Forgotten(1, "u", ms(3))
    played.play(records([click("u", "i1", 4)], start=3))
    assert (told(played)[-1].shown, told(played)[-1].history) == (None, ())
