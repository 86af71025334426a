"""User states between the store and the pipeline: a bounded cache in front, packing on the way out.

The cache is only ever changed after the store has the state, so that it never knows more than a crash would leave.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from models.domain.catalogue import Catalogue
from models.domain.ports import UserStore
from models.domain.state import UserState, pack, unpack, user_key
from streams.agents.retry import Retry


class UserStates:
    """Loads and saves states; keeps the `size` most recently used ones.

    Args:
        on_lookups: called with (hits, misses).
    """

    def __init__(
        self,
        store: UserStore,
        catalogue: Catalogue,
        retry: Retry,
        size: int,
        on_lookups: Callable[[int, int], None],
    ) -> None:
        self._store, self._catalogue, self._retry, self._size = store, catalogue, retry, size
        self._on_lookups = on_lookups
        self._cache: OrderedDict[str, UserState] = OrderedDict()
        self.epoch = 0
        """Grows when the cache is dropped: what was computed before may be older than what another worker wrote."""

    def __len__(self) -> int:
        return len(self._cache)

    async def load(self, user_ids: Iterable[str]) -> dict[str, UserState]:
        """Returns: the states of the users that have one. Raises: UserStoreError, StateError."""
        wanted = list(dict.fromkeys(user_ids))
        found: dict[str, UserState] = {}
        missing = []
        for user_id in wanted:
            state = self._cache.get(user_id)
            if state is None:
                missing.append(user_id)
            else:
                self._cache.move_to_end(user_id)
                found[user_id] = state
        self._on_lookups(len(found), len(missing))
        if missing:
            keys = [user_key(user_id) for user_id in missing]
            records = await self._retry.call("state_load", lambda: self._store.load_many(keys))
            for user_id, record in zip(missing, records, strict=True):
                if record is not None:
                    found[user_id] = unpack(user_id, record, self._catalogue)
        return found

    async def save(self, states: Mapping[str, UserState], epoch: int) -> None:
        """Durable when it returns; then, and only then, cached. Raises: UserStoreError.

        Args:
            epoch: the cache's when the states were loaded.
        """
        records = [pack(state, self._catalogue) for state in states.values()]
        await self._retry.call("upsert", lambda: self._store.save_many(records))
        if epoch != self.epoch:
            return
        for user_id, state in states.items():
            self._cache[user_id] = state
            self._cache.move_to_end(user_id)
        while len(self._cache) > self._size:
            self._cache.popitem(last=False)

    def drop(self) -> None:
        """Forget every cached state: from now on another worker may write them."""
        self._cache.clear()
        self.epoch += 1
