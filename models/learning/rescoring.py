"""A served list as another model would have had it: the encoder's features anew, and the place of what was chosen.

The candidates stay those of the model that served, and what the stream says of them stays as it was at that moment;
only what an encoder says is computed again. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from models.domain.batch import PipelineOptions
from models.domain.errors import EventDecodeError
from models.domain.features import FEATURE_COUNT, place_by_encoder, score_by_encoder
from models.domain.feedback import Feedback, Past, unpack_features
from models.domain.ports import F32, NO_VALUE, EventInputs, Ranker, UserEncoder
from models.domain.waves import log2_gap
from models.learning.lists import Lists

# Histories of one call of the encoder, and lists of one call of the ranker: 256 lists of 200 candidates are 11 MB.
AT_ONCE = 256

PastText = Callable[[str, Past], F32 | None]
"""User id and an event of before -> float32[E], what the user wrote with it."""


class ServedLists(NamedTuple):
    """Lists that held what was chosen, as they were served; axis L, K candidates at most."""

    row: npt.NDArray[np.int64]
    """int64[L], which record each belongs to."""
    item: npt.NDArray[np.int32]
    """int32[L, K], numbers of the candidates, 0 behind `size`."""
    features: npt.NDArray[np.float16]
    """float16[L, K, F], zeros behind `size`."""
    size: npt.NDArray[np.int32]
    chosen: npt.NDArray[np.int32]

    def take(self, rows: npt.NDArray[np.bool_]) -> ServedLists:
        return ServedLists(self.row[rows], self.item[rows], self.features[rows], self.size[rows], self.chosen[rows])

    def lists(self) -> Lists:
        return Lists(self.row, self.features, self.size, self.chosen)


def served_lists(
    records: Sequence[Feedback], number: Callable[[Sequence[str]], npt.NDArray[np.int32]]
) -> tuple[ServedLists, list[int]]:
    """
    Args:
        number: item ids -> the numbers that the item vectors are in the order of.
    Returns: (the lists, records whose list cannot be read).
    """
    found: list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float16], int]] = []
    bad: list[int] = []
    for row, record in enumerate(records):
        list_ = record.candidates
        if list_ is None or list_.chosen < 0:
            continue
        try:
            features = unpack_features(list_.features, len(list_.items))
        except EventDecodeError:
            bad.append(row)
            continue
        finite = features.shape[1] == FEATURE_COUNT and bool(np.isfinite(features).all())
        if not finite or list_.chosen >= len(list_.items) or list_.items[list_.chosen] != record.item_id:
            bad.append(row)
            continue
        found.append((row, number(list_.items), features, list_.chosen))
    widest = max((len(item) for _, item, _, _ in found), default=0)
    out = ServedLists(
        row=np.array([row for row, *_ in found], np.int64),
        item=np.zeros((len(found), widest), np.int32),
        features=np.zeros((len(found), widest, FEATURE_COUNT), np.float16),
        size=np.array([len(item) for _, item, _, _ in found], np.int32),
        chosen=np.array([chosen for *_, chosen in found], np.int32),
    )
    for at, (_, item, features, _) in enumerate(found):
        out.item[at, : len(item)], out.features[at, : len(item)] = item, features
    return out, bad


class Histories(NamedTuple):
    """What the records' users had done before, as arrays that every encoder can read; B records that have a history.

    In stretches of `AT_ONCE` rows of like lengths; T is the longest of a stretch.
    """

    row: npt.NDArray[np.int64]
    """int64[B], which record each belongs to."""
    item: npt.NDArray[np.int32]
    """int32[B, T], numbers, 0 behind the end."""
    kind: npt.NDArray[np.int64]
    """int64[B, T], index into `kinds`."""
    strength: F32
    value: F32
    log2_gap: F32
    text: Sequence[tuple[int, int, F32]]
    """(Row, place, float32[E]) of the events that were written with a text that is known."""
    length: npt.NDArray[np.int64]
    kinds: tuple[str, ...]


def histories_of(
    records: Sequence[Feedback],
    options: PipelineOptions,
    number: Callable[[Sequence[str]], npt.NDArray[np.int32]],
    past_text: PastText,
) -> list[Histories]:
    """
    Args:
        number: item ids -> the numbers that the item vectors are in the order of.
    """
    known = np.array([at for at, record in enumerate(records) if record.history], np.int64)
    known = known[np.argsort([len(records[at].history) for at in known], kind="stable")]  # like lengths side by side
    found = []
    for first in range(0, len(known), AT_ONCE):
        rows = known[first : first + AT_ONCE]
        length = np.array([len(records[at].history) for at in rows], np.int64)
        shape = len(rows), int(length[-1])
        item, kind = np.zeros(shape, np.int32), np.zeros(shape, np.int64)
        strength, value = np.zeros(shape, np.float32), np.full(shape, NO_VALUE, np.float32)
        log2_gaps, kinds, text = np.zeros(shape, np.float32), dict[str, int](), []
        told: dict[tuple[str, float | None, float | None], tuple[int, float, float]] = {}
        for row, at in enumerate(rows.tolist()):
            history, end = records[at].history, len(records[at].history)
            item[row, :end] = number([past[0] for past in history])
            says = []
            for place, past in enumerate(history):
                what = (past[1], past[2], past[4])
                if what not in told:  # a stream says a few things over and over
                    share = past[4] if past[2] is None and past[4] is not None else options.share(past[2])
                    told[what] = (kinds.setdefault(past[1], len(kinds)), options.strength(past[1], past[2]), share)
                says.append(told[what])
                if (embedding := past_text(records[at].user_id, past)) is not None:
                    text.append((row, place, embedding))
            kind[row, :end], strength[row, :end], value[row, :end] = zip(*says, strict=True)
            times = np.array([past[3] for past in history], np.int64)
            log2_gaps[row, 0] = log2_gap(-1, int(times[0]))
            log2_gaps[row, 1:end] = np.log2(1.0 + np.maximum(np.diff(times), 0) / 1_000.0)
        found.append(Histories(rows, item, kind, strength, value, log2_gaps, text, length, tuple(kinds)))
    return found


def users_before(count: int, histories: Sequence[Histories], encoder: UserEncoder, vectors: F32) -> F32:
    """User vectors just before each record, from the history it carries.

    Args:
        count: of the records.
        vectors: float32[N, D], of all items.
    Returns: float32[count, D].
    """
    kind_index = {kind: at for at, kind in enumerate(encoder.kinds)}
    # As in serving: an item of which nothing is known but its bias tells the encoder nothing.
    has_vector = np.any(vectors[:, :-1] != 0.0, axis=1)
    named = vectors * has_vector[:, None]
    users = np.tile(encoder.initial_user(), (count, 1))
    for part in histories:
        mask = np.arange(part.item.shape[1]) < part.length[:, None]
        text = np.zeros((*mask.shape, encoder.text_dimension), np.float32)
        for row, place, embedding in part.text:
            text[row, place] = embedding
        kinds = np.array([kind_index.get(kind, 0) for kind in part.kinds], np.int64)
        inputs = EventInputs(
            item=named[part.item] * mask[..., None],
            text=text,
            kind=kinds[part.kind],
            strength=part.strength,
            value=part.value,
            log2_gap=part.log2_gap,
        )
        state = np.tile(encoder.initial_state(), (len(part.row), 1))
        users[part.row] = encoder.sequence(state, inputs, mask)[1]
    return users


def described_anew(
    lists: ServedLists, records: Sequence[Feedback], users: F32, vectors: F32, number: Callable[[str], int]
) -> npt.NDArray[np.float16]:
    """The lists' features with what this encoder says of the candidates.

    Args:
        users: float32[len(records), D], before each record.
        number: item id -> number.
    Returns: float16[L, K, F].
    """
    last = np.array(
        [number(records[row].history[-1][0]) if records[row].history else -1 for row in lists.row.tolist()], np.int64
    )
    out = np.empty_like(lists.features)
    for first in range(0, len(out), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        features = lists.features[rows].astype(np.float32)
        _describe(vectors, users[lists.row[rows]], last[rows], lists.item[rows], lists.size[rows], features)
        out[rows] = features
    return out


@njit(cache=True, nogil=True)
def _describe(vectors, users, last, item, size, features):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for row in range(len(size)):
        items = item[row, : size[row]]
        score_by_encoder(vectors, users[row], items, features[row])
        place_by_encoder(vectors, last[row], items, features[row])


def places(
    lists: ServedLists, features: npt.NDArray[np.float16], ranker: Ranker, records: int
) -> npt.NDArray[np.float64]:
    """1-based places of what was chosen by this ranker, a tie counted half.

    Args:
        features: float16[L, K, F], the lists' own or described anew.
        records: how many there are; one whose list did not hold what was chosen is a miss for every model.
    Returns: float64[records], infinity where it was missed.
    """
    found = np.full(records, np.inf)
    weights, own = ranker.initial_weights, Lists(lists.row, features, lists.size, lists.chosen)
    for first in range(0, len(features), AT_ONCE):
        some = features[first : first + AT_ONCE, :, : len(ranker.features)].astype(np.float32)
        scores = ranker.score(some, None if weights is None else np.tile(weights, (len(some), 1)))
        rows = np.arange(first, first + len(some))
        found[lists.row[rows]] = own.places(np.asarray(scores, np.float32), rows)
    return found
