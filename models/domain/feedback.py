"""What a worker says of each interaction for training: what was shown, what could have been, and what happened.

One record an interaction, joined in the worker, so that a trainer needs no other topic but the catalogue's. In
MessagePack, since most of a record are numbers. Pure.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from models.domain.errors import EventDecodeError

FEEDBACK_VERSION = 1

Past = tuple[str, str, float | None, int, float | None]
"""Item id, kind, value, event time in ms, value read from the text: `models.domain.state.Recent`."""


class Shown(msgspec.Struct, frozen=True, array_like=True):
    """A list or impression that the user saw before he acted."""

    named_by: Literal["recommendation", "request", "latest"]
    """How it was found: the interaction's `recommendation_id`, its `request_id`, or as the newest of the user."""
    recommendation_id: str | None
    model_version: str
    """Empty for an impression that the application composed."""
    items: tuple[str, ...]
    """In the order shown, best first."""
    sources: tuple[str, ...]
    """Candidate source of each item; empty where nobody knows."""
    place: int
    """1-based place of the item acted on, 0 = not in it."""


class Candidates(msgspec.Struct, frozen=True, array_like=True):
    """The candidates of the list asked just before the interaction, as the served model and statistics had them."""

    items: tuple[str, ...]
    """K ids."""
    features: bytes
    """`pack_features`; empty where the item chosen is not among them, since no ranker learns from that."""
    chosen: int
    """Place of the item acted on among `items`, from 0; -1 = not among them."""
    reached: tuple[int, ...]
    """1 for each candidate source that came to the item acted on."""
    place: int
    """1-based place that the served ranker gave the item acted on, 0 = not among the published length."""


class Feedback(msgspec.Struct, frozen=True, array_like=True, tag="interaction"):
    """One interaction with what led to it."""

    version: int
    model_version: str
    """Of the model that served the user when the interaction came."""
    event_id: str
    user_id: str
    item_id: str
    kind: str
    value: float | None
    event_time_ms: int
    text: str | None
    """What the text encoder reads of it."""
    read_share: float | None
    first: bool
    """The user's first touch of an item that was known: what lists are made to foresee."""
    history: tuple[Past, ...]
    """Interactions just before, oldest first: as many as a state remembers."""
    shown: Shown | None
    candidates: Candidates | None
    """None where no list was asked (no first touch, or not in the sampled share)."""


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag="forgotten"):
    """A user asked to be forgotten: nothing of him dated at or before it may be learned from."""

    version: int
    user_id: str
    event_time_ms: int


Record = Feedback | Forgotten
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode_feedback(record: Record) -> bytes:
    return _encoder.encode(record)


def decode_feedback(data: bytes) -> Record:
    """Raises: EventDecodeError."""
    try:
        record = _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise EventDecodeError("invalid_feedback", str(error)[:300]) from error
    if record.version != FEEDBACK_VERSION:
        raise EventDecodeError("undeclared_version", f"feedback of version {record.version}")
    return record


_LARGEST = float(np.finfo(np.float16).max)


# Not compressed: zlib's quickest level takes a list to six tenths for 340 us, a third of a list's whole cost.
def pack_features(features: npt.NDArray[np.floating]) -> bytes:
    """
    Args:
        features: [K, F]; half precision keeps three digits of a logarithm. An inner product of huge vectors is cut to
            its range.
    """
    return np.clip(features, -_LARGEST, _LARGEST).astype(np.float16).tobytes()


def unpack_features(data: bytes, candidates: int) -> npt.NDArray[np.float16]:
    """float16[candidates, F], F being what the data holds. Raises: EventDecodeError."""
    if not candidates or len(data) % (2 * candidates):
        raise EventDecodeError("invalid_feedback", f"{len(data)} bytes of features for {candidates} candidates")
    return np.frombuffer(data, np.float16).reshape(candidates, -1)
