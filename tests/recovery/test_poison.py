"""Messages that cannot be processed, in the middle of a stream: kept whole, and everything between is answered."""

from __future__ import annotations

import time

import msgspec
import pytest

from streams.kafka.partitioner import partition_of
from streams.kafka.publisher import Message
from tests.services.deployment import Deployment, assert_states_follow, until_consumed
from tests.services.poison import send_with_header_name
from tests.services.streams import expected_touches, make_events

pytestmark = [pytest.mark.recovery, pytest.mark.integration]

DAY_MS = 86_400_000


async def test_poison_between_good_events_becomes_dead_letters_and_every_good_event_is_answered(
    deployed: Deployment,
) -> None:
    names = deployed.names
    good = make_events(400, users=20, items=50)
    poison: list[tuple[bytes | None, str]] = [
        (b"\x00\xff\xfe" * 50, "invalid_json"),
        (None, "invalid_json"),
        (b"", "invalid_json"),
        (b'{"type":"view","event_id":"p","user_id":"p","item_id":"i","event_time_ms":"soon"}', "invalid_field"),
        (b'{"type":"view","event_id":"p","user_id":' + b"[" * 5_000, "too_deep"),
        (b'{"type":"teleport","event_id":"p","user_id":"p","event_time_ms":1}', "undeclared_type"),
        (b'{"type":"view","schema_version":9}', "undeclared_version"),
        (b'{"event_id":"p"}', "missing_type"),
        (b'{"type":"view","event_id":"\\ud800"}', "invalid_json"),
    ]
    worker = await deployed.started()
    messages: list[Message] = []
    for at, event in enumerate(good):
        messages.append(Message(names.events, event["user_id"].encode(), msgspec.json.encode(event)))
        if at % 40 == 20:
            value = poison[(at // 40) % len(poison)][0]
            # In every partition, between good events.
            messages += [Message(names.events, b"p", value, (("h", b"1"),), p) for p in range(deployed.partitions)]
    places = await deployed.publisher.send_many(messages)
    await until_consumed([worker], deployed)

    expected = {place: (message.value) for place, message in zip(places, messages, strict=True) if message.key == b"p"}
    letters = await deployed.dead_letters()
    assert {(one.source_partition, one.source_offset): one.value for one in letters} == {
        (place.partition, place.offset): value for place, value in expected.items()
    }
    reasons = dict(poison)
    for letter in letters:
        assert letter.reason in (reasons[letter.value], "invalid_json"), letter
        assert letter.key == b"p"
        assert letter.headers == (("h", b"1"),)
    answered = {made.trigger_event_id for made in await deployed.lists()}
    assert {event["event_id"] for event in good if event["type"] != "impression"} <= answered
    worker.stop()
    assert_states_follow(await deployed.states(), good)
    assert await deployed.touches() == expected_touches(good)


async def test_late_and_future_events_become_dead_letters_and_what_comes_after_them_counts(
    deployed: Deployment,
) -> None:
    now_ms = int(time.time() * 1_000)

    def view(number: int, time_ms: int) -> dict[str, object]:
        return {
            "type": "view",
            "event_id": f"v{number}",
            "user_id": "u",
            "item_id": f"i{number}",
            "event_time_ms": time_ms,
        }

    events = [
        view(0, now_ms - 2 * DAY_MS),
        view(1, now_ms),
        view(2, now_ms - DAY_MS - 60_000),  # late
        view(3, now_ms - DAY_MS + 3_600_000),  # slightly late: folded
        view(4, now_ms + 3_600_000),  # future
        view(5, now_ms + 1_000),
    ]
    worker = await deployed.started()
    await deployed.send_events(events)
    await until_consumed([worker], deployed)
    letters = await deployed.dead_letters()
    assert [(one.reason, one.value) for one in letters] == [
        ("late", msgspec.json.encode(events[2])),
        ("future", msgspec.json.encode(events[4])),
    ]
    assert [made.trigger_event_id for made in await deployed.lists()] == ["v0", "v1", "v3", "v5"]
    worker.stop()
    state = (await deployed.states())["u"]
    assert state.body.events == 4
    assert state.body.last_event_ms == now_ms + 1_000


async def test_a_header_name_that_is_not_utf8_stops_nothing(deployed: Deployment) -> None:
    """aiokafka's parser raises on such a name, at each fetch again, and the good event before it would be stuck too."""
    names = deployed.names
    events = make_events(30, users=1, items=20)
    user = events[0]["user_id"].encode()
    home = partition_of(user, deployed.partitions)
    await deployed.send_events(events[:10])
    for number in (10, 11):
        await send_with_header_name(
            deployed.connection, names.events, home, user, msgspec.json.encode(events[number]), b"\xff\xfe\xc3("
        )
    await send_with_header_name(deployed.connection, names.events, home, user, b"no event", b"\xff\xfe\xc3(")
    await send_with_header_name(deployed.connection, names.items, 0, b"i1", b'{"item_id":"i1"}', b"\xc3(")
    await deployed.send_events(events[12:])
    worker = await deployed.started()
    await until_consumed([worker], deployed, seconds=30)
    [letter] = await deployed.dead_letters()
    assert letter.value == b"no event"
    assert letter.headers == (("\\xff\\xfe\\xc3(", b"x"),)
    worker.stop()
    assert_states_follow(await deployed.states(), events)
