"""One slice of a batch: how batches are cut, what settles when, and how lists are told."""

from __future__ import annotations

import msgspec
import pytest

from models.domain.batch import PipelineOptions
from models.domain.events import Forget
from models.domain.pipeline import SLICE, _slices
from tests.domain.helpers import OPTIONS, Player, catalogue_of, click, decode, forget, make_pipeline, ms, records, run


@pytest.mark.parametrize("count", [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE + 5])
def test_a_batch_is_cut_into_slices_that_hold_every_record_in_order(count: int) -> None:
    log = records([click("u", "i", n) for n in range(count)])
    slices = _slices(enumerate(log))
    assert [record for part in slices for _, record in part] == log
    assert [position for part in slices for position, _ in part] == list(range(count))
    assert all(1 <= len(part) <= SLICE for part in slices)


def test_who_asks_to_be_forgotten_stands_alone() -> None:
    log = records([forget("u", 1), click("v", "i", 2), forget("u", 3), forget("w", 4), click("v", "i", 5)])
    slices = _slices(enumerate(log))
    assert [len(part) for part in slices] == [1, 1, 1, 1, 1]
    assert [isinstance(part[0][1].event, Forget) for part in slices] == [True, False, True, True, False]


def test_a_list_is_told_with_everything_a_subscriber_needs() -> None:
    pipeline = make_pipeline(catalogue_of(["a", "b", "c"], title="A title"))
    log = records([click("u", "a", 1, event_id="e1")])
    (made,) = pipeline.run(log, {}, generated_at_ms=lambda now: now + 5).published
    told = msgspec.json.decode(made.data)
    assert told["trigger_event_id"] == "e1"
    assert told["request_id"] is None
    assert (told["user_id"], told["sequence"], told["model_version"]) == ("u", 1, "m1")
    assert (told["event_time_ms"], told["generated_at_ms"]) == (ms(1), ms(1) + 5)
    assert {item["item_id"] for item in told["items"]} == {"b", "c"}
    assert told["schema_version"] == 1


def test_the_same_list_of_the_same_user_has_the_same_id_and_no_other() -> None:
    log = records([click(user, f"i{n}", n) for n, user in enumerate("uvuv")])
    ids = [decode(data).recommendation_id for _, data in Player(make_pipeline()).play(log).published]
    again = [decode(data).recommendation_id for _, data in Player(make_pipeline()).play(log, [1, 3]).published]
    assert ids == again
    assert len(set(ids)) == 4


def test_a_late_event_within_the_limit_does_not_turn_the_users_clock_back() -> None:
    player = Player(make_pipeline()).play(records([click("u", "i1", 100), click("u", "i2", 50)]))
    assert player.states["u"].last_event_ms == ms(100)
    assert player.states["u"].events == 2


def test_refused_records_move_offsets_and_nothing_else() -> None:
    log = records([click("u", "i1", 10), click("u", "i2", -(10**6))])
    player = Player(make_pipeline()).play(log)
    (result,) = player.results
    assert result.outcomes == ["folded", "late"]
    assert set(result.details) == {1}
    state = player.states["u"]
    assert (state.events, state.revision, state.applied["events@1/0"]) == (1, 2, 1)


@pytest.mark.parametrize(
    ("kind", "value", "liking", "strength"),
    [
        ("view", None, 1 / 3, 1.0),
        ("purchase", None, 1.0, 3.0),
        ("rating", 5.0, 1.0, 2.0),
        ("rating", 0.0, 0.0, 0.5),
        ("rating", -3.0, 0.0, 0.5),
        ("rating", 99.0, 1.0, 2.0),
        ("unheard of", None, 1 / 3, 1.0),
    ],
)
def test_liking_and_strength_follow_kind_and_value(
    kind: str, value: float | None, liking: float, strength: float
) -> None:
    assert OPTIONS.liking(kind, value) == pytest.approx(liking)
    assert OPTIONS.strength(kind, value) == pytest.approx(strength)


def test_the_length_of_lists_is_a_setting() -> None:
    options: PipelineOptions = OPTIONS._replace(list_length=3)
    (made,) = run(make_pipeline(options=options), records([click("u", "i1", 1)])).published
    assert len(decode(made.data).items) == 3
