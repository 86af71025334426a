"""The event contract: what applications may publish, decoded and checked in one place, and what they get back.

Every limit carries its argument. Ids are strings; an integer is taken as its decimal text, since many producers send
one. Unknown fields are ignored. Whatever is not an event raises `EventDecodeError`, for any bytes at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct

from models.domain.errors import EventDecodeError

SCHEMA_VERSION = 1

# An id is a key in Kafka, a payload in Qdrant, a string in every list: 256 characters hold a URL-like id, no document.
MAX_ID_LENGTH = 256
# MiniLM reads 256 tokens; 20,000 characters are a very long review and bound what one message costs the tokenizer.
MAX_TEXT_LENGTH = 20_000
# Of an event's text the encoder reads the opening, some 70 tokens: a review of 256 takes 64 ms of CPU, this a quarter.
# Items are read up to the model's own limit, once.
MAX_ENCODED_CHARACTERS = 320
MAX_TITLE_LENGTH = 1_000
MAX_CATEGORIES = 64
MAX_ATTRIBUTES = 64
# An attribute is a brand, a colour, a size; what is longer is text and belongs into `text`.
MAX_ATTRIBUTE_LENGTH = 1_000
# A vector of the application's own; the largest text embeddings in use have 4,096 dimensions.
MAX_VECTOR_LENGTH = 4_096
# A screen or a carousel; a longer impression is several.
MAX_IMPRESSION_ITEMS = 200
# A list longer than this is a feed page, asked for page by page.
MAX_LIST_LENGTH = 100
DEFAULT_LIST_LENGTH = 10
# 2100-01-01: a stamp beyond it is microseconds or nanoseconds sent as milliseconds.
MAX_EVENT_TIME_MS = 4_102_444_800_000
# The largest magnitude that a rating or a vector's element can sensibly have; keeps every later float32 sum finite.
MAX_VALUE = 1_000_000.0

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]
IdLike = Id | int
OptionalId = Id | int | None
TimeMs = Annotated[int, Meta(ge=0, le=MAX_EVENT_TIME_MS)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
NonEmptyText = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_LENGTH)]
Value = Annotated[float, Meta(ge=-MAX_VALUE, le=MAX_VALUE)]
AttributeText = Annotated[str, Meta(max_length=MAX_ATTRIBUTE_LENGTH)]
Position = Annotated[int, Meta(ge=1, le=100_000)]
Version = Annotated[int, Meta(ge=1, le=SCHEMA_VERSION)]

INTERACTION_STRENGTHS: Mapping[str, float] = {
    # How strongly a kind speaks for the item. Views are one unit; a purchase is the strongest thing a user can say.
    "view": 1.0,
    "click": 1.0,
    "play": 1.5,
    "follow": 1.5,
    "comment": 2.0,
    "like": 2.0,
    "bookmark": 2.0,
    "share": 2.5,
    "add_to_cart": 2.5,
    "review": 2.0,
    "rating": 2.0,
    "purchase": 3.0,
}
SEARCH, HIDE, IMPRESSION, FORGET = "search", "hide", "impression", "forget"
RESERVED_TYPES = frozenset({SEARCH, HIDE, IMPRESSION, FORGET})


class Interaction(Struct, frozen=True, kw_only=True):
    """A user acted on an item: click, view, purchase, rating, review, ... (`type` names the kind)."""

    type: Id
    event_id: IdLike
    user_id: IdLike
    item_id: IdLike
    event_time_ms: TimeMs
    value: Value | None = None
    text: Text | None = None
    session_id: OptionalId = None
    surface: OptionalId = None
    request_id: OptionalId = None
    recommendation_id: OptionalId = None
    position: Position | None = None
    schema_version: Version = SCHEMA_VERSION


class Search(Struct, frozen=True, kw_only=True):
    """A user asked for something in words."""

    type: Id
    event_id: IdLike
    user_id: IdLike
    event_time_ms: TimeMs
    text: NonEmptyText
    session_id: OptionalId = None
    surface: OptionalId = None
    schema_version: Version = SCHEMA_VERSION


class Hide(Struct, frozen=True, kw_only=True):
    """A user does not want to see an item again."""

    type: Id
    event_id: IdLike
    user_id: IdLike
    item_id: IdLike
    event_time_ms: TimeMs
    session_id: OptionalId = None
    surface: OptionalId = None
    request_id: OptionalId = None
    recommendation_id: OptionalId = None
    position: Position | None = None
    schema_version: Version = SCHEMA_VERSION


class Impression(Struct, frozen=True, kw_only=True):
    """Items were shown to a user, in this order."""

    type: Id
    event_id: IdLike
    user_id: IdLike
    event_time_ms: TimeMs
    item_ids: Annotated[tuple[IdLike, ...], Meta(min_length=1, max_length=MAX_IMPRESSION_ITEMS)]
    session_id: OptionalId = None
    surface: OptionalId = None
    request_id: OptionalId = None
    recommendation_id: OptionalId = None
    schema_version: Version = SCHEMA_VERSION


class Forget(Struct, frozen=True, kw_only=True):
    """A user asks to be forgotten: everything dated at or before this event goes."""

    type: Id
    event_id: IdLike
    user_id: IdLike
    event_time_ms: TimeMs
    schema_version: Version = SCHEMA_VERSION


Event = Interaction | Search | Hide | Impression | Forget


class Item(Struct, frozen=True, kw_only=True):
    """A catalogue item; a later message with the same id replaces it, a null value removes it."""

    item_id: IdLike
    title: Annotated[str, Meta(max_length=MAX_TITLE_LENGTH)] = ""
    text: Text = ""
    categories: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_ID_LENGTH)], ...], Meta(max_length=MAX_CATEGORIES)
    ] = ()
    price: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    available: bool = True
    attributes: Annotated[
        dict[Annotated[str, Meta(max_length=MAX_ID_LENGTH)], AttributeText | float | bool | None],
        Meta(max_length=MAX_ATTRIBUTES),
    ] = {}
    vector: Annotated[tuple[Value, ...], Meta(min_length=1, max_length=MAX_VECTOR_LENGTH)] | None = None
    schema_version: Version = SCHEMA_VERSION


class Request(Struct, frozen=True, kw_only=True):
    """A list on demand; `text` is an optional query."""

    request_id: IdLike
    user_id: IdLike
    k: Annotated[int, Meta(ge=1, le=MAX_LIST_LENGTH)] = DEFAULT_LIST_LENGTH
    text: Text | None = None
    event_time_ms: TimeMs | None = None
    schema_version: Version = SCHEMA_VERSION


class RecommendedItem(Struct, frozen=True, gc=False):
    """One place of a list. `rank` is 1-based; `source` is the candidate source that proposed the item most strongly."""

    item_id: str
    rank: int
    score: float
    source: str
    reason: str


class Recommendation(Struct, frozen=True, kw_only=True):
    """A ranked list for one user, as published on the `recommendations` topic."""

    recommendation_id: str
    sequence: int
    user_id: str
    trigger_event_id: str | None
    request_id: str | None
    model_version: str
    event_time_ms: int
    generated_at_ms: int
    items: tuple[RecommendedItem, ...]
    schema_version: int = SCHEMA_VERSION


T = TypeVar("T", bound=Struct)


class _Envelope(Struct):
    type: Any = UNSET
    schema_version: Any = SCHEMA_VERSION


class EventContract:
    """Decodes messages. Holds the declared interaction kinds with their strengths, so that settings can add to them.

    Args:
        strengths: kind -> strength, added to (or replacing) the built-in ones.
    Raises: EventDecodeError from every `decode_*` for any bytes that are not a valid message.
    """

    def __init__(self, strengths: Mapping[str, float] | None = None) -> None:
        merged = {**INTERACTION_STRENGTHS, **(strengths or {})}
        clash = RESERVED_TYPES & merged.keys()
        if clash:
            raise ValueError(f"event types {sorted(clash)} are reserved and cannot be interaction kinds")
        self.strengths: Mapping[str, float] = merged
        self._envelope = msgspec.json.Decoder(_Envelope)
        interaction: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Interaction)
        self._interaction: msgspec.json.Decoder[Interaction] = interaction
        self._by_type: dict[str, msgspec.json.Decoder[Any]] = {
            SEARCH: msgspec.json.Decoder(Search),
            HIDE: msgspec.json.Decoder(Hide),
            IMPRESSION: msgspec.json.Decoder(Impression),
            FORGET: msgspec.json.Decoder(Forget),
            **dict.fromkeys(merged, interaction),
        }
        self._item = msgspec.json.Decoder(Item)
        self._request = msgspec.json.Decoder(Request)
        self._recommendation = msgspec.json.Decoder(Recommendation)
        self._encoder = msgspec.json.Encoder()

    def decode_event(self, data: bytes) -> Event:
        # Nearly every event is an interaction: one pass over its bytes instead of two. Whatever this pass refuses, the
        # careful way below judges and names.
        try:
            interaction = self._interaction.decode(data)
        except Exception:
            return self._decode_by_type(data)
        if interaction.type in self.strengths:
            return _with_text_ids(interaction)
        return self._decode_by_type(data)

    def _decode_by_type(self, data: bytes) -> Event:
        envelope = _decode(self._envelope, data)
        if envelope.type is UNSET:
            raise EventDecodeError("missing_type", "the field `type` is missing")
        _check_version(envelope.schema_version)
        decoder = self._by_type.get(envelope.type) if isinstance(envelope.type, str) else None
        if decoder is None:
            declared = ", ".join(sorted(self._by_type))
            raise EventDecodeError(
                "undeclared_type", f"`type` {_shown(envelope.type)} is not declared; declared: {declared}"
            )
        event: Event = _with_text_ids(_decode(decoder, data))
        return event

    def decode_item(self, data: bytes) -> Item:
        _check_version(_decode(self._envelope, data).schema_version)
        item = _with_text_ids(_decode(self._item, data))
        if item.vector is not None and not all(map(math.isfinite, item.vector)):
            raise EventDecodeError("invalid_field", "`vector` holds a number that is not finite")
        return item

    def decode_request(self, data: bytes) -> Request:
        _check_version(_decode(self._envelope, data).schema_version)
        return _with_text_ids(_decode(self._request, data))

    def decode_recommendation(self, data: bytes) -> Recommendation:
        decoded: Recommendation = _decode(self._recommendation, data)
        return decoded

    def encode(self, message: Struct) -> bytes:
        return self._encoder.encode(message)

    def json_schema(self) -> dict[str, Any]:
        """JSON Schemas (2020-12) of every message that applications send or receive, with the declared kinds."""
        schemas: dict[str, Any] = {}
        for name, model in {
            "interaction": Interaction,
            SEARCH: Search,
            HIDE: Hide,
            IMPRESSION: Impression,
            FORGET: Forget,
            "item": Item,
            "request": Request,
            "recommendation": Recommendation,
        }.items():
            schema = msgspec.json.schema(model)
            types = sorted(self.strengths) if model is Interaction else [name]
            properties = schema["$defs"][model.__name__]["properties"]
            if "type" in properties:
                properties["type"] = {"enum": types}
            schemas[name] = schema
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "streamrec messages",
            "schema_version": SCHEMA_VERSION,
            "messages": schemas,
        }


_ID_FIELDS = ("event_id", "user_id", "item_id", "session_id", "surface", "request_id", "recommendation_id")
_ID_FIELDS_OF: Mapping[type, tuple[str, ...]] = {
    model: tuple(name for name in _ID_FIELDS if name in model.__struct_fields__)
    for model in (Interaction, Search, Hide, Impression, Forget, Item, Request)
}


def _decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise EventDecodeError("invalid_field", _named(str(error))) from error
    except RecursionError as error:
        raise EventDecodeError("too_deep", "the JSON is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeError, ValueError, OverflowError, TypeError) as error:
        raise EventDecodeError("invalid_json", str(error)[:300]) from error


def _named(message: str) -> str:
    # msgspec says "... - at `$.user_id`"; the path is the field's name as a producer knows it.
    return message.replace("`$.", "`").replace("at `$`", "at the message itself")[:300]


def _check_version(version: object) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise EventDecodeError(
            "undeclared_version", f"`schema_version` {_shown(version)} is not declared; declared: 1 to {SCHEMA_VERSION}"
        )


def _shown(value: object) -> str:
    # Printing what a stranger nested may itself recurse too deeply; only short plain values are shown.
    if isinstance(value, str):
        return repr(value[:64])
    return repr(value) if isinstance(value, int | float | bool | None) else f"of type {type(value).__name__}"


def _with_text_ids(message: T) -> T:
    changes: dict[str, Any] = {}
    for name in _ID_FIELDS_OF[type(message)]:
        value = getattr(message, name)
        if type(value) is int:
            changes[name] = _id_text(name, value)
    shown = getattr(message, "item_ids", None)
    if shown is not None:
        changes["item_ids"] = tuple(_id_text("item_ids", i) if type(i) is int else i for i in shown)
    return msgspec.structs.replace(message, **changes) if changes else message


def _id_text(name: str, value: int) -> str:
    try:
        text = str(value)
    except ValueError as error:  # Python refuses to print integers of more than 4,300 digits
        raise EventDecodeError("invalid_field", f"`{name}` is longer than {MAX_ID_LENGTH} characters") from error
    if len(text) > MAX_ID_LENGTH:
        raise EventDecodeError("invalid_field", f"`{name}` is longer than {MAX_ID_LENGTH} characters")
    return text


def declared_types(contract: EventContract) -> Iterable[str]:
    """Every value that the field `type` of an event may have."""
    return sorted({*contract.strengths, *RESERVED_TYPES})


def encoded_text(event: Event | Request) -> str | None:
    """What the text encoder reads of an event or request: a review's opening, a search's words; None without a text."""
    text = getattr(event, "text", None)
    return text[:MAX_ENCODED_CHARACTERS] if text else None
