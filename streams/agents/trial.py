"""A released version that is tried on some users before it serves everybody: whose records go to which model.

Knows no release and no clock; what is tried, and until when, is `streams.agents.switching`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from models.domain.batch import Incoming
from models.domain.pipeline import Pipeline
from models.domain.ports import TextEncoder


class Trial(NamedTuple):
    pipeline: Pipeline
    """Of the tried version, over the served one's catalogue and statistics."""
    text_encoder: TextEncoder
    mode: Literal["shadow", "canary"]
    includes: Callable[[str], bool]
    """Whether a user is among those it is tried on."""


class Part(NamedTuple):
    """The records of a micro-batch that one model plays."""

    pipeline: Pipeline
    text_encoder: TextEncoder
    positions: list[int]


def parts_of(
    incoming: Sequence[Incoming], pipeline: Pipeline, text_encoder: TextEncoder, trial: Trial | None
) -> list[Part]:
    """Who plays what: the served model everything, but for the users of a canary. Of one user all or none."""
    everything = Part(pipeline, text_encoder, list(range(len(incoming))))
    if trial is None or trial.mode != "canary":
        return [everything]
    # A user's events of one batch need one answer, however many they are.
    drawn = {user_id: trial.includes(user_id) for user_id in {str(one.event.user_id) for one in incoming}}
    tried = [at for at in everything.positions if drawn[str(incoming[at].event.user_id)]]
    rest = [at for at in everything.positions if not drawn[str(incoming[at].event.user_id)]]
    parts = [everything._replace(positions=rest), Part(trial.pipeline, trial.text_encoder, tried)]
    return [part for part in parts if part.positions]
