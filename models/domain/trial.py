"""A released version on trial: which users it is tried on, and how it does beside the version that they are served.

Pure. When a trial begins and ends, the release and `releases.Rollout` say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from models.domain.batch import FOLDED, Incoming, Score
from models.domain.evaluation import CUTOFF
from models.domain.events import Interaction, Recommendation, Request
from models.domain.gate import admit
from models.domain.pipeline import Pipeline
from models.domain.slices import COLD_EVENTS
from models.domain.state import UserState

# A log that no state has offsets of.
_LOG = "shadow"


def is_drawn(user_id: str, version: str, share: float) -> bool:
    """Whether a trial of the version includes the user: each version draws others, on every worker the same."""
    key = hashlib.blake2b(version.encode(), digest_size=16).digest()
    hashed = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return int.from_bytes(hashed, "big") < share * 2**64


def compare(
    pipelines: Sequence[Pipeline],
    incoming: Sequence[Incoming],
    states: Mapping[str, UserState],
    drawn: Callable[[str], bool],
) -> list[Score]:
    """Ask each pipeline for a list before a batch is played, and look where it has what users choose in it.

    A user's first record of the batch alone is looked at, if it is a choice of a known item: later ones would need
    what comes between. Statistics and states stay as they are; those of the batch's beginning are asked.

    Args:
        states: the users' states as stored; a user without one is new.
    """
    choices = _choices(pipelines[0], incoming, states, drawn)
    requests = [
        Incoming(Request(request_id=_LOG, user_id=event.user_id, k=CUTOFF, event_time_ms=event.event_time_ms), _LOG, 0)
        for _, event in choices
    ]
    scores: list[Score] = []
    for pipeline in pipelines:
        options = pipeline.options._replace(feedback=False)
        asked = pipeline.run(requests, states, generated_at_ms=lambda now: now, options=options)
        for made in asked.published:
            at, event = choices[made.position]
            listed = [item.item_id for item in _list.decode(made.data).items]
            place = listed.index(str(event.item_id)) + 1 if str(event.item_id) in listed else 0
            state = states.get(str(event.user_id))
            cold = state is None or state.events < COLD_EVENTS
            scores.append(Score(at, "shadow", pipeline.model_version, cold, place))
    return scores


def _choices(
    pipeline: Pipeline, incoming: Sequence[Incoming], states: Mapping[str, UserState], drawn: Callable[[str], bool]
) -> list[tuple[int, Interaction]]:
    """Positions and events of drawn users' first records, where these are first choices of known items."""
    met: set[str] = set()
    found: list[tuple[int, Interaction]] = []
    for at, record in enumerate(incoming):
        event, user_id = record.event, str(record.event.user_id)
        if user_id in met:
            continue
        met.add(user_id)
        if isinstance(event, Interaction) and drawn(user_id) and _is_first_choice(pipeline, record, states):
            found.append((at, event))
    return found


def _is_first_choice(pipeline: Pipeline, record: Incoming, states: Mapping[str, UserState]) -> bool:
    catalogue, event = pipeline.catalogue, record.event
    item = catalogue.index.get(str(event.item_id)) if isinstance(event, Interaction) else None
    if item is None or not catalogue.known[item]:
        return False
    user_id = str(event.user_id)
    state = states.get(user_id) or pipeline.working_copy(user_id, None)
    return catalogue.hashes[item] not in state.seen and admit(state, record, pipeline.options)[0] == FOLDED


_list = msgspec.json.Decoder(Recommendation)
