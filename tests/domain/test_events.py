"""The event contract: what is an event, what is refused and how the refusal is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.domain.errors import EventDecodeError
from models.domain.events import (
    MAX_ATTRIBUTE_LENGTH,
    MAX_ATTRIBUTES,
    MAX_CATEGORIES,
    MAX_EVENT_TIME_MS,
    MAX_ID_LENGTH,
    MAX_IMPRESSION_ITEMS,
    MAX_LIST_LENGTH,
    MAX_TEXT_LENGTH,
    MAX_TITLE_LENGTH,
    MAX_VECTOR_LENGTH,
    Event,
    EventContract,
    Interaction,
    Item,
    Recommendation,
    RecommendedItem,
    Request,
    Search,
    declared_types,
)
from tests import strategies

CONTRACT = EventContract()
RATING = {
    "type": "rating",
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "event_time_ms": 1_700_000_000_000,
    "value": 4.5,
}


def encoded(message: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**message, **changes}).encode()


def without(message: dict[str, Any], name: str) -> bytes:
    return json.dumps({key: value for key, value in message.items() if key != name}).encode()


def refusal(decode: Callable[[bytes], object], data: bytes) -> EventDecodeError:
    with pytest.raises(EventDecodeError) as caught:
        decode(data)
    return caught.value


@given(strategies.events)
def test_an_event_survives_encoding(event: Event) -> None:
    assert CONTRACT.decode_event(CONTRACT.encode(event)) == event


@given(strategies.items)
def test_an_item_survives_encoding(item: Item) -> None:
    assert CONTRACT.decode_item(CONTRACT.encode(item)) == item


@given(strategies.requests)
def test_a_request_survives_encoding(request: Request) -> None:
    assert CONTRACT.decode_request(CONTRACT.encode(request)) == request


@given(strategies.anything)
def test_any_bytes_are_a_message_that_can_be_encoded_again_or_a_named_refusal(data: bytes) -> None:
    for decode in (CONTRACT.decode_event, CONTRACT.decode_item, CONTRACT.decode_request):
        try:
            message = decode(data)
        except EventDecodeError as error:
            assert error.reason
            assert error.detail
            str(error).encode()
        else:
            assert decode(CONTRACT.encode(message)) == message


@given(st.integers(0, 1_200), st.sampled_from(("type", "schema_version", "unknown", "item_id")))
def test_nesting_of_any_depth_never_escapes_as_another_error(depth: int, name: str) -> None:
    nested = b"[" * depth + b"]" * depth if depth else b"0"
    data = without(RATING, name)[:-1] + b',"' + name.encode() + b'":' + nested + b"}"
    try:
        CONTRACT.decode_event(data)
    except EventDecodeError as error:
        assert error.reason in {"too_deep", "undeclared_type", "undeclared_version", "invalid_field", "missing_type"}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00", id="a null byte"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"1e999", id="a number out of range"),
        pytest.param(b'"rating"', id="a string"),
        pytest.param(b"[" * 1_000_000, id="a million brackets"),
        pytest.param(b"\xef\xbb\xbf" + encoded(RATING), id="a byte order mark"),
        pytest.param(encoded(RATING)[:-1], id="a truncated object"),
        pytest.param(encoded(RATING) + b"\x00", id="a null byte behind"),
        pytest.param(encoded(RATING).replace(b"u1", b"\xff"), id="invalid UTF-8"),
        pytest.param(encoded(RATING).replace(b"u1", b"\xc0\x80"), id="an overlong null"),
        pytest.param(encoded(RATING).replace(b"u1", b"\xed\xa0\x80"), id="a raw lone surrogate"),
        pytest.param(encoded(RATING, user_id="\ud800"), id="an escaped lone high surrogate"),
        pytest.param(encoded(RATING, user_id="\udc00"), id="an escaped lone low surrogate"),
        pytest.param(encoded(RATING).replace(b"u1", b"a\x00b"), id="a raw null byte in an id"),
        pytest.param(encoded(RATING, value=float("nan")), id="NaN"),
        pytest.param(encoded(RATING, value=float("inf")), id="Infinity"),
        pytest.param(encoded(RATING).replace(b"4.5", b"1e400"), id="a value that overflows"),
        pytest.param(encoded(RATING).replace(b"4.5", b"9" * 5_000), id="a value of 5,000 digits"),
        pytest.param(encoded(RATING).replace(b'"e1"', b"9" * 5_000), id="an id of 5,000 digits"),
        pytest.param(encoded(RATING).replace(b'"rating"', b"9" * 5_000), id="a type of 5,000 digits"),
        pytest.param(
            encoded(RATING)[:-1] + b',"schema_version":' + b"9" * 5_000 + b"}", id="a version of 5,000 digits"
        ),
        pytest.param(encoded(RATING, user_id=True), id="a bool as id"),
        pytest.param(encoded(RATING, user_id=1.0), id="a float as id"),
        pytest.param(encoded(RATING, user_id=None), id="null as id"),
        pytest.param(encoded(RATING, user_id=""), id="an empty id"),
        pytest.param(encoded(RATING, value=True), id="a bool as value"),
        pytest.param(encoded(RATING, value="4.5"), id="text as value"),
        pytest.param(encoded(RATING, event_time_ms=True), id="a bool as time"),
        pytest.param(encoded(RATING, event_time_ms="2023-11-14"), id="text as time"),
        pytest.param(encoded(RATING, event_time_ms=-1), id="a time before 1970"),
        pytest.param(encoded(RATING, event_time_ms=1_700_000_000_000_000), id="microseconds as milliseconds"),
        pytest.param(encoded(RATING, type=["rating"]), id="a list as type"),
        pytest.param(encoded(RATING, type={"a": 1}), id="an object as type"),
    ],
)
def test_what_is_no_event_is_refused_by_name(data: bytes) -> None:
    error = refusal(CONTRACT.decode_event, data)
    assert error.reason in {"invalid_json", "invalid_field", "undeclared_type", "undeclared_version", "too_deep"}
    assert error.detail


def test_ids_may_be_integers_and_become_their_decimal_text() -> None:
    event = CONTRACT.decode_event(encoded(RATING, event_id=1, user_id=-2, item_id=2**63, session_id=4))
    assert isinstance(event, Interaction)
    assert (event.event_id, event.user_id, event.item_id, event.session_id) == ("1", "-2", "9223372036854775808", "4")


def test_an_impressions_items_may_be_integers_too() -> None:
    shown = {**RATING, "type": "impression", "item_ids": [1, "b", 3]}
    assert CONTRACT.decode_event(encoded(shown)).item_ids == ("1", "b", "3")  # type: ignore[union-attr]


def test_unknown_fields_are_ignored_and_the_last_of_two_equal_fields_counts() -> None:
    data = encoded(RATING, unknown={"a": [1]})[:-1] + b',"user_id":"u2"}'
    assert CONTRACT.decode_event(data).user_id == "u2"


def test_a_search_has_text_and_no_item() -> None:
    event = CONTRACT.decode_event(encoded({**RATING, "type": "search", "text": "boots"}))
    assert isinstance(event, Search)
    assert event.text == "boots"


@pytest.mark.parametrize("name", ["type", "event_id", "user_id", "item_id", "event_time_ms"])
def test_a_missing_field_is_named(name: str) -> None:
    error = refusal(CONTRACT.decode_event, without(RATING, name))
    assert f"`{name}`" in error.detail
    assert error.reason == ("missing_type" if name == "type" else "invalid_field")


def test_an_undeclared_type_is_named_with_the_declared_ones() -> None:
    error = refusal(CONTRACT.decode_event, encoded(RATING, type="stare"))
    assert error.reason == "undeclared_type"
    assert "'stare'" in error.detail
    assert "purchase" in error.detail


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None])
@pytest.mark.parametrize("decode", [CONTRACT.decode_event, CONTRACT.decode_item, CONTRACT.decode_request])
def test_an_undeclared_version_is_refused_before_any_field(decode: Callable[[bytes], object], version: object) -> None:
    message = {**RATING, "request_id": "r1", "schema_version": version, "event_time_ms": "nonsense"}
    assert refusal(decode, encoded(message)).reason == "undeclared_version"


@pytest.mark.parametrize(
    ("changes", "field", "limit"),
    [
        ({"user_id": "x" * (MAX_ID_LENGTH + 1)}, "user_id", MAX_ID_LENGTH),
        ({"user_id": 10**MAX_ID_LENGTH}, "user_id", MAX_ID_LENGTH),
        ({"surface": "x" * (MAX_ID_LENGTH + 1)}, "surface", MAX_ID_LENGTH),
        ({"text": "x" * (MAX_TEXT_LENGTH + 1)}, "text", MAX_TEXT_LENGTH),
        ({"event_time_ms": MAX_EVENT_TIME_MS + 1}, "event_time_ms", MAX_EVENT_TIME_MS),
        ({"value": 1e6 + 1}, "value", 1_000_000),
        ({"position": 0}, "position", 1),
        ({"type": "impression", "item_ids": ["a"] * (MAX_IMPRESSION_ITEMS + 1)}, "item_ids", MAX_IMPRESSION_ITEMS),
        ({"type": "impression", "item_ids": []}, "item_ids", 1),
    ],
)
def test_an_events_limit_is_named_with_its_field(changes: dict[str, Any], field: str, limit: int) -> None:
    error = refusal(CONTRACT.decode_event, encoded(RATING, **changes))
    assert error.reason == "invalid_field"
    assert f"`{field}`" in error.detail
    assert str(limit) in error.detail


@pytest.mark.parametrize(
    ("changes", "field", "limit"),
    [
        ({"title": "x" * (MAX_TITLE_LENGTH + 1)}, "title", MAX_TITLE_LENGTH),
        ({"text": "x" * (MAX_TEXT_LENGTH + 1)}, "text", MAX_TEXT_LENGTH),
        ({"categories": ["a"] * (MAX_CATEGORIES + 1)}, "categories", MAX_CATEGORIES),
        ({"categories": ["x" * (MAX_ID_LENGTH + 1)]}, "categories", MAX_ID_LENGTH),
        ({"attributes": {"a": "x" * (MAX_ATTRIBUTE_LENGTH + 1)}}, "attributes", MAX_ATTRIBUTE_LENGTH),
        ({"attributes": {str(n): n for n in range(MAX_ATTRIBUTES + 1)}}, "attributes", MAX_ATTRIBUTES),
        ({"price": -0.01}, "price", 0),
        ({"vector": [0.0] * (MAX_VECTOR_LENGTH + 1)}, "vector", MAX_VECTOR_LENGTH),
        # Finite as a double, infinite as the float32 that it is stored as.
        ({"vector": [1e300]}, "vector", 1_000_000),
    ],
)
def test_an_items_limit_is_named_with_its_field(changes: dict[str, Any], field: str, limit: int) -> None:
    error = refusal(CONTRACT.decode_item, encoded({"item_id": "i1"}, **changes))
    assert f"`{field}" in error.detail
    assert str(limit) in error.detail


@pytest.mark.parametrize("k", [0, MAX_LIST_LENGTH + 1, True, 2.5, "10"])
def test_a_request_for_an_impossible_length_is_refused(k: object) -> None:
    assert "`k`" in refusal(CONTRACT.decode_request, encoded({"request_id": "r", "user_id": "u"}, k=k)).detail


def test_settings_may_add_a_kind_and_change_a_strength() -> None:
    contract = EventContract({"tip": 4.0, "view": 0.5})
    assert contract.decode_event(encoded(RATING, type="tip")).type == "tip"
    assert contract.strengths["view"] == 0.5
    assert contract.strengths["purchase"] == CONTRACT.strengths["purchase"]
    assert "tip" in declared_types(contract)


@pytest.mark.parametrize("reserved", ["search", "hide", "impression", "forget"])
def test_a_reserved_type_cannot_become_an_interaction(reserved: str) -> None:
    with pytest.raises(ValueError, match=reserved):
        EventContract({reserved: 1.0})


def test_a_recommendation_is_read_back_as_published() -> None:
    item = RecommendedItem(item_id="i1", rank=1, score=0.5, source="index", reason="because you rated X 5")
    published = Recommendation(
        recommendation_id="r1",
        sequence=1,
        user_id="u1",
        trigger_event_id="e1",
        request_id=None,
        model_version="bootstrap-1",
        event_time_ms=1,
        generated_at_ms=2,
        items=(item,),
    )
    assert CONTRACT.decode_recommendation(CONTRACT.encode(published)) == published


SCHEMAS = CONTRACT.json_schema()["messages"]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_each_schema_is_a_json_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


@given(strategies.events)
def test_every_event_fits_the_schema_of_its_type(event: Event) -> None:
    name = "interaction" if isinstance(event, Interaction) else event.type
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(CONTRACT.encode(event)))


@given(strategies.items, strategies.requests)
def test_items_and_requests_fit_their_schemas(item: Item, request: Request) -> None:
    jsonschema.Draft202012Validator(SCHEMAS["item"]).validate(json.loads(CONTRACT.encode(item)))
    jsonschema.Draft202012Validator(SCHEMAS["request"]).validate(json.loads(CONTRACT.encode(request)))


@pytest.mark.parametrize(
    "changes",
    [{"user_id": ""}, {"user_id": True}, {"value": "4"}, {"type": "stare"}, {"schema_version": 2}, {"position": 0}],
)
def test_schema_and_decoder_refuse_the_same(changes: dict[str, Any]) -> None:
    refusal(CONTRACT.decode_event, encoded(RATING, **changes))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMAS["interaction"]).validate({**RATING, **changes})


def test_declared_kinds_of_the_settings_are_in_the_schema() -> None:
    schema = EventContract({"tip": 4.0}).json_schema()["messages"]["interaction"]
    jsonschema.Draft202012Validator(schema).validate({**RATING, "type": "tip"})
