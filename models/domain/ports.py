"""The ports of the domain: what it needs from encoders and stores, implemented in `models/encoders`, `streams/stores`.

Axes: B batch, K candidates or results, D item and user vector (the last dimension is the item bias; 1 on the user's
side, so that retrieval is an inner product), S flattened user state, E text embedding, T history, F ranking features.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

# What the encoder reads where an event carries no value.
NO_VALUE = -1.0


class EventInputs(NamedTuple):
    """What one event tells the user encoder, as arrays over the batch."""

    item: F32
    """float32[B, D], the item's vector; zeros when the event names no item or the item has no vector yet."""
    text: F32
    """float32[B, E], the event's own text (review, search), L2-normalised; zeros when there is none."""
    kind: I64
    """int64[B], index into the bundle's `kinds`; 0 = a kind the bundle does not know."""
    strength: F32
    """float32[B], how strongly the event speaks for the item; negative speaks against it."""
    value: F32
    """float32[B], the rating as a share of its scale, 0 to 1; -1 when there is none."""
    log2_gap: F32
    """float32[B], log2(1 + seconds since the user's previous event); -1 for the first event."""


class UserEncoder(Protocol):
    """Folds events into a user's state and reads the user vector off it."""

    @property
    def state_size(self) -> int: ...

    @property
    def dimension(self) -> int: ...

    @property
    def text_dimension(self) -> int: ...

    @property
    def kinds(self) -> Sequence[str]: ...

    def initial_state(self) -> F32:
        """Returns: float32[S], the state of a user without events."""
        ...

    def initial_user(self) -> F32:
        """Returns: float32[D], the vector of a user without events."""
        ...

    def step(self, state: F32, inputs: EventInputs) -> tuple[F32, F32]:
        """Fold one event a row.

        Args:
            state: float32[B, S].
        Returns: (float32[B, S] the new state, float32[B, D] the user vector).
        """
        ...

    def sequence(self, state: F32, inputs: EventInputs, mask: npt.NDArray[np.bool_]) -> tuple[F32, F32]:
        """Fold T events a row; the arrays of `inputs` carry a time axis: [B, T, ...].

        Args:
            state: float32[B, S], where the history starts from.
            mask: bool[B, T], False where there is no event (padding at the end).
        Returns: (float32[B, S], float32[B, D]); equal to T steps.
        """
        ...


class ItemEncoder(Protocol):
    """Item tower: text embedding to item vector."""

    @property
    def dimension(self) -> int: ...

    def encode_many(self, item_ids: Sequence[str], text: F32) -> F32:
        """
        Args:
            text: float32[N, E], L2-normalised; a zero row for an item without text.
        Returns: float32[N, D].
        """
        ...

    def placeholder(self, item_id: str) -> F32:
        """Returns: float32[D], of an item of which nothing is known but its id."""
        ...


class TextEncoder(Protocol):
    """Language model: text to an L2-normalised embedding."""

    @property
    def dimension(self) -> int: ...

    def encode_many(self, texts: Sequence[str]) -> F32:
        """Returns: float32[N, E], L2-normalised; a zero row for a text without a token."""
        ...

    def remembered(self, texts: Sequence[str]) -> list[F32 | None]:
        """Returns: N times float32[E], what `encode_many` would give, or None where the model would have to run."""
        ...


class Ranker(Protocol):
    """Scores candidates from their features."""

    @property
    def features(self) -> Sequence[str]:
        """Names of the F features, in the order of the axis."""
        ...

    @property
    def initial_weights(self) -> F32 | None:
        """float32[F] where the ranker is log-linear with weights given at each call, else None."""
        ...

    @property
    def candidates(self) -> int:
        """Candidates a list that it was trained on; 0 = no matter."""
        ...

    @property
    def source_weights(self) -> F32 | None:
        """float32[S], what each candidate source has been worth on the stream it was trained on; None = all alike."""
        ...

    def score(self, features: F32, weights: F32 | None) -> F32:
        """
        Args:
            features: float32[B, K, F].
            weights: float32[B, F], one set a list; None where the weights are the graph's own.
        Returns: float32[B, K].
        """
        ...


class ValueReader(Protocol):
    """Reads from a review's text the value that its author did not give."""

    def read_many(self, texts: Sequence[str], embeddings: F32) -> F32:
        """
        Args:
            texts: B, whole.
            embeddings: float32[B, E], of what the text encoder reads of them.
        Returns: float32[B], shares of the value scale, 0 to 1, such as users give, since an encoder knows no others;
            NO_VALUE (-1) for a text without a word.
        """
        ...


class UserRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One user as a store keeps it."""

    user_key: str
    """Point id: a UUID derived from the user id (`models.domain.state.user_key`), so that a tombstone names nobody."""
    revision: int
    """Grows by one for every record of the user's log that was consumed; the store keeps the larger one."""
    embedding: F32
    """float32[D]."""
    state: F32
    """float32[S]."""
    body: bytes
    """The rest of the state, packed; opaque to the store."""


class UserStore(Protocol):
    """User states by key: durable when `save_many` returns. Errors: UserStoreError."""

    async def load_many(self, user_keys: Sequence[str]) -> list[UserRecord | None]:
        """Returns: one entry a key, in the order asked, None where the user is unknown."""
        ...

    async def save_many(self, records: Sequence[UserRecord]) -> None:
        """Write each record unless the store holds that user with an equal or larger `revision` (a zombie is late)."""
        ...

    def scan(self, batch_size: int = 256) -> AsyncIterator[UserRecord]: ...

    async def count(self) -> int: ...


class ItemRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One catalogue item as the index keeps it."""

    item_id: str
    vector: F32
    """float32[D]."""
    content_hash: str
    """Hash of what was encoded: equal hash, nothing to encode again."""
    available: bool = True
    categories: tuple[str, ...] = ()
    price: float | None = None
    text: F32 | None = None
    """float32[E], the embedding that the vector was made from, to be kept beside it. `ItemIndex.texts` alone reads it:
    it is several times the rest, and only another version's vectors are made from it."""


class ItemText(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an item's text."""

    content_hash: str
    """Of the content that was embedded."""
    embedding: F32
    """float32[E], as the text encoder gave it."""


class ItemIndex(Protocol):
    """Item vectors by inner product. Errors: ItemIndexError."""

    @property
    def text_dimension(self) -> int:
        """E of the embeddings that are kept; 0 where the collection keeps none and those of records are left out."""
        ...

    async def upsert_many(self, records: Sequence[ItemRecord]) -> None:
        """Write each record in place of a former one, the embedding of its text included: without one it has none."""
        ...

    async def remove_many(self, item_ids: Sequence[str]) -> None: ...

    async def get_many(self, item_ids: Sequence[str]) -> list[ItemRecord | None]: ...

    async def texts(self, item_ids: Sequence[str]) -> list[ItemText | None]:
        """Returns: one entry an id, in the order asked, None where no embedding is kept."""
        ...

    async def search_many(self, vectors: F32, k: int) -> list[list[tuple[str, float]]]:
        """The k available items of largest inner product, best first.

        Args:
            vectors: float32[B, D].
        Returns: B lists of (item_id, score), ties by item_id.
        """
        ...

    def scan(self, batch_size: int = 256) -> AsyncIterator[ItemRecord]: ...

    async def count(self) -> int: ...


class Stores(Protocol):
    """The collections of one deployment, reached through pointers that switch at once.

    `users_<generation>` and `items_<version>` are collections; the pointers say which is live.
    """

    async def users(self, *, state_size: int, dimension: int, generation: str | None = None) -> UserStore:
        """The live generation (made as `0` at first), or the named one. Raises: UserStoreError where sizes misfit."""
        ...

    async def user_generation(self) -> str: ...

    async def switch_users(self, generation: str) -> None:
        """Make `generation` live and drop the former one."""
        ...

    async def items(self, *, version: str, dimension: int, text_dimension: int = 0) -> ItemIndex:
        """The collection of that version of the item side, made when absent.

        Args:
            text_dimension: E of the embeddings to keep with the items; 0 keeps none. Where the collection is there
                already it stays as it was made (`ItemIndex.text_dimension`).
        """
        ...

    async def item_versions(self) -> list[str]:
        """Versions that have a collection of items, in no order."""
        ...

    async def drop_items(self, version: str) -> None:
        """Remove that version's collection; nothing where there is none. Who still has it open may find it empty."""
        ...

    async def ping(self) -> None:
        """Raises: StoreError when the store does not answer."""
        ...

    async def describe(self) -> dict[str, object]:
        """For `doctor`: technology, version, collections with their counts."""
        ...

    async def close(self) -> None: ...
