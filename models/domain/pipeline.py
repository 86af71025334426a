"""From events to lists: the one road that the worker and the backtest share.

`Pipeline.run` takes records in log order with the users' states and gives new states, lists, statistics and online
scores. It reads no clock and does no I/O. Statistics and adaptive weights are the pipeline's own and change as it runs;
states are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from models.domain import ranking
from models.domain.batch import BatchResult, Incoming, PipelineOptions
from models.domain.candidates import CANDIDATES, SOURCE_COUNT, Scratch, new_scratch, turns_of
from models.domain.catalogue import Catalogue
from models.domain.events import Forget
from models.domain.features import BASE_COUNT
from models.domain.item_vectors import ItemVectors
from models.domain.ports import F32, NO_VALUE, EventInputs, Ranker, UserEncoder, ValueReader
from models.domain.ranking import AdaptiveWeights
from models.domain.slices import Slice
from models.domain.state import UserState
from models.domain.statistics import TOP_LIST_LENGTH, Statistics
from models.domain.waves import log2_gap

# Events played per compiled call: large enough that numpy's and ONNX Runtime's fixed costs vanish, small enough that
# the features of its lists (11 KB each, four times that for a learned ranker) stay near.
SLICE = 256
# Items the vector index proposes: eight sources in turn reach a depth of some twenty before 128 candidates are found.
# Where sources have different worth, half of the candidates may come from it.
NEAREST = 32

Stage = Callable[[str], AbstractContextManager[object]]


class NearestItems(Protocol):
    """The vector index as a candidate source, for catalogues too large for an exact pass."""

    def nearest(
        self,
        users: F32,
        excluded: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        depth: int,
    ) -> npt.NDArray[np.int32]:
        """
        Args:
            users: float32[L, D].
            excluded: item indices; those of row i are excluded[starts[i]:ends[i]].
        Returns: int32[L, depth], item indices best first, -1 padded.
        """
        ...


def untimed(_: str) -> AbstractContextManager[object]:
    """A stage that nobody times."""
    return nullcontext()


class Pipeline:
    """Folds events and makes lists.

    Args:
        nearest: the vector index to ask; None = an exact pass over the catalogue's vectors.
        reader: reads values from texts for the encoder, where users gave none; None leaves them without.
        stage: called with a stage's name, gives the context manager that times it.
        vectors: this model's, attached to the catalogue; None = those that the catalogue serves.
    """

    def __init__(
        self,
        *,
        encoder: UserEncoder,
        ranker: Ranker,
        model_version: str,
        options: PipelineOptions,
        catalogue: Catalogue | None = None,
        statistics: Statistics | None = None,
        nearest: NearestItems | None = None,
        stage: Stage = untimed,
        reader: ValueReader | None = None,
        vectors: ItemVectors | None = None,
    ) -> None:
        self.options = options
        self.catalogue = Catalogue(encoder.dimension) if catalogue is None else catalogue
        self.statistics = statistics or Statistics()
        self._own_vectors = vectors
        self.index, self.stage = nearest, stage
        self.json = msgspec.json.Encoder()
        self._scratch = new_scratch(1)
        self.refolded = 0
        """States of another model's that were rebuilt, so far."""
        self.use(encoder, ranker, model_version, reader)

    def use(self, encoder: UserEncoder, ranker: Ranker, model_version: str, reader: ValueReader | None = None) -> None:
        """Serve another model from the next batch on; states are refolded as they come. Item vectors are the caller's.

        A log-linear ranker starts from its bundle's weights again.
        """
        self.encoder, self.ranker, self.model_version, self.reader = encoder, ranker, model_version, reader
        initial, worth = ranker.initial_weights, ranker.source_weights
        self.weights = None if initial is None else AdaptiveWeights(initial)
        self.learned = len(ranker.features) > BASE_COUNT
        """Whether the ranker reads the features that only a learned one makes use of."""
        self.candidates = ranker.candidates or CANDIDATES
        self.nearest_depth = max(NEAREST, self.candidates // 2) if self.learned else NEAREST
        self.turns = turns_of(
            np.ones(SOURCE_COUNT) if worth is None else np.asarray(worth, np.float64),
            max(TOP_LIST_LENGTH, self.nearest_depth),
        )
        self._kinds = {kind: at for at, kind in enumerate(encoder.kinds)}
        self.newcomer = encoder.initial_user()
        """float32[D], the vector of a user without events; never changed in place."""

    def beside(
        self,
        encoder: UserEncoder,
        ranker: Ranker,
        model_version: str,
        reader: ValueReader | None,
        nearest: NearestItems | None,
        vectors: ItemVectors | None,
    ) -> Pipeline:
        """Another model over the same catalogue and statistics."""
        return Pipeline(
            encoder=encoder,
            ranker=ranker,
            model_version=model_version,
            options=self.options,
            catalogue=self.catalogue,
            statistics=self.statistics,
            nearest=nearest,
            stage=self.stage,
            reader=reader,
            vectors=vectors,
        )

    @property
    def vectors(self) -> ItemVectors:
        return self.catalogue.served if self._own_vectors is None else self._own_vectors

    def run(
        self,
        incoming: Sequence[Incoming],
        states: Mapping[str, UserState],
        *,
        generated_at_ms: Callable[[int], int],
        stream_now_ms: int = 0,
        texts: Mapping[str, F32] | None = None,
        options: PipelineOptions | None = None,
        positions: Sequence[int] | None = None,
        into: BatchResult | None = None,
    ) -> BatchResult:
        """Play records in log order.

        Args:
            states: the users' states as stored; a user without one is new.
            generated_at_ms: event time -> when the list is said to be made (wall time in a worker).
            stream_now_ms: the stream's clock, for requests without a time of their own.
            texts: embedding (float32[E]) of each text that the records carry.
            options: instead of the pipeline's own, for this batch.
            positions: of the records that are played, in order; None = all. Of one user all or none.
            into: what other positions of the batch led to already; this is added to it.
        """
        result = BatchResult(len(incoming)) if into is None else into
        before = None if self.weights is None else (self.weights.weights.copy(), self.weights.squares.copy())
        chosen = enumerate(incoming) if positions is None else ((at, incoming[at]) for at in positions)
        for records in _slices(chosen):
            Slice(
                self, records, states, result, options or self.options, generated_at_ms, stream_now_ms, texts or {}
            ).play()
        if self.weights is not None and before is not None:
            result.weights, result.squares = self.weights.weights - before[0], self.weights.squares - before[1]
        return result

    def working_copy(self, user_id: str, stored: UserState | None) -> UserState:
        """A state to change: a copy of the stored one, refolded when another model wrote it, or a new one."""
        if stored is None:
            return UserState(user_id, self.encoder.initial_state(), self.newcomer, self.model_version)
        state = stored.copy()
        if state.model_version != self.model_version:
            self.refold(state)
        state.resolve(self.catalogue)
        return state

    def refold(self, state: UserState) -> None:
        """Rebuild the encoder's part of a state that another model wrote, from the interactions it remembers."""
        self.refolded += 1
        state.memory, state.model_version = self.encoder.initial_state(), self.model_version
        state.user = self.newcomer
        history = state.recent
        if not history:
            return
        times = [-1, *(r.event_time_ms for r in history)]
        items = self.catalogue.intern_many([r.item_id for r in history])
        inputs = EventInputs(
            item=self.vectors.rows[items][None],
            text=np.zeros((1, len(history), self.encoder.text_dimension), np.float32),
            kind=np.array([[self.kind_index(r.kind) for r in history]], np.int64),
            strength=np.array([[self.options.strength(r.kind, r.value) for r in history]], np.float32),
            value=np.array([[self.encoded_value(r.value, r.read_share) for r in history]], np.float32),
            log2_gap=np.array([[log2_gap(a, b) for a, b in pairwise(times)]], np.float32),
        )
        memory, users = self.encoder.sequence(state.memory[None], inputs, np.ones((1, len(history)), np.bool_))
        state.memory, state.user = memory[0], users[0]

    def encoded_value(self, value: float | None, read_share: float | None) -> float:
        """What the encoder is told: the user's own value, else what was read, where the model was trained on that."""
        if value is None and read_share is not None:
            return NO_VALUE if self.reader is None else read_share
        return self.options.share(value)

    def kind_index(self, kind: str) -> int:
        return self._kinds.get(kind, 0)

    def nearest_to(
        self, users: F32, excluded: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """Returns: int32[L, E]; rows of -1 for users of whom the encoder knows nothing."""
        if self.index is not None:
            return self.index.nearest(users, excluded, starts, ends, self.nearest_depth)
        out = np.full((len(users), self.nearest_depth), -1, np.int32)
        items = len(self.catalogue)
        eligible = self.vectors.present[:items] & self.catalogue.available[:items]
        known = np.flatnonzero(np.any(users[:, :-1] != 0.0, axis=1))
        if len(known) and eligible.any():
            places = np.empty((len(known), self.nearest_depth), np.int32)
            scores = np.empty((len(known), items), np.float32)
            ranking.inner_products(users[known], self.vectors.rows, scores)
            ranking.nearest(scores, eligible, excluded, starts[known], ends[known], places)
            out[known] = places
        return out

    def scratch(self) -> Scratch:
        if len(self._scratch.listed) < self.statistics.capacity:
            self._scratch = new_scratch(self.statistics.capacity)
        return self._scratch


def _slices(incoming: Iterable[tuple[int, Incoming]]) -> list[list[tuple[int, Incoming]]]:
    """Cut a batch; whoever asks to be forgotten stands alone, so that nothing of before him is still under way."""
    slices: list[list[tuple[int, Incoming]]] = []
    current: list[tuple[int, Incoming]] = []
    for position, record in incoming:
        alone = isinstance(record.event, Forget)
        if current and (alone or len(current) == SLICE):
            slices.append(current)
            current = []
        current.append((position, record))
        if alone:
            slices.append(current)
            current = []
    return [*slices, current] if current else slices
