"""Whether a challenger becomes champion: paired differences of places on the newest records, users resampled, a written
rule.

Both models rank the same served lists, of events that neither was trained on. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.domain.evaluation import CUTOFF

F64 = npt.NDArray[np.float64]

Verdict = Literal["promote", "keep", "discard"]


@dataclass(frozen=True)
class GateRule:
    """What evidence is asked for; figures beside the choices stand in models/README.md.

    It is weighed in octaves: how often the place of what was chosen was halved. On the same records a difference
    stands out of its noise 2.3 times as far there as in nDCG@10, which is blind to nine choices in ten; nDCG@10, which
    is what people see, must not have fallen.
    """

    # Octaves to be gained. Each switch costs all workers a fetch, an item collection and refolds. Without any a
    # challenger that had learned from shuffled choices for three windows was promoted for a hair's breadth on an easy
    # stream, by a chance of .99: so few updates hardly change a model, and a hair's breadth can be sure as well.
    gain: float = 0.002
    # With this chance, looked at anew each round.
    promote: float = 0.95
    # Chance that it is worse. A challenger learns on, so that it is thrown away only when it has surely gone astray.
    discard: float = 0.95
    # Two windows: a challenger that learns nonsense shows it by then. Below five users one's taste is the evidence.
    least_records: int = 1_000
    least_users: int = 5
    # Records of a user that count: whoever sends ten thousand weighs as much as one who sends this many.
    user_records: int = 50
    # Newest records that are looked at: older ones speak of another challenger.
    memory: int = 4_000
    resamples: int = 2_000


@dataclass(frozen=True)
class WatchRule:
    """When a new champion goes back to the former one."""

    # Share of the former champion's nDCG that must be lost: what is within the noise of two like models is left alone.
    margin: float = 0.05
    # With this chance.
    chance: float = 0.95
    least_records: int = 200
    least_users: int = 5


class Decision(NamedTuple):
    verdict: Verdict
    records: int
    users: int
    champion: float
    """nDCG@10, users' weights capped."""
    challenger: float
    low: float
    """95% interval of challenger - champion, by user."""
    high: float
    octaves: float
    """By how much the challenger lists what is chosen higher, in octaves of places."""
    better: float
    """Chance that it does so at all, or, for the watch, that its nDCG@10 is higher."""
    enough: float
    """Chance that it does so by as much as is asked for."""

    @property
    def difference(self) -> float:
        return self.challenger - self.champion

    @property
    def reason(self) -> str:
        """For people."""
        return (
            f"nDCG@10 {self.challenger:.4f} against {self.champion:.4f} on {self.records:,} records of {self.users:,} "
            f"users (difference {self.low:+.4f} to {self.high:+.4f}), {self.octaves:+.4f} octaves: better with chance "
            f"{self.better:.3f}, enough with {self.enough:.3f}"
        )


# Beyond any list of candidates: what a miss counts as.
MISSED = 256.0


def gains(places: F64) -> F64:
    """nDCG@10 of each 1-based place (a tie counts half, infinity is a miss)."""
    return np.where(places <= CUTOFF, 1.0 / np.log2(1.0 + np.minimum(places, CUTOFF)), 0.0)


def within_list(places: F64) -> F64:
    """The places that nDCG@10 can see; the others are missed."""
    return np.where(places <= CUTOFF, places, np.inf)


def octaves(places: F64) -> F64:
    """How often each 1-based place would have to be halved to be the first."""
    return np.log2(np.minimum(places, MISSED))


class Evidence:
    """Places that champion and challenger gave to what was chosen since they met, in order of arrival."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._users: list[str] = []
        self._champion: F64 = np.empty(0)
        self._challenger: F64 = np.empty(0)

    def __len__(self) -> int:
        return len(self._users)

    def add(self, users: Sequence[str], champion: F64, challenger: F64) -> None:
        """
        Args:
            users: of n records, in order.
            champion, challenger: float64[n], 1-based places, infinity for a miss.
        """
        self._users = [*self._users, *users][-self.memory :]
        self._champion = np.concatenate([self._champion, champion])[-self.memory :]
        self._challenger = np.concatenate([self._challenger, challenger])[-self.memory :]

    def clear(self) -> None:
        self._users, self._champion, self._challenger = [], np.empty(0), np.empty(0)

    def forget(self, user_id: str) -> None:
        kept = np.array([user != user_id for user in self._users], np.bool_)
        self._users = [user for user in self._users if user != user_id]
        self._champion, self._challenger = self._champion[kept], self._challenger[kept]

    def judge(self, rule: GateRule, seed: int) -> Decision:
        """What the rule says of the challenger. Deterministic by seed."""
        found = self._weigh(rule, seed)
        if found is None:
            return NOTHING
        decision, drawn = found
        higher = drawn.means(octaves(self._champion) - octaves(self._challenger))
        # A tie says as much for the one as for the other.
        better = float((higher > 0).mean() + 0.5 * (higher == 0).mean())
        enough = float((higher >= rule.gain).mean())
        verdict: Verdict = "keep"
        if decision.records >= rule.least_records and decision.users >= rule.least_users:
            if enough >= rule.promote and decision.difference >= 0:
                verdict = "promote"
            elif 1.0 - better >= rule.discard and decision.difference <= 0:
                verdict = "discard"
        return decision._replace(verdict=verdict, better=better, enough=enough)

    def failed(self, rule: WatchRule, gate: GateRule, seed: int) -> Decision:
        """Whether the challenger - a new champion, the champion being its predecessor - has to go: `discard`."""
        found = self._weigh(gate, seed)
        if found is None:
            return NOTHING
        decision, drawn = found
        champion, challenger = gains(self._champion), gains(self._challenger)
        kept = float((drawn.means(challenger - (1.0 - rule.margin) * champion) >= 0).mean())
        better = float((drawn.means(challenger - champion) > 0).mean())
        enough = decision.records >= rule.least_records and decision.users >= rule.least_users
        verdict: Verdict = "discard" if enough and 1.0 - kept >= rule.chance else "keep"
        return decision._replace(verdict=verdict, better=better, enough=kept)

    def state(self) -> dict[str, Any]:
        """Places as numbers, 0 for a miss: JSON knows no infinity."""
        places = {"champion_places": self._champion, "challenger_places": self._challenger}
        return {"users": self._users} | {name: np.where(np.isfinite(x), x, 0.0).tolist() for name, x in places.items()}

    @classmethod
    def restored(cls, memory: int, state: Mapping[str, Any]) -> Evidence:
        """Empty where a former release kept gains instead of places."""
        evidence = cls(memory)
        if "champion_places" in state:
            places = (np.array(state[name], np.float64) for name in ("champion_places", "challenger_places"))
            champion, challenger = (np.where(found > 0, found, np.inf) for found in places)
            evidence.add(state["users"], champion, challenger)
        return evidence

    def _weigh(self, rule: GateRule, seed: int) -> tuple[Decision, Resampled] | None:
        """What nDCG@10 says; None where there is nothing to weigh."""
        if not self._users:
            return None
        drawn = Resampled(self._users, rule, seed)
        champion, challenger = gains(self._champion), gains(self._challenger)
        low, high = np.quantile(drawn.means(challenger - champion), [0.025, 0.975])
        decision = Decision(
            verdict="keep",
            records=len(self._users),
            users=drawn.users,
            champion=drawn.mean(champion),
            challenger=drawn.mean(challenger),
            low=float(low),
            high=float(high),
            octaves=drawn.mean(octaves(self._champion)) - drawn.mean(octaves(self._challenger)),
            better=0.5,
            enough=0.5,
        )
        return decision, drawn


class Resampled:
    """Whole users drawn again and again; a user weighs as much as his records, `user_records` at most."""

    def __init__(self, users: Sequence[str], rule: GateRule, seed: int) -> None:
        _, self._group = np.unique(np.asarray(users), return_inverse=True)
        self._count = np.bincount(self._group).astype(np.float64)
        self._weight = np.minimum(self._count, rule.user_records)
        self.users = len(self._count)
        even = np.full(self.users, 1.0 / self.users)
        self._drawn = np.random.default_rng(seed).multinomial(self.users, even, size=rule.resamples)
        self._total = self._drawn @ self._weight

    def mean(self, values: F64) -> float:
        return float(self._by_user(values).sum() / self._weight.sum())

    def means(self, values: F64) -> F64:
        """Means of `values` (float64[records]), one a resample."""
        found: F64 = (self._drawn @ self._by_user(values)) / self._total
        return found

    def _by_user(self, values: F64) -> F64:
        found: F64 = np.bincount(self._group, values) / self._count * self._weight
        return found


NOTHING = Decision("keep", 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5)
