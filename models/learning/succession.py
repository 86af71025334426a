"""Whole fits beside the rounds, and the rival that comes of each and wants the challenger's place. Needs torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.learning.contenders import Challenger, Serving
from models.learning.feedback_log import FeedbackLog
from models.learning.lists import ListBuffer
from models.learning.online_config import OnlineConfig
from models.learning.ranker_trainer import RankerTrainer
from models.learning.recent_rounds import RecentRounds, Window
from models.learning.rival import Rival
from models.learning.rounds import FitNews
from models.learning.training_state import TrainingState
from models.learning.whole_fit import FitError, Fits, Fitted, WholeFit


class Succession:
    """At most one of: a fit that goes on, a rival that catches up, a rival in its contest.

    Args:
        lists: the challenger's.
        make: a challenger that goes on from a state, with lists of its own.
    """

    def __init__(
        self,
        config: OnlineConfig,
        fits: Fits,
        serving: Serving,
        lists: ListBuffer,
        make: Callable[[TrainingState, ListBuffer], Challenger],
        seed: int,
    ) -> None:
        self.config, self.fits, self.serving, self.seed = config, fits, serving, seed
        self.rival: Rival | None = None
        self.recent = RecentRounds(config.ahead)
        self._lists, self._make = lists, make
        self._missed = RecentRounds(config.most_missed)
        """Rounds that the fit which goes on has not seen."""
        self._begun = 0, 0, 0
        """Events of the log when it began, records that it was not given of them, past lists."""

    @property
    def contestant(self) -> Rival | None:
        """The rival, where it can be compared."""
        return self.rival if self.rival is not None and self.rival.caught_up else None

    def attend(self, challenger: Challenger, log: FeedbackLog, window: Window, *, judged: bool, number: int) -> FitNews:
        """One step, after the challenger and a contestant have learned from a round.

        Args:
            judged: whether there is evidence of the challenger: on a short log there never would be, if it was replaced
                each time the log has grown by a quarter.
            number: of the round.
        Returns: `won` where `rival` has to be challenger now; then it is no rival any more.
        """
        self.recent.add(window)
        rival = self.rival
        if rival is not None:
            if not rival.caught_up:
                rival.wait_for(window)
                rival.catch_up(log, self.serving, self.config.catch_up)
                return ""
            outcome = rival.outcome(self.config.gate, self.config.contest, self.seed + number)
            if outcome == "lost":
                self.rival, challenger.learned = None, 0
            return "" if outcome == "open" else outcome
        try:
            if self.fits.busy:
                self._missed.add(window)
                if (fitted := self.fits.take()) is not None:
                    self.rival = self._rival(challenger.state(log), fitted, number)
            elif judged and self._due(challenger, log):
                self._begin(challenger, log, number)
                return "begun"
        except FitError:
            challenger.learned = 0  # another one begins when as much has come again
            return "failed"
        return ""

    def take_winner(self) -> Rival:
        """The rival, which is none any more."""
        assert self.rival is not None
        rival, self.rival = self.rival, None
        return rival

    def meets_another_challenger(self) -> None:
        if self.rival is not None:
            self.rival.contest.clear()

    def meets_another_champion(self) -> None:
        if self.rival is not None:
            self.rival.evidence.clear()

    def forget(self, user_id: str) -> None:
        """What was learned already stays, as the challenger's."""
        if self.rival is not None:
            self.rival.contest.forget(user_id)
            self.rival.evidence.forget(user_id)

    def renumbered(self) -> None:
        """The log's events have other numbers than rounds and fits were told, or somebody in them was forgotten: what
        refers to them is given up, and a whole fit begins anew."""
        self.recent.clear()
        self._missed.clear()
        self.fits.abandon()
        if self.contestant is None:
            self.rival = None

    def _due(self, challenger: Challenger, log: FeedbackLog) -> bool:
        """Whether the log has grown enough.

        Not on a log that tells less than the last fit saw, such as a trainer's that came after its model: what it was
        taught before would be forgotten.
        """
        grown = challenger.learned >= self.config.refit_growth * challenger.events
        whole = len(log) >= min(challenger.events, log.capacity)
        return grown and whole and self.recent.records >= self._left_out(log)

    def _left_out(self, log: FeedbackLog) -> int:
        """Newest records that a whole fit does not learn from."""
        return min(self.config.ahead, len(log) // 4)

    def _begin(self, challenger: Challenger, log: FeedbackLog, number: int) -> None:
        """Fit on all but the newest rounds: an encoder from nothing, since one that goes on from its present weights,
        and has passed over the log's beginning again and again, knows it by heart (models/README.md); a ranker where
        there are far more lists than the present one was fitted on.
        """
        config, lists, seed = self.config, self._lists, self.seed + number
        missed = self.recent.newest(self._left_out(log))
        self._missed.clear()
        for window in missed:
            self._missed.add(window)
        self._begun = len(log), sum(len(window.scene.records) for window in missed), len(lists)
        anew = len(lists) >= max(1, config.ranker_growth * challenger.fitted_lists)
        self.fits.begin(
            WholeFit(
                log=log.log,
                end=missed[0].start,
                encoders=challenger.encoders.anew(seed),
                rankers=RankerTrainer(config.ranker, seed) if anew else None,
                lists=lists.lists if anew else None,
                validation=config.validation,
            )
        )

    def _rival(self, state: TrainingState, fitted: Fitted, number: int) -> Rival:
        """What goes on from a fit and, beside it, from the challenger's state: it replays some of the challenger's
        lists, and its own."""
        config, lists = self.config, ListBuffer(self.config.rival_lists)
        if held := len(self._lists):
            drawn = np.random.default_rng(self.seed + number).permutation(held)[: 2 * config.rival_lists // 3]
            lists.extend(self._lists.lists.take(np.sort(drawn)))
        made, (events, ahead, fitted_lists) = self._make(state, lists), self._begun
        made.take_over(fitted, events=events, ahead=ahead, lists=fitted_lists)
        missed = list(self._missed)
        self._missed.clear()
        return Rival(made, missed, config.gate.memory)
