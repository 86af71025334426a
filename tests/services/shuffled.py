"""A trainer whose challengers learn nonsense: that users chose what others chose. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.domain.feedback import Feedback
from models.learning.contenders import Challenger
from models.learning.lists import ListBuffer, Lists
from models.learning.log import TrainingLog
from models.learning.online import OnlineTrainer
from models.learning.training_state import TrainingState


class Shuffled(Challenger):
    def learn(self, log: TrainingLog, start: int, records: Sequence[Feedback], lists: Lists) -> float:
        rng = np.random.default_rng(self.windows)
        log.item[start:] = rng.permutation(log.item[start:])
        chosen = (rng.random(len(lists.at)) * lists.size).astype(np.int32)
        return super().learn(log, start, records, replace(lists, chosen=chosen))


class ShuffledTrainer(OnlineTrainer):
    def _new_challenger(self, state: TrainingState, lists: ListBuffer) -> Challenger:
        return Shuffled(state, self.config.encoder, self.config.ranker, lists, self.seed)
