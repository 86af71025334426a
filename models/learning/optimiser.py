"""An optimiser for a network whose tables grow: what it keeps of each parameter moves on with it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.learning.averaging import with_rows


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
            rows = len(parameter)
            new.state[parameter] = {
                key: with_rows(value, rows) if value.dim() else value for key, value in state.items()
            }
    return new
