"""The catalogue as a worker holds it: item ids numbered in order of appearance, with what serving needs of each item.

Owns the numbering that statistics, features and lists share. Knows nothing of stores; vectors are handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from models.domain.events import Item
from models.domain.item_vectors import F32, ItemVectors


def item_hash(item_id: str) -> int:
    """64 bits of BLAKE2b: what a state remembers of an item. Two of a million items collide with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def content_text(item: Item) -> str:
    """What the text encoder reads of an item: title, categories, text."""
    parts = [item.title.strip(), ", ".join(item.categories), item.text.strip()]
    return ". ".join(part for part in parts if part)


def content_hash(item: Item) -> str:
    """Hash of everything that decides an item's vector, so that a restart encodes nothing again."""
    digest = hashlib.blake2b(content_text(item).encode("utf-8", "surrogatepass"), digest_size=16)
    if item.vector is not None:
        digest.update(np.asarray(item.vector, np.float64).tobytes())
    return digest.hexdigest()


class Catalogue:
    """Items by index.

    An item is *known* once it was declared or touched by an event; an event on an undeclared item makes a placeholder
    that is recommendable from its behaviour alone. A removed item stays numbered and is not recommended until it is
    declared again.

    Args:
        dimension: D of the item vectors.
        placeholder: the vector of an item of which nothing is known but its id; None = zeros.
    """

    def __init__(self, dimension: int, capacity: int = 1_024, placeholder: Callable[[str], F32] | None = None) -> None:
        self.dimension = dimension
        self.served = ItemVectors(capacity, dimension, placeholder)
        """The vectors that everybody is served by; `vectors` and `has_vector` are theirs."""
        self._attached = [self.served]
        self.placeholders = 0
        """Undeclared items that an event made, so far."""
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.hashes: list[int] = []
        self.index: dict[str, int] = {}
        self.index_by_hash: dict[int, int] = {}
        self.available = np.zeros(capacity, np.bool_)
        self.known = np.zeros(capacity, np.bool_)
        self.removed = np.zeros(capacity, np.bool_)
        self.declared = np.zeros(capacity, np.bool_)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vectors(self) -> F32:
        """float32[capacity, D]."""
        return self.served.rows

    @property
    def has_vector(self) -> npt.NDArray[np.bool_]:
        return self.served.present

    def intern(self, item_id: str) -> int:
        """The item's index, given out at the first sight of its id."""
        at = self.index.get(item_id)
        if at is not None:
            return at
        at = len(self.ids)
        if at == len(self.available):
            self._grow(2 * at)
        self.ids.append(item_id)
        self.titles.append(item_id)
        hashed = item_hash(item_id)
        self.hashes.append(hashed)
        self.index[item_id] = at
        self.index_by_hash[hashed] = at
        for vectors in self._attached:
            vectors.hold_place(at, item_id)
        return at

    def intern_many(self, item_ids: Iterable[str]) -> npt.NDArray[np.int32]:
        return np.fromiter((self.intern(i) for i in item_ids), np.int32)

    def touch(self, at: int) -> bool:
        """An event named the item. Returns: whether it was known before."""
        before = bool(self.known[at])
        if not before:
            self.known[at] = True
            self.placeholders += not self.removed[at]
        if not self.declared[at] and not self.removed[at]:
            self.available[at] = True
        return before

    def declare(self, item: Item) -> int:
        """Take over an item's catalogue entry (without its vector)."""
        at = self.intern(str(item.item_id))
        self.titles[at] = item.title or self.ids[at]
        self.known[at] = self.declared[at] = True
        self.removed[at] = False
        self.available[at] = item.available
        return at

    def newest(self, length: int) -> npt.NDArray[np.int32]:
        """Indices of available declared items, the latest numbered first."""
        known = len(self.ids)
        found = np.flatnonzero(self.declared[:known] & self.available[:known])
        return found[: -length - 1 : -1].astype(np.int32)

    def remove(self, item_id: str) -> None:
        at = self.intern(item_id)
        self.removed[at] = True
        self.declared[at] = self.available[at] = self.known[at] = False
        for vectors in self._attached:
            vectors.clear(at)

    def set_vectors(self, indices: Sequence[int] | npt.NDArray[np.int32], vectors: F32) -> None:
        """Of the served model. Args: vectors: float32[n, D]."""
        self.served.put(indices, vectors)

    def attach(self, placeholder: Callable[[str], F32]) -> ItemVectors:
        """Another model's vectors, empty; kept in step from now on with items that come, go, or are named by events."""
        self._attached.append(vectors := ItemVectors(len(self.available), self.dimension, placeholder))
        return vectors

    def detach(self, vectors: ItemVectors) -> None:
        """Let go of vectors that are not served; of those that are, nothing happens."""
        self._attached = [each for each in self._attached if each is self.served or each is not vectors]

    def serve(self, vectors: ItemVectors) -> None:
        """Attached vectors in place of the served ones, which are let go."""
        former, self.served = self.served, vectors
        self.detach(former)

    def _grow(self, capacity: int) -> None:
        for name in ("available", "known", "removed", "declared"):
            wide = np.zeros(capacity, np.bool_)
            wide[: len(self.ids)] = getattr(self, name)
            setattr(self, name, wide)
        for vectors in self._attached:
            vectors.grow(capacity)
