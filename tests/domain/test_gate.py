"""Admission: what is folded, and what is replayed, sent twice, late, from the future or forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from models.domain.batch import DUPLICATE, FOLDED, FORGOTTEN, FUTURE, LATE, REPLAYED, Incoming
from models.domain.events import Event, Request
from models.domain.gate import admit
from models.domain.state import UserState
from tests.domain.helpers import LOG, OPTIONS, click, forget, ms, request

LATENESS = 1_000
OPTION = OPTIONS._replace(allowed_lateness_ms=LATENESS * 1_000, max_future_ms=300_000)


def state() -> UserState:
    """A user whose latest event was at 5,000 seconds, folded from offset 7."""
    made = UserState("u", np.zeros(1, np.float32), np.zeros(1, np.float32), "m")
    made.applied, made.last_event_ms = {LOG: 7}, ms(5_000)
    made.remember_event("known")
    return made


def outcome(event: Event | Request, *, offset: int = 8, record_time_ms: int = -1, log: str = LOG) -> str:
    return admit(state(), Incoming(event, log, offset, record_time_ms=record_time_ms), OPTION)[0]


@pytest.mark.parametrize(("offset", "expected"), [(0, REPLAYED), (7, REPLAYED), (8, FOLDED), (100, FOLDED)])
def test_an_offset_at_or_below_the_last_applied_one_is_a_replay(offset: int, expected: str) -> None:
    assert outcome(click("u", "i", 5_000), offset=offset) == expected
    assert outcome(request("u", 5_000), offset=offset) == expected


def test_every_log_has_offsets_of_its_own() -> None:
    assert outcome(click("u", "i", 5_000), offset=0, log="events@2/0") == FOLDED


def test_an_event_id_in_the_ring_is_a_duplicate() -> None:
    assert outcome(click("u", "i", 5_000, event_id="known")) == DUPLICATE
    assert outcome(click("u", "i", 5_000, event_id="unknown")) == FOLDED


@pytest.mark.parametrize(
    ("at", "expected"), [(5_000 - LATENESS, FOLDED), (5_000 - LATENESS - 1, LATE), (9_999, FOLDED)]
)
def test_lateness_is_judged_by_the_users_own_latest_event(at: int, expected: str) -> None:
    assert outcome(click("u", "i", at)) == expected


def test_a_first_event_is_never_late() -> None:
    fresh = UserState("u", np.zeros(1, np.float32), np.zeros(1, np.float32), "m")
    assert admit(fresh, Incoming(click("u", "i", -1_700_000_000), LOG, 0), OPTION) == (FOLDED, "")


@pytest.mark.parametrize(("ahead", "expected"), [(0, FOLDED), (300, FOLDED), (301, FUTURE), (-301, FOLDED)])
def test_the_future_is_judged_by_the_records_own_time(ahead: int, expected: str) -> None:
    assert outcome(click("u", "i", 6_000), record_time_ms=ms(6_000 - ahead)) == expected


def test_a_record_without_a_time_has_no_future() -> None:
    assert outcome(click("u", "i", 10**9), record_time_ms=-1) == FOLDED


@pytest.mark.parametrize(("at", "expected"), [(5_999, FORGOTTEN), (6_000, FORGOTTEN), (6_001, FOLDED)])
def test_events_dated_at_or_before_forgetting_are_dropped(at: int, expected: str) -> None:
    forgotten = state()
    forgotten.forget(ms(6_000), np.zeros(1, np.float32), np.zeros(1, np.float32))
    assert admit(forgotten, Incoming(click("u", "i", at), LOG, 8), OPTION)[0] == expected
    assert admit(forgotten, Incoming(forget("u", at), LOG, 8), OPTION)[0] == expected


def test_a_request_to_be_forgotten_is_never_late() -> None:
    assert outcome(forget("u", 1)) == FOLDED


def test_a_request_is_neither_late_nor_a_duplicate_nor_forgotten() -> None:
    forgotten = state()
    forgotten.forget(ms(6_000), np.zeros(1, np.float32), np.zeros(1, np.float32))
    assert admit(forgotten, Incoming(request("u", 1, request_id="known"), LOG, 8), OPTION) == (FOLDED, "")
    assert outcome(request("u")) == FOLDED


@pytest.mark.parametrize(
    ("event", "record_time_ms", "words"),
    [
        (click("u", "i", 0), -1, ("1000000 ms before", str(ms(5_000)))),
        (click("u", "i", 6_000), 1, ("300000 ms after",)),
    ],
)
def test_a_refusal_names_the_field_and_the_limit(event: Event, record_time_ms: int, words: tuple[str, ...]) -> None:
    _, detail = admit(state(), Incoming(event, LOG, 8, record_time_ms=record_time_ms), OPTION)
    assert "`event_time_ms`" in detail
    assert str(event.event_time_ms) in detail
    assert all(word in detail for word in words)
