"""What a round of online learning is told, looks at and answers. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from models.domain.feedback import Feedback
from models.learning.contenders import Contender
from models.learning.gate import Decision
from models.learning.rescoring import Histories, ServedLists
from models.learning.training_state import TrainingState

Action = Literal["first", "promote", "keep", "discard", "rollback"]
FitNews = Literal["", "begun", "failed", "won", "lost"]
"""Of a whole fit, beside the rounds: at last it took the challenger's place, or was worse."""


class Observed(NamedTuple):
    """What became of records."""

    taken: int
    known: int
    """Told before: a worker repeats after a crash."""
    refused: int
    """Beyond a user's share."""
    remembered: int
    """From before the champion was fitted: they help the encoder to remember and are no examples any more."""


class Round(NamedTuple):
    """What a round found and did."""

    number: int
    action: Action
    """`promote` and `rollback` wait for `promoted` and `rolled_back`."""
    decision: Decision | None
    """Of the gate, or of the watch where it calls for a rollback; None without a challenger."""
    model: TrainingState | None
    """To publish, where the action is `promote`."""
    records: int
    unreadable: int
    """Records whose list could not be read; they are learned from as events alone."""
    served_ndcg: float
    """nDCG@10 of the lists as they were served; NaN where no list was asked."""
    champion_ndcg: float
    challenger_ndcg: float
    rival_ndcg: float
    """Of a whole fit that wants the challenger's place; NaN without one that is caught up."""
    fit: FitNews
    loss: float
    """Of the encoder, nats; NaN where nothing was trained."""
    evaluation_seconds: float
    training_seconds: float


class Scene(NamedTuple):
    """What a round's models rank."""

    records: Sequence[Feedback]
    served: ServedLists
    histories: Sequence[Histories]


class Champion(NamedTuple):
    version: str
    state: TrainingState | None
    """None for a version that was not trained here nor carries what training goes on from."""
    contender: Contender | None
