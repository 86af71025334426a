"""Replays under the evaluation protocols: what is scored, what is frozen, and that nothing looks ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.events import Event, Interaction
from models.domain.protocol import PROTOCOLS, ScoredEvent, replay, scored_from, summary
from models.domain.protocol import Player as LogPlayer
from tests.domain.helpers import Player, catalogue_of, click, decode, make_pipeline, records, search, text_vector
from tests.domain.test_pipeline import busy_log


def stream(count: int = 300, seed: int = 0) -> list[Event]:
    return [one.event for one in busy_log(count, users=9, items=50, seed=seed)]  # type: ignore[misc]


def play(events: Sequence[Event], protocol: str) -> list[ScoredEvent]:
    return list(replay(make_pipeline(catalogue_of(30)), events, protocol))


def lists_by_event(scored: Sequence[ScoredEvent]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]]:
    return {str(s.event.event_id): (s.asked, s.last_published, s.cold) for s in scored}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scored_are_the_last_fifths_first_touches_of_known_items(protocol: str) -> None:
    events = stream()
    known, touched, wanted = {f"i{n}" for n in range(30)}, set(), []
    for at, event in enumerate(events):
        assert isinstance(event, Interaction)
        if at >= 240 and event.item_id in known and (event.user_id, event.item_id) not in touched:
            wanted.append(event.event_id)
        known.add(event.item_id)
        touched.add((event.user_id, event.item_id))
    assert [s.event.event_id for s in play(events, protocol)] == wanted


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lists_hold_ten_distinct_items_the_user_has_not_touched(protocol: str) -> None:
    events = stream()
    scored = {s.event.event_id: s for s in play(events, protocol)}
    touched: dict[str, set[str]] = {}
    for event in events:
        assert isinstance(event, Interaction)
        mine = touched.setdefault(str(event.user_id), set())
        if event.event_id in scored:
            asked = scored[event.event_id].asked
            assert len(set(asked)) == len(asked) == 10
            assert not mine & set(asked)
        mine.add(str(event.item_id))


def test_the_last_fifth_is_counted_in_interactions() -> None:
    events: list[Event] = [
        search("u", "rain", 0),
        *[click("u", f"i{n}", n) for n in range(10)],
        search("u", "rain", 99),
    ]
    assert scored_from(events) == 9
    assert scored_from([search("u", "rain", 0)]) == 0
    assert scored_from([]) == 0


@pytest.mark.parametrize(("protocol", "moves"), [("p1", False), ("p1-strict", False), ("p2", True)])
def test_only_p2_goes_on_counting_and_learning(protocol: str, moves: bool) -> None:
    pipeline = make_pipeline(catalogue_of(30))
    assert pipeline.weights is not None
    clocks, weights = set(), set()
    for _ in replay(pipeline, stream(), protocol):
        clocks.add(pipeline.statistics.clock)
        weights.add(pipeline.weights.weights.tobytes())
    assert pipeline.statistics.clock == (300 if moves else 240)
    assert moves or (clocks == {240} and len(weights) == 1)


@settings(max_examples=12, deadline=None)
@given(st.integers(240, 299), st.sampled_from(PROTOCOLS))
def test_no_list_depends_on_what_happens_later(at: int, protocol: str) -> None:
    events = stream()
    other = [*events[:at], *[click("x", "i3", 9_000 + n * 40, event_id=f"x{n}") for n in range(300 - at)]]
    before = {str(e.event_id) for e in events[:at]}
    one, two = lists_by_event(play(events, protocol)), lists_by_event(play(other, protocol))
    assert {k: v for k, v in one.items() if k in before} == {k: v for k, v in two.items() if k in before}


def test_p2_asks_what_the_pipeline_asks() -> None:
    events = stream()
    player = Player(make_pipeline(catalogue_of(30))).play(records(events))
    (result,) = player.results
    for scored in play(events, "p2"):
        at = events.index(scored.event)
        assert scored.asked == result.asked[at]
        assert scored.last_published == result.last_published[at]


@pytest.mark.parametrize("protocol", ["p1", "p2"])
def test_the_list_last_published_is_the_one_published_before(protocol: str) -> None:
    events = stream()
    shown: dict[str, tuple[str, ...]] = {}
    scored = {s.event.event_id: s for s in play(events, protocol)}
    if protocol == "p2":
        player = Player(make_pipeline(catalogue_of(30))).play(records(events))
        published = [tuple(i.item_id for i in decode(data).items) for _, data in player.published]
        for event, made in zip(events, published, strict=True):
            if event.event_id in scored:
                assert scored[event.event_id].last_published == shown.get(str(event.user_id), ())
            shown[str(event.user_id)] = made
    else:
        assert all(len(s.last_published) in (0, 10) for s in scored.values())


def test_p1_lets_the_users_state_follow() -> None:
    """Statistics are frozen, yet what the user just did leaves his list."""
    events = [
        *[click(f"u{n % 5}", f"i{n % 30}", n) for n in range(80)],
        *[click("w", f"i{n}", 100 + n) for n in range(20)],
    ]
    scored = [s for s in play(events, "p1") if s.event.user_id == "w"]
    assert len(scored) == 20
    assert scored[0].cold
    assert not scored[-1].cold
    for at, one in enumerate(scored):
        assert not {f"i{n}" for n in range(at)} & set(one.asked)


def test_strict_asks_with_nothing_but_strictly_earlier_stamps() -> None:
    history: list[Event] = [click(f"u{n % 5}", f"i{n % 30}", n) for n in range(80)]
    page: list[Event] = [click("w", f"i{n}", 200, event_id=f"p{n}") for n in range(6)]
    rest: list[Event] = [click("w", f"i{n}", 300 + n, event_id=f"r{n}") for n in range(10, 24)]
    strict = lists_by_event(play([*history, *page, *rest], "p1-strict"))
    other_page = [click("w", f"i{n}", 200, event_id=f"p{n}") for n in (5, 4, 3, 2, 1, 0)]
    again = lists_by_event(play([*history, *other_page, *rest], "p1-strict"))
    # Within the page only what stands before it on the same stamp is taken out of the list; the state is the same.
    full = strict["p0"][0]
    for n in range(6):
        kept = [item for item in full if item not in {f"i{m}" for m in range(n)}]
        assert list(strict[f"p{n}"][0])[: len(kept)] == kept
    assert again["p5"][0] == full
    assert strict["p5"][1] == strict["p0"][1] == ()
    assert all(not {f"i{m}" for m in range(6)} & set(strict[f"r{n}"][0]) for n in range(10, 24))


def test_texts_reach_the_encoder() -> None:
    events: list[Event] = []
    for n in range(40):
        events += [search("u", "rain", 2 * n), click("u", f"i{n % 30}", 2 * n + 1)]
    texts = {"rain": text_vector("rain")}
    told, silent = (LogPlayer(make_pipeline(), events, given) for given in (texts, None))
    for player in (told, silent):
        assert len(list(player.play_to(len(events)))) == 30
    assert (told.states["u"].user != silent.states["u"].user).any()


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match="unknown protocol 'p3'; known: p1, p1-strict, p2"):
        list(replay(make_pipeline(), stream(), "p3"))


def test_progress_ends_at_the_number_of_events() -> None:
    for protocol in PROTOCOLS:
        seen: list[int] = []
        list(replay(make_pipeline(), stream(), protocol, progress=seen.append))
        assert seen == sorted(seen)
        assert seen[-1] == 300


def test_the_summary_agrees_with_a_count_by_hand() -> None:
    scored = [
        ScoredEvent(click("u", "a", 1), ("a", "b"), ("b", "a"), True),
        ScoredEvent(click("u", "c", 2), ("a", "b"), (), False),
        ScoredEvent(click("v", "b", 3), ("d", "x", "b"), ("b",), False),
        ScoredEvent(click("v", "k", 4), tuple("abcdefghijk"), ("k",), True),
    ]
    figures = summary(scored, 20)
    assert (figures["scored_events"], figures["scored_users"]) == (4, 2)
    assert figures["hr_at_10"] == pytest.approx(2 / 4)
    assert figures["ndcg_at_10"] == pytest.approx((1 + 1 / math.log2(4)) / 4)
    assert figures["last_published_hr_at_10"] == pytest.approx(3 / 4)
    assert figures["last_published_ndcg_at_10"] == pytest.approx((1 / math.log2(3) + 2) / 4)
    assert (figures["cold_events"], figures["warm_events"]) == (2, 2)
    assert figures["cold_hr_at_10"] == pytest.approx(1 / 2)
    assert figures["warm_ndcg_at_10"] == pytest.approx(1 / math.log2(4) / 2)
    assert figures["coverage_at_10"] == pytest.approx(12 / 20)
    low, high = figures["hr_at_10_interval"]
    assert low <= 0.5 <= high


def test_a_summary_of_nothing_has_no_figures() -> None:
    figures = summary([], 0)
    assert figures["scored_events"] == 0
    assert figures["hr_at_10"] is None
    assert figures["coverage_at_10"] == 0.0
