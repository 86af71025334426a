"""A user's state: what the pipeline knows of one user, how it is copied, packed for a store and read back.

Knows no statistics and no encoder; the encoder's part is an opaque vector.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from models.domain.catalogue import Catalogue
from models.domain.errors import StateError
from models.domain.habits import NO_HABITS, pack_followed, pack_habits, unpack_habits
from models.domain.ports import UserRecord
from models.domain.shown import ShownList

F32 = npt.NDArray[np.float32]

STATE_VERSION = 1
# The newest interactions: enough to refold the slowest bank (.98 per event) to within a third, and one page of `users
# export`.
RECENT_LENGTH = 50
# Items a user is never shown again, exactly, up to this many; beyond it the oldest is forgotten. 4,096 hashes are 32
# KiB a user at the worst; the most active of 943 film raters has 737.
SEEN_LENGTH = 4_096
# A producer retries within seconds: the last 128 events of one user cover it by far.
EVENT_RING_LENGTH = 128
# Tags are positive numbers of 31 bits: of a hundred thousand users some two pairs share one.
_TAGS = 2**31


def user_key(user_id: str) -> str:
    """The store's point id of a user: a UUID of 128 bits of BLAKE2b, so that a tombstone names nobody."""
    return str(uuid.UUID(bytes=hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()))


def event_hash(event_id: str) -> int:
    """63 bits of BLAKE2b of an event id."""
    digest = hashlib.blake2b(event_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Recent(NamedTuple):
    """One remembered interaction."""

    item_id: str
    kind: str
    value: float | None
    event_time_ms: int
    read_share: float | None = None
    """Where the user wrote and gave no value: what a model read, 0 to 1. For the encoder; no list shows it."""


class RecentItems(NamedTuple):
    """The latest distinct items, latest first. Never changed in place."""

    item: list[int]
    """Indices."""
    time_ms: list[int]
    """Of the user's latest interaction with each."""


NO_ITEMS = RecentItems([], [])


class UserState:
    """One user's folded history. Copied before it is changed, so that a failed batch leaves the cached one alone."""

    __slots__ = (
        "applied",
        "events",
        "excluded",
        "excluded_size",
        "forgotten_ms",
        "habits",
        "last_event_ms",
        "last_items",
        "last_list",
        "last_model",
        "memory",
        "model_version",
        "recent",
        "recent_index",
        "revision",
        "ring",
        "seen",
        "sequence",
        "shown",
        "tag",
        "unresolved",
        "user",
        "user_id",
    )

    def __init__(self, user_id: str, memory: F32, user: F32, model_version: str) -> None:
        self.user_id = user_id
        self.memory = memory
        """float32[S], the encoder's state."""
        self.user = user
        """float32[D], the user vector."""
        self.model_version = model_version
        self.recent: list[Recent] = []
        """Oldest first; never changed in place."""
        self.recent_index: RecentItems | None = None
        self.habits = NO_HABITS
        """What a learned ranker knows of the user's ways; replaced, never changed in place."""
        self.seen: dict[int, bool] = {}
        """Item hash -> whether the item is excluded from lists; in order of first touch."""
        self.ring: dict[int, None] = {}
        self.applied: dict[str, int] = {}
        """Log (topic, incarnation, partition) -> last applied offset."""
        self.events = 0
        self.revision = 0
        self.sequence = 0
        self.last_event_ms = -1
        self.forgotten_ms = -1
        self.last_list = b""
        """The newest published list, byte for byte."""
        self.last_items: tuple[str, ...] = ()
        self.last_model = ""
        self.shown: tuple[ShownList, ...] = ()
        """The latest lists and impressions, oldest first, for joining interactions to them."""
        self.tag = 0
        """What other users' habits know this one by, from his first event on; a forgotten user's points to nobody any
        more, and if he comes back he gets another."""
        # Item indices of the excluded items, derived from `seen` as far as the catalogue knows them.
        self.excluded: npt.NDArray[np.int32] = np.empty(16, np.int32)
        self.excluded_size = 0
        self.unresolved: list[int] = []

    def copy(self) -> UserState:
        new = UserState.__new__(UserState)
        for name in UserState.__slots__:
            setattr(new, name, getattr(self, name))
        new.seen, new.ring = self.seen.copy(), self.ring.copy()
        new.applied, new.excluded = self.applied.copy(), self.excluded.copy()
        new.unresolved = self.unresolved.copy()
        return new

    def remember_event(self, event_id: str) -> None:
        hashed = event_hash(event_id)
        self.ring[hashed] = None
        if not self.tag:
            self.tag = hashed % _TAGS or 1
        if len(self.ring) > EVENT_RING_LENGTH:
            del self.ring[next(iter(self.ring))]

    def remember_item(self, catalogue: Catalogue, index: int, *, excluded: bool) -> bool:
        """Note a touch. Returns: whether it was the user's first of this item."""
        hashed = catalogue.hashes[index]
        before = self.seen.get(hashed)
        if before is None or (excluded and not before):
            self.seen[hashed] = excluded
            if excluded:
                self._exclude(index)
            if len(self.seen) > SEEN_LENGTH:
                oldest = next(iter(self.seen))
                if self.seen.pop(oldest):
                    self._include(oldest, catalogue)
        return before is None

    def resolve(self, catalogue: Catalogue) -> None:
        """Derive the indices of excluded items; those the catalogue does not know yet are tried again later."""
        if self.unresolved:
            waiting, self.unresolved = self.unresolved, []
            for hashed in waiting:
                index = catalogue.index_by_hash.get(hashed)
                if index is None:
                    self.unresolved.append(hashed)
                else:
                    self._exclude(index)

    def excluded_items(self, catalogue: Catalogue) -> npt.NDArray[np.int32]:
        """int32[n], indices of the items that no list may hold. Never changed in place."""
        if self.unresolved:
            self.resolve(catalogue)
        return self.excluded[: self.excluded_size]

    def recent_items(self, catalogue: Catalogue, length: int) -> RecentItems:
        """
        Args:
            length: how many at most; the same at every call, since the answer is kept.
        """
        if self.recent_index is None:
            found: dict[int, int] = {}
            for recent in reversed(self.recent):
                found.setdefault(catalogue.intern(recent.item_id), recent.event_time_ms)
                if len(found) == length:
                    break
            self.recent_index = RecentItems(list(found), list(found.values()))
        return self.recent_index

    def remember_interaction(self, recent: Recent) -> None:
        # A new list: lists under way still look at the old one.
        self.recent = [*self.recent[-(RECENT_LENGTH - 1) :], recent]
        self.recent_index = None

    def forget(self, at_ms: int, memory: F32, user: F32) -> None:
        """Keep nothing but what stops older events from coming back."""
        self.memory, self.user = memory, user
        self.recent, self.recent_index, self.seen, self.ring = [], None, {}, {}
        self.events, self.last_event_ms, self.habits = 0, -1, NO_HABITS
        self.last_list, self.last_items, self.last_model, self.shown = b"", (), "", ()
        self.excluded, self.excluded_size, self.unresolved = np.empty(16, np.int32), 0, []
        self.forgotten_ms, self.tag = max(self.forgotten_ms, at_ms), 0

    def _include(self, hashed: int, catalogue: Catalogue) -> None:
        if hashed in self.unresolved:
            self.unresolved.remove(hashed)
            return
        kept = self.excluded[: self.excluded_size]
        # A new array: lists under way still look at the old one.
        self.excluded = kept[kept != catalogue.index_by_hash[hashed]]
        self.excluded_size = len(self.excluded)

    def _exclude(self, index: int) -> None:
        if self.excluded_size == len(self.excluded):
            self.excluded = np.concatenate([self.excluded, np.empty(max(16, len(self.excluded)), np.int32)])
        self.excluded[self.excluded_size] = index
        self.excluded_size += 1


class StoredBody(msgspec.Struct, array_like=True):
    """The packed part of a stored state. `user_id` is empty in a tombstone."""

    version: int
    user_id: str
    model_version: str
    recent: list[tuple[str, str, float | None, int]]
    seen: bytes
    excluded: bytes
    ring: list[int]
    applied: dict[str, int]
    events: int
    sequence: int
    last_event_ms: int
    forgotten_ms: int
    last_list: bytes
    last_items: list[str]
    last_model: str
    habits: bytes = b""
    read: list[float | None] = []
    """`read_share` of each of `recent`; empty where none has one."""
    shown: tuple[ShownList, ...] = ()
    tag: int = 0
    followed: bytes = b""
    """Of the habits' fellows; empty from a former release."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoredBody)


def pack(state: UserState, catalogue: Catalogue) -> UserRecord:
    read = [r.read_share for r in state.recent]
    body = StoredBody(
        version=STATE_VERSION,
        user_id=state.user_id if state.events or state.last_list or state.forgotten_ms < 0 else "",
        model_version=state.model_version,
        recent=[(r.item_id, r.kind, r.value, r.event_time_ms) for r in state.recent],
        seen=np.fromiter(state.seen.keys(), np.uint64, len(state.seen)).tobytes(),
        excluded=np.packbits(np.fromiter(state.seen.values(), np.bool_, len(state.seen))).tobytes(),
        ring=list(state.ring),
        applied=state.applied,
        events=state.events,
        sequence=state.sequence,
        last_event_ms=state.last_event_ms,
        forgotten_ms=state.forgotten_ms,
        last_list=state.last_list,
        last_items=list(state.last_items),
        last_model=state.last_model,
        habits=pack_habits(state.habits, catalogue.hashes),
        read=read if any(share is not None for share in read) else [],
        shown=state.shown,
        tag=state.tag,
        followed=pack_followed(state.habits),
    )
    return UserRecord(
        user_key=user_key(state.user_id),
        revision=state.revision,
        embedding=state.user,
        state=state.memory,
        body=_encoder.encode(body),
    )


def unpack_body(body: bytes) -> StoredBody:
    """Raises: StateError for a body that this version cannot read."""
    try:
        stored = _decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StateError(f"unreadable user state: {error}") from error
    if stored.version != STATE_VERSION:
        raise StateError(f"user state of version {stored.version}; this release reads {STATE_VERSION}")
    return stored


def recent_of(stored: StoredBody) -> list[Recent]:
    """Raises: StateError for a body that does not fit itself."""
    if stored.read and len(stored.read) != len(stored.recent):
        raise StateError(f"{len(stored.read)} values read, {len(stored.recent)} interactions")
    read = stored.read or [None] * len(stored.recent)
    return [Recent(*entry, share) for entry, share in zip(stored.recent, read, strict=True)]


def unpack(user_id: str, record: UserRecord, catalogue: Catalogue) -> UserState:
    """The state of `user_id` as it was packed. Raises: StateError."""
    stored = unpack_body(record.body)
    state = UserState(user_id, record.state, record.embedding, stored.model_version)
    state.recent = recent_of(stored)
    hashes = np.frombuffer(stored.seen, np.uint64)
    flags = np.unpackbits(np.frombuffer(stored.excluded, np.uint8), count=len(hashes)).astype(bool)
    state.seen = dict(zip(hashes.tolist(), flags.tolist(), strict=True))
    state.ring = dict.fromkeys(stored.ring)
    state.applied = stored.applied
    state.events, state.revision, state.sequence = stored.events, record.revision, stored.sequence
    state.last_event_ms, state.forgotten_ms = stored.last_event_ms, stored.forgotten_ms
    state.last_list, state.last_items, state.last_model = stored.last_list, tuple(stored.last_items), stored.last_model
    state.shown, state.tag = stored.shown, stored.tag
    state.habits = unpack_habits(stored.habits, catalogue.index_by_hash, stored.followed)
    state.unresolved = hashes[flags].tolist()
    state.resolve(catalogue)
    return state
