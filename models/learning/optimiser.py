"""An optimiser for a network whose tables grow: what it keeps of each parameter moves on with it."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(
    old: torch.optim.Optimizer, former: dict[str, Tensor], present: dict[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser for parameters of which some gained rows, the moments of the others kept."""
    group = old.param_groups[0]
    new = torch.optim.AdamW(present.values(), lr=group["lr"], weight_decay=group["weight_decay"], foreach=True)
    new.param_groups[0]["initial_lr"] = group["initial_lr"]
    for name, parameter in present.items():
        state = old.state.get(former[name])
        if state:
            more = len(parameter) - len(former[name])
            padding = [0, 0] * (parameter.dim() - 1) + [0, more]
            new.state[parameter] = {
                key: torch.nn.functional.pad(value, padding) if value.dim() else value for key, value in state.items()
            }
    return new
