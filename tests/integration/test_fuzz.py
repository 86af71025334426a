"""Any bytes on any topic: each message becomes an event or a dead letter, bytes whole, and the worker goes on."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec
import pytest

from models.domain.errors import EventDecodeError
from streams.kafka.publisher import Message, Published
from tests.services.deployment import Deployment, assert_states_follow, until_consumed
from tests.services.poison import Fuzzer
from tests.services.streams import START_MS, make_events

MESSAGES = int(os.environ.get("STREAMREC_FUZZ_MESSAGES", "20000"))
# One good event among so many others.
GOOD_EVERY = 20
SEND = 5_000

pytestmark = pytest.mark.integration

EVENTS: list[dict[str, Any]] = [
    {"type": "rating", "event_id": "f1", "user_id": "fz1", "item_id": "x1", "event_time_ms": START_MS, "value": 4.5},
    {"type": "view", "event_id": 7, "user_id": 12, "item_id": 13, "event_time_ms": START_MS, "position": 3},
    {"type": "search", "event_id": "f2", "user_id": "fz2", "event_time_ms": START_MS, "text": "warm boots"},
    {"type": "hide", "event_id": "f3", "user_id": "fz1", "item_id": "x2", "event_time_ms": START_MS},
    {"type": "impression", "event_id": "f4", "user_id": "fz2", "item_ids": ["x1"], "event_time_ms": START_MS},
    {"type": "forget", "event_id": "f5", "user_id": "fz3", "event_time_ms": START_MS},
]
ITEMS: list[dict[str, Any]] = [
    {"item_id": "x1", "title": "A title", "text": "Some text", "categories": ["a", "b"], "price": 3.5},
    {"item_id": 5, "available": False, "attributes": {"size": 3, "colour": "red", "new": True, "old": None}},
    {"item_id": "x3", "vector": [0.5, -0.25]},
]
REQUESTS: list[dict[str, Any]] = [
    {"request_id": "r1", "user_id": "fz1", "k": 5, "text": "boots", "event_time_ms": START_MS},
    {"request_id": 3, "user_id": 4},
]


async def test_any_message_becomes_an_event_or_a_dead_letter_and_the_worker_never_stops(deployed: Deployment) -> None:
    names, contract = deployed.names, deployed.contract
    good = make_events(max(1, MESSAGES // GOOD_EVERY), users=40, items=60, prefix="good-")
    fuzzers = {
        names.events: (Fuzzer(1, EVENTS), contract.decode_event),
        names.items: (Fuzzer(2, ITEMS), contract.decode_item),
        names.requests: (Fuzzer(3, REQUESTS), contract.decode_request),
    }
    topics = [names.events] * 8 + [names.items, names.requests]
    worker = await deployed.started()
    pid = worker.pid

    expected: dict[Published, bytes | None] = {}
    sent: Counter[str] = Counter()
    waiting = iter(good)
    for start in range(0, MESSAGES, SEND):
        messages: list[Message] = []
        for number in range(start, min(start + SEND, MESSAGES)):
            if number % GOOD_EVERY == 0:
                event = next(waiting)
                messages.append(Message(names.events, event["user_id"].encode(), msgspec.json.encode(event)))
                continue
            topic = topics[number % len(topics)]
            fuzzer = fuzzers[topic][0]
            key = fuzzer.key()
            if topic == names.items and key is None:
                key = b"i"  # the broker itself refuses a record without a key on a compacted topic
            messages.append(Message(topic, key, fuzzer.message(), fuzzer.headers()))
        for message, place in zip(messages, await deployed.publisher.send_many(messages), strict=True):
            sent[message.topic] += 1
            try:
                fuzzers[message.topic][1](message.value or b"")
            except EventDecodeError:
                if message.value is not None or message.topic != names.items:  # a null item is a removal
                    expected[place] = message.value
    await until_consumed([worker], deployed, seconds=60 + MESSAGES / 500)
    assert worker.pid == pid
    assert worker.running

    letters = {
        Published(letter.source_topic, letter.source_partition, letter.source_offset): letter
        for letter in await deployed.dead_letters()
    }
    missing = expected.keys() - letters.keys()
    assert not missing, f"{len(missing)} messages are neither events nor dead letters: {sorted(missing)[:5]}"
    for place, letter in letters.items():
        assert letter.reason, place
        assert letter.whole, place
        if place in expected:
            assert letter.value == expected[place], place
    answered = {made.trigger_event_id for made in await deployed.lists()}
    asked = {event["event_id"] for event in good if event["type"] not in ("impression", "forget")}
    assert asked <= answered, f"{len(asked - answered)} good events have no list"
    counted = worker.metric("streamrec_events_total")
    assert counted == sent[names.events] + sent[names.requests]
    worker.stop()
    states = await deployed.states()
    assert_states_follow({u: s for u, s in states.items() if u.startswith("good-")}, good)
    reasons = Counter(letter.reason for letter in letters.values())
    print(f"{MESSAGES} messages {dict(sent)}: {len(letters)} dead letters {dict(reasons)}, {len(asked)} good answered")
