"""Collects ONNX nodes with the `onnx` helper API. Knows operators and types, no model's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# LayerNormalization and every operator here exist in 17; ONNX Runtime has read it since 1.12.
OPSET = 17
IR_VERSION = 8
# Inputs that are no float32, by name.
TYPES = {
    "mask": TensorProto.BOOL,
    "kind": TensorProto.INT64,
    "terms": TensorProto.INT64,
    "rows": TensorProto.INT64,
}


@dataclass
class GraphBuilder:
    """Every operator method returns the name of its output."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    prefix: str = "n"
    """Of the names of nodes; a branch has its own, since it sees the names around it."""

    def constant(self, value: npt.ArrayLike, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def axes(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def when(
        self, condition: str, then: Callable[[], Sequence[str]], otherwise: Callable[[], Sequence[str]]
    ) -> tuple[str, ...]:
        """The outputs of one of two branches, of which only the one that is needed is computed.

        Args:
            condition: bool scalar.
            then, otherwise: add nodes and return the names of as many outputs, float32.
        """
        outer, prefix = self.nodes, self.prefix
        branches = []
        for name, build in ((f"{prefix}{len(outer)}t", then), (f"{prefix}{len(outer)}e", otherwise)):
            self.nodes, self.prefix = [], name
            outputs = build()
            values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
            branches.append(helper.make_graph(self.nodes, name, [], values))
        self.nodes, self.prefix = outer, prefix
        names = tuple(f"{prefix}{len(outer)}o{k}" for k in range(len(values)))
        outer.append(helper.make_node("If", [condition], list(names), then_branch=branches[0], else_branch=branches[1]))
        return names

    def scan(self, state: str, inputs: Sequence[str], step: Callable[..., str]) -> str:
        """The last state of a recurrence along the first axis of the inputs.

        Args:
            state: [B, S], before the first step.
            inputs: each [T, B, ...], float32.
            step: adds the nodes of one step; given the names of the state and of one [B, ...] of each input, returns
                the name of the next state.
        """
        outer, prefix = self.nodes, self.prefix
        name = f"{prefix}{len(outer)}s"
        self.nodes, self.prefix = [], name
        given = [f"{name}i{k}" for k in range(len(inputs) + 1)]
        after = step(*given)
        values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in (*given, after)]
        body = helper.make_graph(self.nodes, name, values[:-1], values[-1:])
        self.nodes, self.prefix = outer, prefix
        outer.append(helper.make_node("Scan", [state, *inputs], [f"{name}o"], body=body, num_scan_inputs=len(inputs)))
        return f"{name}o"

    def model(self, name: str, inputs: Mapping[str, tuple[Any, ...]], outputs: Mapping[str, tuple[Any, ...]]) -> bytes:
        """`inputs` and `outputs`: name -> axes; types by name (`TYPES`), else float32."""

        def value(label: str, axes: tuple[Any, ...]) -> Any:
            return helper.make_tensor_value_info(label, TYPES.get(label, TensorProto.FLOAT), axes)

        graph = helper.make_graph(
            self.nodes,
            name,
            [value(label, axes) for label, axes in inputs.items()],
            [value(label, axes) for label, axes in outputs.items()],
            self.constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="streamrec"
        )
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
