"""The log that grows from feedback: the same as one built from the events themselves, whatever of them was missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.domain.events import Interaction
from models.domain.feedback import Feedback
from models.learning.feedback_log import FeedbackLog
from models.learning.log import LogBuilder, TrainingLog
from tests.domain.helpers import OPTIONS, WIDTH, Player, catalogue_of, click, make_pipeline, records, text_vector

KINDS = ("", "click", "purchase", "review")
TELLING = OPTIONS._replace(feedback=True, candidates_share=0.0)
WORDS = ("rather poor", "good and sturdy")
TEXTS = {text: text_vector(text) for text in WORDS}
DECLARED = [f"i{n}" for n in range(20)]
ITEM_TEXT = np.stack([text_vector(item_id) for item_id in DECLARED])


def events(count: int = 300, users: int = 6) -> list[Interaction]:
    """Kinds, values and texts of all sorts, repeated touches, items that nobody declared."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(count):
        kind = KINDS[1 + int(rng.integers(3))]
        value = float(rng.integers(1, 6)) if rng.random() < 0.5 else None
        text = WORDS[int(rng.integers(2))] if kind == "review" else None
        item = f"i{min(int(rng.exponential(8)), 30)}"
        made.append(click(f"u{rng.integers(users)}", item, 10 * n, event_id=f"e{n}", kind=kind, value=value, text=text))
    return made


def told(log: Sequence[Interaction]) -> list[Feedback]:
    played = Player(make_pipeline(catalogue_of(DECLARED), options=TELLING)).play(records(log))
    found = [one.record for result in played.results for one in result.feedback]
    return [record for record in found if isinstance(record, Feedback)]


def empty(**sizes: int) -> FeedbackLog:
    log = FeedbackLog(KINDS, OPTIONS, WIDTH, **sizes)
    log.declare(DECLARED, ITEM_TEXT)
    return log


def rows(log: TrainingLog, item_ids: Sequence[str]) -> list[tuple[object, ...]]:
    """What each event says, without the numbers that depend on the order of arrival."""
    return [
        (
            item_ids[log.item[at]],
            int(log.kind[at]),
            float(log.strength[at]),
            float(log.value[at]),
            int(log.time_ms[at]),
            log.event_text[log.text[at]].tobytes() if log.text[at] >= 0 else None,
            bool(log.target[at]),
        )
        for at in range(len(log))
    ]


def test_all_records_give_the_log_that_all_events_give() -> None:
    made = events()
    built = LogBuilder(made, DECLARED, ITEM_TEXT, TEXTS, KINDS, OPTIONS)
    wanted = built.until(len(made))
    log, found = empty(), told(made)
    for start in range(0, len(found), 70):
        assert log.add(found[start : start + 70], TEXTS) == start
    assert log.item_ids == built.item_ids
    assert rows(log.log, log.item_ids) == rows(wanted, built.item_ids)
    np.testing.assert_array_equal(log.log.user, wanted.user)
    np.testing.assert_array_equal(log.log.item_text, wanted.item_text)


def test_histories_tell_what_the_log_missed_and_come_before_their_records() -> None:
    made = events(200)
    found = told(made)
    log = empty()
    assert log.add(found[120:150], TEXTS) == 120, "nobody has more than fifty events: all of them are told"
    assert len(log) == 150
    assert log.add(found[150:], TEXTS) == 150, "nothing is filled in twice"
    wanted = LogBuilder(made, DECLARED, ITEM_TEXT, TEXTS, KINDS, OPTIONS).until(200)
    by_time = sorted(rows(log.log, log.item_ids), key=lambda row: row[4])
    built = LogBuilder(made, DECLARED, ITEM_TEXT, TEXTS, KINDS, OPTIONS)
    for at, (own, other) in enumerate(zip(by_time, rows(wanted, built.item_ids), strict=True)):
        assert own[:5] == other[:5]
        if at >= 120:
            assert own == other


def test_a_record_is_known_by_its_event_and_by_a_history_that_told_of_it() -> None:
    found = told(events(60))
    log = empty()
    log.add(found[50:], TEXTS)
    assert all(log.knows(record) for record in found[50:])
    histories = {(r.user_id, past[0], past[3]) for r in found[50:] for past in r.history}
    for record in found[:50]:
        assert log.knows(record) == ((record.user_id, record.item_id, record.event_time_ms) in histories)


def test_what_was_refused_does_not_come_back_with_a_history() -> None:
    found = told(events(60))
    log = empty()
    log.refuse(found[3])
    log.add(found[4:], TEXTS)
    assert found[3].event_time_ms not in log.log.time_ms.tolist()


def test_the_text_of_a_past_event_is_found_again() -> None:
    made = events(120)
    found = told(made)
    log = empty()
    log.add(found, TEXTS)
    wanted = {(str(e.user_id), str(e.item_id), e.event_time_ms): e.text for e in made}
    checked = 0
    for record in found:
        for past in record.history:
            text = wanted[record.user_id, past[0], past[3]]
            embedding = log.past_text(record.user_id, past)
            assert (embedding is None) == (text is None)
            if text is not None:
                np.testing.assert_array_equal(embedding, TEXTS[text])
                checked += 1
    assert checked


def test_a_forgotten_users_events_and_texts_are_gone_and_the_others_stay() -> None:
    made = events(200)
    found = told(made)
    log = empty()
    log.add(found, TEXTS)
    before = rows(log.log, log.item_ids)
    until = found[100].event_time_ms
    gone = [at for at, e in enumerate(made) if e.user_id == "u1" and e.event_time_ms <= until]
    assert log.forget("u1", until) == len(gone)
    assert log.forget("u1", until) == 0
    assert rows(log.log, log.item_ids) == [row for at, row in enumerate(before) if at not in set(gone)]
    assert not any(log.knows(found[at]) for at in gone)
    assert log.forget("nobody", until) == 0
    user = log.log.user
    assert np.unique(user).tolist() == list(range(user.max() + 1))


def test_the_oldest_events_and_texts_are_dropped_beyond_what_is_kept() -> None:
    found = told(events(300))
    log = empty(capacity=100, text_capacity=10)
    for start in range(0, 300, 20):
        log.add(found[start : start + 20], TEXTS)
        log.trim()
    log.trim()
    assert 100 <= len(log) <= 110 + 20
    assert len(log.log.event_text) <= 11
    newest = rows(log.log, log.item_ids)[-10:]
    assert [row[4] for row in newest] == [record.event_time_ms for record in found[-10:]]
    texts = [row[5] for row in newest]
    assert texts == [None if r.text is None else TEXTS[r.text].tobytes() for r in found[-10:]]


@pytest.mark.parametrize("cut", [0, 90, 200])
def test_a_log_that_was_kept_goes_on_as_the_one_that_was_not(cut: int) -> None:
    found = told(events(200))
    log = empty()
    log.refuse(found[0])
    log.add(found[1:cut] if cut else [], TEXTS)
    arrays, names = log.state()
    again = FeedbackLog.restored(KINDS, OPTIONS, {k: v.copy() for k, v in arrays.items()}, names)
    for one in (log, again):
        one.add(found[max(cut, 1) :], TEXTS)
        one.forget("u2", found[120].event_time_ms)
    for name in ("user", "item", "kind", "strength", "value", "time_ms", "text", "target", "item_text", "event_text"):
        np.testing.assert_array_equal(getattr(again.log, name), getattr(log.log, name))
    assert again.item_ids == log.item_ids
    assert [again.knows(record) for record in found] == [log.knows(record) for record in found]


def test_an_items_text_is_known_by_its_mark_also_after_a_save_and_unknown_in_a_former_releases() -> None:
    log = FeedbackLog(KINDS, OPTIONS, 2)
    log.declare(["a", "b"], np.ones((2, 2), np.float32), [7, 8])
    log.declare(["c"], np.ones((1, 2), np.float32))
    log.declare(["b"], np.zeros((1, 2), np.float32), [9])
    arrays, names = log.state()
    for each in (log, FeedbackLog.restored(KINDS, OPTIONS, arrays, names)):
        assert each.has_text("a", 7)
        assert each.has_text("b", 9)
        assert not any(each.has_text(*wrong) for wrong in (("a", 8), ("b", 8), ("c", 7), ("nobody's", 7)))
    del arrays["item_mark"]
    assert not FeedbackLog.restored(KINDS, OPTIONS, arrays, names).has_text("a", 7)
