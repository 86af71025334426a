"""Opens and runs ONNX Runtime sessions: providers, threads, and one error type. Knows nothing of what a graph means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from models.domain.errors import EncoderError

CPU = "CPUExecutionProvider"
# ONNX Runtime's own warnings (fallbacks of single nodes, unused initialisers) are no news to an operator; errors are.
LOG_ERRORS_ONLY = 3


def usable_providers(requested: Sequence[str]) -> list[str]:
    """The requested providers that this build of ONNX Runtime has, in the order asked; the CPU closes the list."""
    available = set(ort.get_available_providers())
    chosen = [name for name in requested if name in available and name != CPU]
    return [*chosen, CPU]


def open_session(name: str, model: bytes, providers: Sequence[str], threads: int, *, shapes_vary: bool = False) -> Any:
    """A session over the bytes of a graph. Bytes and not a path: what was checked is what runs.

    Args:
        name: of the graph, for messages.
        threads: intra-op threads; a worker shares its cores with an event loop, so 1 unless measured otherwise.
        shapes_vary: True where nearly every call has another shape; a memory plan a shape would only pile up.
    Raises: EncoderError when ONNX Runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool burns the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = LOG_ERRORS_ONLY
    options.enable_mem_pattern = not shapes_vary
    try:
        return ort.InferenceSession(model, options, providers=usable_providers(providers))
    except Exception as error:  # its exceptions share no base but Exception
        raise EncoderError(f"{name}: ONNX Runtime cannot load the graph: {error}") from error


def input_names(session: Any) -> tuple[str, ...]:
    return tuple(node.name for node in session.get_inputs())


def output_names(session: Any) -> tuple[str, ...]:
    return tuple(node.name for node in session.get_outputs())


def static_shape(node: Any) -> list[int | None]:
    """Declared axes of a graph's input or output; None where the axis is free."""
    return [size if isinstance(size, int) else None for size in node.shape]


def run(session: Any, outputs: Sequence[str] | None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Raises: EncoderError when the graph fails, a wrong shape or type included."""
    try:
        results: list[npt.NDArray[Any]] = session.run(outputs, feed)
    except Exception as error:
        raise EncoderError(f"the graph failed: {error}") from error
    return results
