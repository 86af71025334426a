"""Champion and challenger: a model in its serving form that ranks served lists, and one that learns on. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.domain.candidates import SOURCE_COUNT
from models.domain.feedback import Feedback
from models.domain.ports import F32, Ranker, UserEncoder
from models.learning.encoder_trainer import EncoderConfig, EncoderTrainer
from models.learning.encoder_weights import EncoderWeights
from models.learning.feedback_log import FeedbackLog
from models.learning.lists import ListBuffer, Lists
from models.learning.log import TrainingLog
from models.learning.ranker_trainer import RankerConfig, RankerTrainer
from models.learning.ranker_weights import RankerWeights
from models.learning.rescoring import Histories, ServedLists, described_anew, places, users_before
from models.learning.training_state import TrainingState
from models.learning.whole_fit import Fitted

F64 = npt.NDArray[np.float64]


class Serving(NamedTuple):
    """How weights become what ranks: the command line knows, since only it may export."""

    encoder: Callable[[EncoderWeights, Sequence[str]], UserEncoder]
    """Weights and kinds."""
    ranker: Callable[[RankerWeights, int, F32], Ranker]
    """Weights, candidates of a list, worth of the sources."""


class Contender:
    """One model version in its serving form, apart from any worker."""

    def __init__(self, state: TrainingState, serving: Serving) -> None:
        self.weights = state.encoder
        self.encoder = serving.encoder(state.encoder, state.kinds)
        self.ranker = serving.ranker(state.ranker_weights(), state.candidates, state.worth())

    def rank(
        self, log: FeedbackLog, records: Sequence[Feedback], served: ServedLists, histories: Sequence[Histories]
    ) -> tuple[F64, npt.NDArray[np.float16]]:
        """Places of what was chosen (see `rescoring.places`), and the lists' features as this model has them.

        Args:
            log: numbers all items that the records name.
            histories: of the records.
        """
        item_text = log.log.item_text
        vectors = self.weights.item_vectors(item_text, np.arange(len(item_text)))
        users = users_before(len(records), histories, self.encoder, vectors)
        features = described_anew(served, records, users, vectors, log.items.__getitem__)
        return places(served, features, self.ranker, len(records)), features


class Challenger:
    """Two networks that learn on from a state, window by window.

    Args:
        lists: rankers' examples of earlier windows, each described by the encoder before it had seen them.
    """

    def __init__(
        self, state: TrainingState, encoder: EncoderConfig, ranker: RankerConfig, lists: ListBuffer, seed: int
    ) -> None:
        self.encoders, self.rankers = state.encoders(encoder, seed), state.rankers(ranker, seed)
        self.kinds, self.candidates, self.lists = state.kinds, state.candidates, lists
        self.reached, self.reachable = state.reached.copy(), state.reachable
        self.windows = 0
        """It has learned from since it began."""
        self.events, self.fitted_lists, self.until_ms = state.events, state.lists, state.until_ms
        self.learned = 0
        """Records that it has learned from since the last whole fit, whether that took its place or not."""

    @classmethod
    def restored(
        cls,
        directory: Path,
        state: Mapping[str, Any],
        lists: ListBuffer,
        encoder: EncoderConfig,
        ranker: RankerConfig,
    ) -> Challenger:
        """The challenger whose trainers were saved into `directory`. Raises: CheckpointError."""
        challenger = cls.__new__(cls)
        challenger.encoders = EncoderTrainer.load(directory, encoder)
        challenger.rankers = RankerTrainer.load(directory, ranker)
        challenger.kinds, challenger.candidates = tuple(state["kinds"]), state["candidates"]
        challenger.lists, challenger.windows = lists, state["windows"]
        challenger.reached = np.array(state["reached"], np.float64)
        challenger.reachable = state["reachable"]
        challenger.events, challenger.fitted_lists = state["events"], state["fitted_lists"]
        challenger.until_ms, challenger.learned = state["until_ms"], state["learned"]
        return challenger

    def state(self, log: FeedbackLog) -> TrainingState:
        """What it serves now."""
        return TrainingState.of(
            self.encoders,
            self.rankers,
            item_ids=tuple(log.item_ids),
            kinds=self.kinds,
            candidates=self.candidates,
            reached=self.reached,
            reachable=self.reachable,
            events=self.events,
            lists=self.fitted_lists,
            until_ms=self.until_ms,
        )

    def learn(self, log: TrainingLog, start: int, records: Sequence[Feedback], lists: Lists) -> float:
        """
        Args:
            log: what was known when the records had come.
            start: number of the first of the records' events in the log; they stand at its end.
            lists: the records' lists, described by the challenger as it is now.
        Returns: the encoder's loss, nats.
        """
        self.lists.extend(lists.widened(self.candidates))
        if len(lists.at):
            rows = np.arange(len(self.lists))
            earlier = len(rows) - min(len(lists.at), len(rows))
            self.rankers.update(self.lists.lists, rows[earlier:], rows[:earlier])
        self.windows += 1
        self.learned += len(records)
        self.until_ms = max([self.until_ms, *(record.event_time_ms for record in records)])
        return self.encoders.update(log, start, len(log))

    def count(self, records: Sequence[Feedback]) -> None:
        """Add what the candidate sources came to."""
        reached, reachable = reached_by_sources(records)
        self.reached += reached
        self.reachable += reachable

    def take_over(self, fitted: Fitted, *, events: int, ahead: int, lists: int) -> None:
        """Go on from a whole fit's encoder, and from its ranker where it fitted one.

        Args:
            events: of the log when the fit began.
            ahead: records that it was not given of them, and that this challenger is to meet.
            lists: its ranker was fitted on.
        """
        self.encoders, self.events, self.learned = fitted.encoders, events, -ahead
        if fitted.rankers is not None:
            self.rankers, self.fitted_lists = fitted.rankers, lists


def reached_by_sources(records: Sequence[Feedback]) -> tuple[F64, int]:
    """In how many lists each source came to what was chosen, float64[SOURCE_COUNT], and in how many it could have."""
    reached, reachable = np.zeros(SOURCE_COUNT), 0
    for record in records:
        candidates = record.candidates
        # A list that was published just before the choice does not say which sources came to what was chosen.
        if candidates is not None and (candidates.chosen < 0 or any(candidates.reached)):
            reached += np.asarray(candidates.reached, np.float64)
            reachable += 1
    return reached, reachable
