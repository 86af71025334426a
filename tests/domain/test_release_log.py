"""What `models` adds up to: one champion whatever crashed, rollbacks that know where to go, nothing malformed taken."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.domain.errors import EventDecodeError
from models.domain.release_log import ReleaseError, Releases, add, promote, roll_back, superfluous
from models.domain.releases import CHAMPION, ModelEntry, Release, encode_release

VERSIONS = ("a", "b", "c", "d")
Written = tuple[bytes, bytes]


def candidate(version: str, **metrics: float) -> ModelEntry:
    return ModelEntry(
        version=version, parent=None, created_ms=ord(version[0]), state="candidate", metrics=metrics, at_ms=0
    )


def written(message: Release | ModelEntry) -> Written:
    key = CHAMPION if isinstance(message, Release) else message.version
    return key.encode(), encode_release(message)


def read(messages: list[Written]) -> Releases:
    releases = Releases()
    for key, value in messages:
        releases.update(key, value)
    return releases


def states(releases: Releases) -> dict[str, str]:
    return {version: releases.state(version) for version in VERSIONS}


class Topic:
    """Messages in their order, and a writer that may end after any of them."""

    def __init__(self) -> None:
        self.messages: list[Written] = []
        self.now_ms = 1_000

    def promote(self, version: str, *, messages: int | None = None) -> None:
        self._write(
            promote(read(self.messages), candidate(version), by="trainer", reason="r", now_ms=self._tick()), messages
        )

    def roll_back(self, version: str | None = None, *, messages: int | None = None) -> None:
        self._write(roll_back(read(self.messages), version, by="operator", reason="r", now_ms=self._tick()), messages)

    def _write(self, decided: tuple[Release, list[ModelEntry]], messages: int | None) -> None:
        release, entries = decided
        self.messages += [written(message) for message in (release, *entries)][:messages]

    def _tick(self) -> int:
        self.now_ms += 10
        return self.now_ms

    def read(self) -> Releases:
        return read(self.messages)


def test_a_promotion_retires_the_champion_and_counts_on() -> None:
    topic = Topic()
    topic.promote("a")
    topic.promote("b")
    found = topic.read()
    assert found.champion is not None
    assert (found.champion.sequence, found.champion.version, found.champion.previous) == (2, "b", "a")
    assert states(found) == {"a": "retired", "b": "champion", "c": "candidate", "d": "candidate"}
    assert found.entries == {version: found.entry(version) for version in ("a", "b")}


def test_promoting_the_champion_again_writes_nothing() -> None:
    topic = Topic()
    topic.promote("a")
    champion = topic.read().champion
    assert promote(topic.read(), candidate("a"), by="trainer", reason="again", now_ms=5_000) == (champion, [])


def test_a_rollback_goes_to_the_former_champion_and_a_second_one_further_back() -> None:
    topic = Topic()
    for version in "abc":
        topic.promote(version)
    topic.roll_back()
    assert states(topic.read()) == {"a": "retired", "b": "champion", "c": "rolled_back", "d": "candidate"}
    topic.roll_back()
    found = topic.read()
    assert states(found) == {"a": "champion", "b": "rolled_back", "c": "rolled_back", "d": "candidate"}
    assert found.champion is not None
    assert (found.champion.sequence, found.champion.action) == (5, "rollback")
    with pytest.raises(ReleaseError, match="no former champion"):
        topic.roll_back()


def test_a_rollback_by_name_takes_only_what_was_champion_once() -> None:
    topic = Topic()
    with pytest.raises(ReleaseError, match="no version was promoted yet"):
        topic.roll_back()
    topic.promote("a")
    topic.promote("b")
    with pytest.raises(ReleaseError, match="never champion"):
        topic.roll_back("c")
    with pytest.raises(ReleaseError, match="is champion"):
        topic.roll_back("b")
    topic.roll_back("a")
    topic.roll_back("b")
    assert states(topic.read())["b"] == "champion"


def test_a_writer_that_ended_after_the_release_is_corrected_and_made_good_by_the_next() -> None:
    topic = Topic()
    topic.promote("a", messages=1)
    assert states(topic.read())["a"] == "champion"
    topic.promote("b", messages=1)
    topic.roll_back(messages=1)
    assert states(topic.read()) == {"a": "champion", "b": "rolled_back", "c": "candidate", "d": "candidate"}
    topic.promote("c")
    assert states(topic.read()) == {"a": "retired", "b": "rolled_back", "c": "champion", "d": "candidate"}
    assert {version: entry.state for version, entry in topic.read().entries.items()} == {
        "a": "retired",
        "c": "champion",
        "b": "rolled_back",
    }


def test_a_release_of_a_writer_who_slept_changes_nothing_and_of_equal_numbers_the_later_holds() -> None:
    topic = Topic()
    topic.promote("a")
    asleep = topic.read()
    topic.promote("b")
    same = promote(asleep, candidate("c"), by="operator", reason="r", now_ms=9_000)[0]
    found = topic.read()
    assert found.update(*written(same))
    assert found.champion == same
    found.update(*written(promote(found, candidate("d"), by="operator", reason="r", now_ms=9_000)[0]))
    assert not found.update(*written(same))
    assert states(found)["d"] == "champion"


def test_a_clock_that_is_behind_does_not_turn_the_order_around() -> None:
    topic = Topic()
    topic.promote("a")
    topic.now_ms = 0
    topic.promote("b")
    found = topic.read()
    a, b = found.entry("a"), found.entry("b")
    assert a is not None
    assert b is not None
    assert a.at_ms == b.at_ms > 1_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"{}"),
        (b"", b"{}"),
        (b"\xff", b"{}"),
        (b"champion", None),
        (b"champion", b"{"),
        (b"champion", encode_release(candidate("a"))),
        (b"b", encode_release(candidate("a"))),
        (b"a", b'{"version":"a","parent":null,"created_ms":1,"state":"queen"}'),
        (b"a", b'{"version":"a","parent":null,"created_ms":1,"state":"retired","schema_version":2}'),
        (b"a", b"[" * 100_000),
    ],
)
def test_a_message_that_means_nothing_is_refused_and_changes_nothing(key: bytes | None, value: bytes | None) -> None:
    topic = Topic()
    topic.promote("a")
    found = topic.read()
    with pytest.raises(EventDecodeError):
        found.update(key, value)
    assert states(found) == states(topic.read())


@given(key=st.none() | st.binary(max_size=20), value=st.none() | st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(key: bytes | None, value: bytes | None) -> None:
    found = Releases()
    try:
        found.update(key, value)
    except EventDecodeError:
        assert found.champion is None
        assert found.entries == {}


def test_a_removed_entry_is_forgotten_and_a_known_version_is_not_added_again() -> None:
    releases = Releases()
    (entry,) = add(releases, candidate("a", ndcg=0.5))
    assert releases.update(*written(entry))
    assert not releases.update(*written(entry))
    assert add(releases, candidate("a")) == []
    assert releases.update(b"a", None)
    assert releases.entries == {}


def test_what_may_be_deleted_leaves_champion_the_way_back_and_the_newest() -> None:
    topic = Topic()
    for version in "dca":
        topic.promote(version)
    created = [(ord(version), version) for version in "abcdefg"]
    assert superfluous(topic.read(), created, 2) == ["b", "d", "e"]
    assert superfluous(topic.read(), created, 9) == []
    topic.roll_back()
    # a was rolled back and c is champion: the way back leads to d now.
    assert superfluous(topic.read(), created, 1) == ["b", "e", "f"]
    assert superfluous(Releases(), created, 6) == ["a"]


steps = st.lists(
    st.tuples(st.sampled_from(["promote", "roll_back"]), st.sampled_from(VERSIONS), st.none() | st.integers(0, 3)),
    max_size=12,
)


@given(steps=steps, seed=st.integers(0, 1_000))
def test_whatever_ended_when_every_reader_tells_one_champion_and_the_same_states(
    steps: list[tuple[str, str, int | None]], seed: int
) -> None:
    topic, champion = Topic(), None
    for action, version, messages in steps:
        try:
            getattr(topic, action)(version, messages=messages)
        except ReleaseError:
            continue
        if messages != 0:
            champion = version
        found = topic.read()
        assert (None if found.champion is None else found.champion.version) == champion
        assert [v for v, state in states(found).items() if state == "champion"] == ([champion] if champion else [])
    # A new reader finds the newest message of each key, of several partitions in any order.
    compacted = list(dict(topic.messages).items())
    random.Random(seed).shuffle(compacted)
    assert states(read(compacted)) == states(topic.read())
    assert read(compacted).entries == topic.read().entries
