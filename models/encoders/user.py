"""The user encoder over two ONNX graphs, step and sequence. Knows the names of their inputs, not what they compute.

Graph contract. Step: `state` float32[B, S] and any of the fields of `EventInputs` -> `next_state` float32[B, S], `user`
float32[B, D]. Sequence: the same with a time axis after B, and `mask` bool[B, T]. An input that a graph does not
declare is not fed, so that a bundle pays only for what it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.domain.errors import EncoderError
from models.domain.ports import F32, EventInputs
from models.encoders.session import input_names, output_names, run

OUTPUTS = ("next_state", "user")
FIELD_INDEX = {name: index for index, name in enumerate(EventInputs._fields)}


class OnnxUserEncoder:
    """`UserEncoder` on ONNX Runtime; safe to call from several threads.

    Args:
        step, sequence: sessions of the two graphs.
        kinds: names by index; the first is the empty name, a kind the bundle does not know.
    Raises: EncoderError when a graph breaks the contract above.
    """

    def __init__(
        self, step: Any, sequence: Any, *, kinds: Sequence[str], state_size: int, dimension: int, text_dimension: int
    ) -> None:
        self.kinds: Sequence[str] = tuple(kinds)
        self.state_size = state_size
        self.dimension = dimension
        self.text_dimension = text_dimension
        self._step, self._sequence = step, sequence
        self._step_fields = _fields("step", step, extra={"state"})
        self._sequence_fields = _fields("sequence", sequence, extra={"state", "mask"})

    def initial_state(self) -> F32:
        return np.zeros(self.state_size, np.float32)

    def initial_user(self) -> F32:
        """The vector of a user without events, read off by an event that says nothing.

        Returns: float32[D].
        """
        nothing = EventInputs(
            item=np.zeros((1, self.dimension), np.float32),
            text=np.zeros((1, self.text_dimension), np.float32),
            kind=np.zeros(1, np.int64),
            strength=np.zeros(1, np.float32),
            value=np.full(1, -1, np.float32),
            log2_gap=np.full(1, -1, np.float32),
        )
        user: F32 = self.step(self.initial_state()[None], nothing)[1][0]
        return user

    def step(self, state: F32, inputs: EventInputs) -> tuple[F32, F32]:
        feed: dict[str, Any] = {"state": state}
        for name, index in self._step_fields:
            feed[name] = inputs[index]
        next_state, user = run(self._step, OUTPUTS, feed)
        return next_state, user

    def sequence(self, state: F32, inputs: EventInputs, mask: npt.NDArray[np.bool_]) -> tuple[F32, F32]:
        if mask.shape[1] == 0:
            # ONNX Runtime's reductions fail on an empty axis; one place that holds no event says the same.
            mask = np.zeros((len(mask), 1), np.bool_)
            inputs = EventInputs(*(np.zeros((len(f), 1, *f.shape[2:]), f.dtype) for f in inputs))
        feed: dict[str, Any] = {"state": state, "mask": mask}
        for name, index in self._sequence_fields:
            feed[name] = inputs[index]
        next_state, user = run(self._sequence, OUTPUTS, feed)
        return next_state, user


def _fields(graph: str, session: Any, extra: set[str]) -> tuple[tuple[str, int], ...]:
    declared = set(input_names(session))
    unknown = declared - extra - FIELD_INDEX.keys()
    if unknown or not extra <= declared:
        raise EncoderError(
            f"{graph}: inputs are {sorted(declared)}; needed {sorted(extra)}, possible {sorted(FIELD_INDEX)}"
        )
    if set(output_names(session)) != set(OUTPUTS):
        raise EncoderError(f"{graph}: outputs are {sorted(output_names(session))}, needed {sorted(OUTPUTS)}")
    return tuple((name, FIELD_INDEX[name]) for name in EventInputs._fields if name in declared)
