"""A whole fit's encoder, with a ranker that goes on from the challenger's, that wants the challenger's place.

A fit takes minutes, in which the challenger lives on. The rival learns from the rounds that the fit had not seen, a few
at a time, and is compared with the challenger from then on, on records that neither has learned from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.learning.contenders import Challenger, Contender, Serving
from models.learning.feedback_log import FeedbackLog
from models.learning.gate import Evidence, GateRule
from models.learning.lists import Lists
from models.learning.recent_rounds import Window
from models.learning.rounds import Scene

F64 = npt.NDArray[np.float64]
Outcome = Literal["won", "lost", "open"]


class Rival:
    """
    Args:
        challenger: what wants the place.
        ahead: rounds that it has yet to learn from, oldest first.
        memory: records that comparisons look back on.
    """

    def __init__(self, challenger: Challenger, ahead: Sequence[Window], memory: int) -> None:
        self.challenger = challenger
        self._given = challenger.lists.appended
        self._ahead = deque(ahead)
        self.contest = Evidence(memory)
        """Against the challenger."""
        self.evidence = Evidence(memory)
        """Against the champion: the gate's, once it has the place."""

    @property
    def caught_up(self) -> bool:
        """Whether it has learned from all rounds so far, and can be compared."""
        return not self._ahead

    def wait_for(self, window: Window) -> None:
        """A round that it has to learn from while it is not caught up."""
        self._ahead.append(window)

    def catch_up(self, log: FeedbackLog, serving: Serving, rounds: int) -> None:
        """Learn from so many of the rounds ahead."""
        for _ in range(min(rounds, len(self._ahead))):
            window = self._ahead.popleft()
            features = self.rank(log, serving, window.scene)[1]
            self.learn(log, window, features)

    def rank(self, log: FeedbackLog, serving: Serving, scene: Scene) -> tuple[F64, npt.NDArray[np.float16]]:
        """See `Contender.rank`."""
        return Contender(self.challenger.state(log), serving).rank(log, *scene)

    def learn(self, log: FeedbackLog, window: Window, features: npt.NDArray[np.float16]) -> None:
        """
        Args:
            features: of the window's lists, as the rival has them before it learns from them.
        """
        lists = window.scene.served._replace(features=features).lists()
        self.challenger.learn(log.log.until(window.end), window.start, window.scene.records, lists)

    def own_lists(self) -> Lists | None:
        """Those of the rounds that it learned from, None where there was none."""
        lists = self.challenger.lists
        own = min(lists.appended - self._given, len(lists))
        return lists.lists.take(np.arange(len(lists) - own, len(lists))) if own else None

    def outcome(self, rule: GateRule, records: int, seed: int) -> Outcome:
        """By the gate's rule without a margin, since no worker has to switch; after so many records the better one by
        so much as a hair."""
        found = self.contest.judge(replace(rule, gain=0.0), seed)
        if found.verdict != "keep":
            return "won" if found.verdict == "promote" else "lost"
        if len(self.contest) < records:
            return "open"
        return "won" if found.octaves >= 0 else "lost"
