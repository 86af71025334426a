"""Hypothesis strategies for messages and for the bytes that strangers send instead of them."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from models.domain import events as contract
from models.domain.batch import Incoming
from models.domain.events import Event, Forget, Hide, Impression, Interaction, Item, Request, Search

# Any text that UTF-8 can carry, in any language, control characters and emoji included; the short end is drawn most.
ids = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=contract.MAX_ID_LENGTH)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
times_ms = st.integers(0, contract.MAX_EVENT_TIME_MS)
values = st.floats(-contract.MAX_VALUE, contract.MAX_VALUE)
positions = st.integers(1, 100_000)
kinds = st.sampled_from(sorted(contract.INTERACTION_STRENGTHS))


def _or_none(strategy: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.none() | strategy


_common = {"event_id": ids, "user_id": ids, "event_time_ms": times_ms}
_place = {"session_id": _or_none(ids), "surface": _or_none(ids)}
_shown = {**_place, "request_id": _or_none(ids), "recommendation_id": _or_none(ids)}

interactions: SearchStrategy[Interaction] = st.builds(
    Interaction,
    type=kinds,
    item_id=ids,
    value=_or_none(values),
    text=_or_none(texts),
    position=_or_none(positions),
    **_common,
    **_shown,
)
searches: SearchStrategy[Search] = st.builds(
    Search, type=st.just("search"), text=texts.filter(bool), **_common, **_place
)
hides: SearchStrategy[Hide] = st.builds(
    Hide, type=st.just("hide"), item_id=ids, position=_or_none(positions), **_common, **_shown
)
impressions: SearchStrategy[Impression] = st.builds(
    Impression,
    type=st.just("impression"),
    item_ids=st.lists(ids, min_size=1, max_size=20).map(tuple),
    **_common,
    **_shown,
)
forgets: SearchStrategy[Forget] = st.builds(Forget, type=st.just("forget"), **_common)
events: SearchStrategy[Event] = st.one_of(interactions, searches, hides, impressions, forgets)

items: SearchStrategy[Item] = st.builds(
    Item,
    item_id=ids,
    title=texts,
    text=texts,
    categories=st.lists(ids, max_size=5).map(tuple),
    price=_or_none(st.floats(0, 1e12)),
    available=st.booleans(),
    attributes=st.dictionaries(ids, texts | values | st.booleans() | st.none(), max_size=5),
    vector=_or_none(st.lists(values, min_size=1, max_size=8).map(tuple)),
)
requests: SearchStrategy[Request] = st.builds(
    Request,
    request_id=ids,
    user_id=ids,
    k=st.integers(1, contract.MAX_LIST_LENGTH),
    text=_or_none(texts),
    event_time_ms=_or_none(times_ms),
)

# Valid JSON of any shape; Python's encoder also writes NaN, Infinity and escaped lone surrogates, which JSON forbids.
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**301)
    | st.floats()
    | st.text(max_size=20)
    | st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3)
)
json_values: SearchStrategy[Any] = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)

_FIELDS = sorted(
    {name for model in (Interaction, Search, Hide, Impression, Item, Request) for name in model.__struct_fields__}
)


@st.composite
def almost_messages(draw: st.DrawFn) -> bytes:
    """A message with some fields replaced by, or joined by, JSON of any kind."""
    message = json.loads(contract.EventContract().encode(draw(events | items | requests)))
    for name in draw(st.lists(st.sampled_from([*_FIELDS, "unknown"]), min_size=1, max_size=3)):
        message[name] = draw(json_values)
    return json.dumps(message, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def damaged_messages(draw: st.DrawFn) -> bytes:
    """The bytes of a message, cut short, or with bytes changed, repeated or put in."""
    data = bytearray(contract.EventContract().encode(draw(events | items | requests)))
    at = draw(st.integers(0, len(data) - 1))
    damage = draw(st.sampled_from(("cut", "change", "insert", "repeat")))
    if damage == "cut":
        return bytes(data[:at])
    noise = draw(st.binary(min_size=1, max_size=4) | st.sampled_from((b"\x00", b"\xed\xa0\x80", b"\xff", b"\\ud800")))
    if damage == "change":
        data[at : at + len(noise)] = noise
    elif damage == "insert":
        data[at:at] = noise
    else:
        data += data[at:]
    return bytes(data)


anything: SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    almost_messages(),
    damaged_messages(),
)

# Logs: what a pipeline gets, over so few users and items that they meet.
LOG_START_MS = 1_700_000_000_000


@st.composite
def event_logs(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 80) -> list[Incoming]:
    """Records of one log partition: mostly interactions, stamps mostly rising, now and then an event id sent twice."""
    # A seed and not a draw for each field: a log costs a tenth, and the length still shrinks.
    random = Random(draw(st.integers(0, 2**32)))
    size = draw(st.integers(min_size, max_size))
    log, now_ms = [], LOG_START_MS
    for offset in range(size):
        now_ms += random.choice((0, 0, 1_000, 60_000, 3_600_000))
        late = random.choice((0,) * 9 + (5_000, 200_000_000))
        event_id = f"e{random.randrange(size)}" if random.random() < 0.1 else f"e{offset}"
        common = {"event_id": event_id, "user_id": random.choice(("ann", "bob", "cid", "dee"))}
        time_ms, item = now_ms - late, f"i{random.randrange(40)}"
        event: Event | Request
        match random.choice(("interaction",) * 12 + ("search", "hide", "impression", "forget", "request")):
            case "search":
                event = Search(
                    type="search", text=random.choice(("red shoes", "rain")), event_time_ms=time_ms, **common
                )
            case "hide":
                event = Hide(type="hide", item_id=item, event_time_ms=time_ms, **common)
            case "impression":
                event = Impression(type="impression", item_ids=(item,), event_time_ms=time_ms, **common)
            case "forget":
                event = Forget(type="forget", event_time_ms=time_ms, **common)
            case "request":
                event = Request(
                    request_id=event_id,
                    user_id=common["user_id"],
                    k=random.choice((3, 10, 20)),
                    text=random.choice((None, "rain")),
                    event_time_ms=random.choice((None, time_ms)),
                )
            case _:
                event = Interaction(
                    type=random.choice(("view", "click", "purchase", "rating", "review")),
                    item_id=item,
                    value=random.choice((None, 1.0, 3.0, 5.0)),
                    text=random.choice((None, None, None, "good words")),
                    event_time_ms=time_ms,
                    **common,
                )
        log.append(Incoming(event, "events@1/0", offset))
    return log
