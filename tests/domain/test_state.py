"""One user's state: what it remembers, how long, how it is stored, and that nothing is left after forgetting."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.catalogue import Catalogue, item_hash
from models.domain.errors import StateError
from models.domain.state import (
    EVENT_RING_LENGTH,
    RECENT_LENGTH,
    SEEN_LENGTH,
    Recent,
    UserState,
    event_hash,
    pack,
    unpack,
    unpack_body,
    user_key,
)
from tests import strategies
from tests.domain.helpers import (
    BankEncoder,
    Player,
    catalogue_of,
    click,
    forget,
    make_pipeline,
    packed,
    records,
    request,
)

ENCODER = BankEncoder()


def new_state(user_id: str = "u") -> UserState:
    return UserState(user_id, ENCODER.initial_state(), np.zeros(ENCODER.dimension, np.float32), "m1")


def remember(state: UserState, catalogue: Catalogue, item_id: str, *, excluded: bool = True) -> bool:
    return state.remember_item(catalogue, catalogue.intern(item_id), excluded=excluded)


def excluded_ids(state: UserState, catalogue: Catalogue) -> set[str]:
    return {catalogue.ids[at] for at in state.excluded[: state.excluded_size].tolist()}


@settings(max_examples=25, deadline=None)
@given(strategies.event_logs())
def test_a_state_packed_and_read_back_is_the_same_state(log: list[strategies.Incoming]) -> None:
    pipeline = make_pipeline()
    player = Player(pipeline).play(log)
    for user, state in player.states.items():
        again = unpack(user, pack(state, pipeline.catalogue), pipeline.catalogue)
        assert packed(again, pipeline.catalogue) == packed(state, pipeline.catalogue)
        assert again.recent == state.recent
        assert (again.seen, again.ring, again.applied) == (state.seen, state.ring, state.applied)
        assert excluded_ids(again, pipeline.catalogue) == excluded_ids(state, pipeline.catalogue)
        assert again.last_items == state.last_items


def test_a_copy_shares_nothing_that_changes() -> None:
    catalogue, state = catalogue_of(40), new_state()
    for n in range(20):
        remember(state, catalogue, f"i{n}")
    state.remember_event("e1")
    state.remember_interaction(Recent("i1", "click", None, 1))
    before = packed(state, catalogue)
    copy = state.copy()
    for n in range(20, 40):
        remember(copy, catalogue, f"i{n}")
    copy.remember_event("e2")
    copy.remember_interaction(Recent("i2", "click", None, 2))
    copy.applied["log"] = 7
    copy.forget(3, ENCODER.initial_state(), np.ones(ENCODER.dimension, np.float32))
    assert packed(state, catalogue) == before
    assert excluded_ids(state, catalogue) == {f"i{n}" for n in range(20)}


def test_the_ring_of_event_ids_keeps_the_newest() -> None:
    state = new_state()
    for n in range(EVENT_RING_LENGTH + 10):
        state.remember_event(f"e{n}")
    assert list(state.ring) == [event_hash(f"e{n}") for n in range(10, EVENT_RING_LENGTH + 10)]


def test_the_interactions_remembered_are_the_newest() -> None:
    state = new_state()
    for n in range(RECENT_LENGTH + 5):
        state.remember_interaction(Recent(f"i{n}", "click", None, n))
    assert [r.event_time_ms for r in state.recent] == list(range(5, RECENT_LENGTH + 5))


def test_recent_items_are_distinct_and_latest_first() -> None:
    catalogue, state = catalogue_of(4), new_state()
    for at_ms, item in enumerate(("i0", "i1", "i2", "i1", "i3")):
        state.remember_interaction(Recent(item, "click", None, at_ms))
    assert state.recent_items(catalogue, 3) == ([3, 1, 2], [4, 3, 2])
    assert state.copy().recent_items(catalogue, 3) == ([3, 1, 2], [4, 3, 2])
    state.remember_interaction(Recent("i0", "click", None, 5))
    assert state.recent_items(catalogue, 9) == ([0, 3, 1, 2], [5, 4, 3, 2])


def test_only_the_first_touch_of_an_item_counts_as_first() -> None:
    catalogue, state = catalogue_of(2), new_state()
    assert remember(state, catalogue, "i0", excluded=False)
    assert not remember(state, catalogue, "i0", excluded=False)
    assert excluded_ids(state, catalogue) == set()
    assert not remember(state, catalogue, "i0")
    assert excluded_ids(state, catalogue) == {"i0"}
    remember(state, catalogue, "i0")
    assert state.excluded_size == 1


@pytest.mark.parametrize("stored", [False, True])
def test_beyond_the_bound_the_item_seen_first_may_come_again_and_no_other(stored: bool) -> None:
    """Also where an item was excluded later than it was seen, and where the catalogue had to learn items late."""
    catalogue, state = catalogue_of(0), new_state()
    remember(state, catalogue, "repeatable", excluded=False)
    remember(state, catalogue, "first")
    remember(state, catalogue, "repeatable")
    for n in range(SEEN_LENGTH - 2):
        remember(state, catalogue, f"i{n}")
    assert len(state.seen) == SEEN_LENGTH
    if stored:
        record = pack(state, catalogue)
        catalogue = catalogue_of(0)
        state = unpack("u", record, catalogue)
        assert state.excluded_size == 0
        catalogue.intern_many(["i0", "first"])
        state.resolve(catalogue)
    everything = {"repeatable", "first"} | {f"i{n}" for n in range(SEEN_LENGTH)}
    for gone, item in (("repeatable", "x"), ("first", "y"), ("i0", "z")):
        remember(state, catalogue, item)
        everything = (everything | {item}) - {gone}
        catalogue.intern_many(sorted(everything))
        state.resolve(catalogue)
        hashes = {item_hash(i): i for i in everything}
        assert len(state.seen) == SEEN_LENGTH
        assert excluded_ids(state, catalogue) == {hashes[h] for h in state.seen}
        assert gone not in excluded_ids(state, catalogue)


def test_an_excluded_item_is_found_once_the_catalogue_learns_it() -> None:
    catalogue, state = catalogue_of(3), new_state()
    remember(state, catalogue, "i1")
    other = catalogue_of(["a", "b"])
    read = unpack("u", pack(state, catalogue), other)
    assert excluded_ids(read, other) == set()
    other.intern("i1")
    read.resolve(other)
    assert excluded_ids(read, other) == {"i1"}


def test_after_forgetting_no_byte_names_the_user_or_an_item() -> None:
    user, items = "somebody@example.org", [f"secret-item-{n}" for n in range(12)]
    player = Player(make_pipeline(catalogue_of(items)))
    player.play(records([click(user, item, n, text="secret words") for n, item in enumerate(items)]))
    assert user.encode() in pack(player.states[user], player.pipeline.catalogue).body
    memory = player.states[user].memory.copy()
    player.play(records([forget(user, 100)], start=len(items)))
    record = pack(player.states[user], player.pipeline.catalogue)
    everything = msgspec.msgpack.encode(
        [record.user_key, record.embedding.tobytes(), record.state.tobytes(), record.body]
    )
    assert np.any(memory != 0)
    for word in (user, "secret", "example"):
        assert word.encode() not in everything
    for item in items:
        assert item_hash(item).to_bytes(8, "little") not in everything
    body = unpack_body(record.body)
    assert (body.user_id, body.recent, body.seen, body.ring, body.last_list, body.last_items) == (
        "",
        [],
        b"",
        [],
        b"",
        [],
    )
    assert not record.embedding.any()
    np.testing.assert_array_equal(record.state, ENCODER.initial_state())


def test_a_tombstone_keeps_offsets_revision_sequence_and_the_time_of_forgetting() -> None:
    player = Player(make_pipeline()).play(records([click("u", "i1", 1), click("u", "i2", 2), forget("u", 3)]))
    state = unpack("u", pack(player.states["u"], player.pipeline.catalogue), player.pipeline.catalogue)
    assert state.applied == {"events@1/0": 2}
    assert (state.revision, state.sequence, state.forgotten_ms) == (3, 2, forget("u", 3).event_time_ms)


@pytest.mark.parametrize("back", [click("u", "i3", 9), request("u", 9)])
def test_a_user_who_comes_back_is_named_again(back: object) -> None:
    player = Player(make_pipeline()).play(records([click("u", "i1", 1), forget("u", 3), back]))  # type: ignore[list-item]
    assert unpack_body(pack(player.states["u"], player.pipeline.catalogue).body).user_id == "u"


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xc1", msgspec.msgpack.encode([1, "u"]), msgspec.msgpack.encode({})])
def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(StateError, match="unreadable"):
        unpack_body(body)


def test_a_body_of_another_version_is_refused() -> None:
    fields = msgspec.msgpack.decode(pack(new_state(), catalogue_of(0)).body)
    with pytest.raises(StateError, match="version 99"):
        unpack_body(msgspec.msgpack.encode([99, *fields[1:]]))


@given(st.text(max_size=300))
def test_a_users_key_is_a_uuid_that_tells_nothing(user_id: str) -> None:
    key = user_key(user_id)
    assert key == user_key(user_id)
    assert len(key) == 36
    assert len(user_id) < 8 or user_id not in key
