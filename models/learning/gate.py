"""Whether a challenger becomes champion: paired differences on the newest records, an interval by user, a written rule.

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
    """What evidence is asked for; figures beside the choices stand in models/README.md."""

    # Share of the champion's nDCG to be gained. Each switch costs all workers a fetch, an item collection and refolds.
    # Without it a challenger that had learned from shuffled choices for three windows was promoted for +.2% on an easy
    # stream, by a chance of .99: so few updates hardly change a model, and a hair's breadth can be sure as well.
    gain: float = 0.005
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
    better: float
    """Chance that the challenger is better."""
    enough: float
    """Chance that it is better by the gain that is asked for."""

    @property
    def difference(self) -> float:
        return self.challenger - self.champion

    @property
    def reason(self) -> str:
        """For people."""
        return (
            f"nDCG@10 {self.challenger:.4f} against {self.champion:.4f} on {self.records:,} records of {self.users:,} "
            f"users: better with chance {self.better:.3f}, enough with {self.enough:.3f} "
            f"(difference {self.low:+.4f} to {self.high:+.4f})"
        )


def gains(places: F64) -> F64:
    """nDCG@10 of each 1-based place (a tie counts half, infinity is a miss)."""
    return np.where(places <= CUTOFF, 1.0 / np.log2(1.0 + np.minimum(places, CUTOFF)), 0.0)


class Evidence:
    """Paired gains of champion and challenger on the records since they met, in order of arrival."""

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
            champion, challenger: float64[n], `gains` of each.
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
        found = self._weigh(rule.user_records, rule.resamples, seed, rule.gain)
        verdict: Verdict = "keep"
        if found.records >= rule.least_records and found.users >= rule.least_users:
            if found.enough >= rule.promote:
                verdict = "promote"
            elif 1.0 - found.better >= rule.discard:
                verdict = "discard"
        return found._replace(verdict=verdict)

    def failed(self, rule: WatchRule, gate: GateRule, seed: int) -> Decision:
        """Whether the challenger - a new champion, the champion being its predecessor - has to go: `discard`."""
        found = self._weigh(gate.user_records, gate.resamples, seed, -rule.margin)
        enough = found.records >= rule.least_records and found.users >= rule.least_users
        return found._replace(verdict="discard" if enough and 1.0 - found.enough >= rule.chance else "keep")

    def state(self) -> dict[str, Any]:
        return {"users": self._users, "champion": self._champion.tolist(), "challenger": self._challenger.tolist()}

    @classmethod
    def restored(cls, memory: int, state: Mapping[str, Any]) -> Evidence:
        evidence = cls(memory)
        evidence.add(state["users"], np.array(state["champion"], np.float64), np.array(state["challenger"], np.float64))
        return evidence

    def _weigh(self, user_records: int, resamples: int, seed: int, gain: float) -> Decision:
        """Whole users resampled; a user weighs as much as his records, `user_records` at most."""
        if not self._users:
            return Decision("keep", 0, 0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5)
        _, group = np.unique(np.asarray(self._users), return_inverse=True)
        count = np.bincount(group).astype(np.float64)
        weight = np.minimum(count, user_records)
        champion = np.bincount(group, self._champion) / count * weight
        challenger = np.bincount(group, self._challenger) / count * weight
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(len(count), np.full(len(count), 1.0 / len(count)), size=resamples)
        total = drawn @ weight
        differences = (drawn @ (challenger - champion)) / total
        # A tie says as much for the one as for the other.
        better = float((differences > 0).mean() + 0.5 * (differences == 0).mean())
        beyond = drawn @ (challenger - (1.0 + gain) * champion)
        low, high = np.quantile(differences, [0.025, 0.975])
        return Decision(
            verdict="keep",
            records=len(self._users),
            users=len(count),
            champion=float(champion.sum() / weight.sum()),
            challenger=float(challenger.sum() / weight.sum()),
            low=float(low),
            high=float(high),
            better=better,
            enough=float((beyond >= 0).mean()),
        )
