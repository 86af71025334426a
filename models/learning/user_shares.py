"""How many records of one user enter training: whoever sends most of a stream must not decide what all are served."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence


class UserShares:
    """Lets through at most `limit` of the last `span` records that were let through, of any one user.

    A flood of one user therefore neither fills a training window nor brings the next one about.
    """

    def __init__(self, limit: int, span: int) -> None:
        self.limit, self.span = limit, span
        self._latest: deque[str] = deque()
        self._count: Counter[str] = Counter()

    def admit(self, user_id: str) -> bool:
        """Whether a record of the user is taken now; if so, it counts."""
        if self._count[user_id] >= self.limit:
            return False
        self._latest.append(user_id)
        self._count[user_id] += 1
        if len(self._latest) > self.span:
            oldest = self._latest.popleft()
            self._count[oldest] -= 1
            if not self._count[oldest]:
                del self._count[oldest]
        return True

    def state(self) -> Sequence[str]:
        return list(self._latest)

    @classmethod
    def restored(cls, limit: int, span: int, latest: Sequence[str]) -> UserShares:
        shares = cls(limit, span)
        shares._latest.extend(latest)
        shares._count.update(latest)
        return shares
