"""The messages between a socket client and the store process: msgpack in frames of a length and a body."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec
import numpy as np

from models.domain.errors import ItemIndexError, StoreError, UserStoreError
from models.domain.ports import F32, ItemRecord, ItemText, UserRecord

# Both sides are one installation on one machine; the number refuses an old worker beside a new store.
PROTOCOL = 3

# 4,096 users of 7 kB; more than that in one frame is a client that speaks something else.
MAX_FRAME_BYTES = 1 << 28

_LENGTH = struct.Struct("<I")


class Users(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Names a user collection as it was opened."""

    generation: str
    state_size: int
    dimension: int


class Items(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Names an item collection as it was opened."""

    version: str
    dimension: int
    text_dimension: int


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One call. `body` is the msgpack of what the method takes."""

    id: int
    method: str
    collection: Users | Items | None
    body: msgspec.Raw


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the call of that id: a body, or the kind of error with its text."""

    id: int
    body: msgspec.Raw
    error: str = ""
    message: str = ""
    retryable: bool = True


class PackedUser(msgspec.Struct, frozen=True, array_like=True):
    """A `UserRecord` whose arrays are their bytes, which costs a copy and no object for a float."""

    user_key: str
    revision: int
    embedding: bytes
    state: bytes
    body: bytes


class PackedItem(msgspec.Struct, frozen=True, array_like=True):
    """An `ItemRecord` whose arrays are their bytes."""

    item_id: str
    vector: bytes
    content_hash: str
    available: bool
    categories: tuple[str, ...]
    price: float | None
    text: bytes | None


class PackedText(msgspec.Struct, frozen=True, array_like=True):
    """An `ItemText` whose embedding is its bytes."""

    content_hash: str
    embedding: bytes


class Query(msgspec.Struct, frozen=True, array_like=True):
    """A search: B vectors of the collection's dimension, one after the other."""

    vectors: bytes
    dimension: int
    k: int


class OpenUsers(msgspec.Struct, frozen=True, array_like=True):
    """Opens a user collection; no generation asks for the live one."""

    state_size: int
    dimension: int
    generation: str | None


class OpenScan(msgspec.Struct, frozen=True, array_like=True):
    """Starts a scan; its pages are then fetched by its number."""

    batch_size: int


_encoder = msgspec.msgpack.Encoder()
_errors: dict[str, type[StoreError]] = {kind.__name__: kind for kind in (StoreError, UserStoreError, ItemIndexError)}


def encode(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


def decode(body: msgspec.Raw, kind: Any) -> Any:
    return msgspec.msgpack.decode(body, type=kind)


def pack_user(record: UserRecord) -> PackedUser:
    return PackedUser(record.user_key, record.revision, _bytes(record.embedding), _bytes(record.state), record.body)


def unpack_user(packed: PackedUser) -> UserRecord:
    return UserRecord(
        user_key=packed.user_key,
        revision=packed.revision,
        embedding=_array(packed.embedding),
        state=_array(packed.state),
        body=packed.body,
    )


def pack_item(record: ItemRecord) -> PackedItem:
    return PackedItem(
        record.item_id,
        _bytes(record.vector),
        record.content_hash,
        record.available,
        record.categories,
        record.price,
        None if record.text is None else _bytes(record.text),
    )


def unpack_item(packed: PackedItem) -> ItemRecord:
    return ItemRecord(
        item_id=packed.item_id,
        vector=_array(packed.vector),
        content_hash=packed.content_hash,
        available=packed.available,
        categories=packed.categories,
        price=packed.price,
        text=None if packed.text is None else _array(packed.text),
    )


def pack_text(kept: ItemText) -> PackedText:
    return PackedText(kept.content_hash, _bytes(kept.embedding))


def unpack_text(packed: PackedText) -> ItemText:
    return ItemText(content_hash=packed.content_hash, embedding=_array(packed.embedding))


def pack_query(vectors: F32, k: int) -> Query:
    return Query(_bytes(vectors), vectors.shape[1], k)


def unpack_query(query: Query) -> F32:
    return _array(query.vectors).reshape(-1, query.dimension)


def error_reply(request_id: int, error: StoreError) -> Reply:
    kind = type(error).__name__ if type(error).__name__ in _errors else StoreError.__name__
    return Reply(request_id, encode(None), kind, str(error), error.retryable)


def error_of(reply: Reply) -> StoreError:
    return _errors.get(reply.error, StoreError)(reply.message, retryable=reply.retryable)


def frame(message: Request | Reply) -> bytes:
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise StoreError(f"a message of {len(body)} bytes exceeds {MAX_FRAME_BYTES}", retryable=False)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame's body; None at the end of the stream. Raises: StoreError for a length no peer of ours sends."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise StoreError(f"a frame of {length} bytes: the peer speaks another protocol", retryable=False)
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _bytes(array: F32) -> bytes:
    return np.ascontiguousarray(array, dtype="<f4").tobytes()


def _array(data: bytes) -> F32:
    return np.frombuffer(data, "<f4").astype(np.float32)
