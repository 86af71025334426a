"""What a trainer is told of a slice: one record an interaction, made once the slice's lists are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from models.domain.batch import Told
from models.domain.candidates import Lists
from models.domain.events import Forget, Interaction, encoded_text
from models.domain.examples import candidates_of
from models.domain.feedback import FEEDBACK_VERSION, Candidates, Feedback, Forgotten
from models.domain.shown import Entry, Exposures, NamedBy, told
from models.domain.state import Recent, UserState


class MadeLists(NamedTuple):
    """The lists of a slice, by row."""

    lists: Lists
    items: list[tuple[str, ...]]
    """Ids, best first, cut to the length asked for."""
    sources: list[bytes]
    """Place in `SOURCES` of each item's source."""


class _Answer(NamedTuple):
    """An interaction as it was when it came."""

    position: int
    event: Interaction
    user_id: str
    item: int
    read_share: float | None
    first: bool
    history: Sequence[Recent]
    shown: tuple[NamedBy, Entry] | None
    candidates_row: int


class Telling:
    """Collects what is to be told while a slice is folded.

    Args:
        ids: of every item, by index; grows as the slice goes on.
        out: where the records go, in the order of the slice.
    """

    def __init__(self, ids: Sequence[str], model_version: str, out: list[Told]) -> None:
        self.exposures = Exposures()
        self._ids, self._model_version, self._out = ids, model_version, out
        self._answers: list[_Answer] = []

    def interaction(
        self,
        position: int,
        event: Interaction,
        state: UserState,
        item: int,
        read_share: float | None,
        first: bool,
        history: Sequence[Recent],
        candidates_row: int,
    ) -> None:
        """Call before the interaction's own list is published.

        Args:
            first: the user's first touch of an item that was known.
            history: what the user had done before; never changed in place.
            candidates_row: of the asked list whose candidates travel, -1 = none does.
        """
        shown = self.exposures.answered_by(state, event)
        self._answers.append(
            _Answer(position, event, state.user_id, item, read_share, first, history, shown, candidates_row)
        )

    def forgotten(self, position: int, event: Forget, state: UserState) -> None:
        record = Forgotten(version=FEEDBACK_VERSION, user_id=state.user_id, event_time_ms=event.event_time_ms)
        self._out.append(Told(position, record))

    def finish(self, made: MadeLists | None) -> None:
        """Make the records, and leave in the states what later interactions are joined to.

        Args:
            made: None where the slice has no list.
        """
        self.exposures.settle(made.items if made else (), made.sources if made else ())
        self._out += [Told(answer.position, self._record(answer, made)) for answer in self._answers]

    def _record(self, answer: _Answer, made: MadeLists | None) -> Feedback:
        event, item_id, row = answer.event, self._ids[answer.item], answer.candidates_row
        candidates: Candidates | None = None
        if made is not None and row >= 0:
            listed = made.items[row]
            place = listed.index(item_id) + 1 if item_id in listed else 0
            candidates = candidates_of(made.lists, row, answer.item, self._ids, place)
        return Feedback(
            version=FEEDBACK_VERSION,
            model_version=self._model_version,
            event_id=str(event.event_id),
            user_id=answer.user_id,
            item_id=item_id,
            kind=event.type,
            value=event.value,
            event_time_ms=event.event_time_ms,
            text=encoded_text(event),
            read_share=answer.read_share,
            first=answer.first,
            history=tuple(answer.history),
            shown=None if answer.shown is None else told(answer.shown[0], answer.shown[1].shown, item_id),
            candidates=candidates,
        )
