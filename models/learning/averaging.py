"""A running average of a network's weights: what is served, while the raw ones are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def with_rows(table: Tensor, rows: int) -> Tensor:
    """The table with zeros behind its own rows, `rows` in all."""
    return functional.pad(table, [0, 0] * (table.dim() - 1) + [0, rows - len(table)])


class WeightAverage:
    """Exponential average of all parameters, by name.

    Args:
        keep: share that one update leaves in place; early updates move it faster (keep <= 1 - 5 / (10 + updates)), so
            that an average of few updates is not mostly their start.
        early: False for an average that continues another one's.
    """

    def __init__(self, network: nn.Module, keep: float, *, early: bool) -> None:
        self.keep = keep
        self.updates = 0
        self._early = early
        self._parameters = network
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in network.named_parameters()
        }

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        keep = min(self.keep, 1 - 5 / (10 + self.updates)) if self._early else self.keep
        values = [parameter.detach() for parameter in self._parameters.parameters()]
        torch._foreach_lerp_(list(self.tensors.values()), values, 1 - keep)

    def copy(self) -> dict[str, Tensor]:
        """The tensors as they are now."""
        return {name: tensor.clone() for name, tensor in self.tensors.items()}

    def grow(self) -> None:
        """Take in the rows that the network's tables gained."""
        for name, parameter in self._parameters.named_parameters():
            old = self.tensors[name]
            if len(parameter) > len(old):
                wide = with_rows(old, len(parameter))
                wide[len(old) :] = parameter.detach()[len(old) :]
                self.tensors[name] = wide
