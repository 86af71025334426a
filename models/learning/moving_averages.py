"""The recurrence of the user encoder's banks over a whole history, with its gradient written out.

Autograd over T small steps costs ten times the arithmetic; here a step is one fused operation forward and one backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class MovingAverages(torch.autograd.Function):
    """s_t = s_{t-1} + (1 - lam) * (m_t - d_t * s_{t-1}), for every bank and dimension.

    Args:
        start: float32[B, K, W], the state before the first event.
        moves: float32[T, B, W], what each event adds; zero where nothing happened.
        decays: float32[K, W], lam of each bank and dimension.
        decaying: float32[T, B], 1 where the event lets the state decay, else 0.
    Returns: float32[T, B, K, W], the state after each event.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, moves: Tensor, decays: Tensor, decaying: Tensor) -> Tensor:
        length, batch, width = moves.shape
        states = moves.new_empty(length, batch, len(decays), width)
        rest = 1 - decays
        state, plain = start, bool((decaying == 1).all())
        for time in range(length):
            move = moves[time].unsqueeze(1)  # [B, 1, W]
            if plain:
                torch.lerp(move, state, decays, out=states[time])
            else:
                difference = move - decaying[time].view(-1, 1, 1) * state  # [B, K, W]
                torch.addcmul(state, rest, difference, out=states[time])
            state = states[time]
        ctx.save_for_backward(start, moves, decays, decaying, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        start, moves, decays, decaying, states = ctx.saved_tensors
        rest = 1 - decays
        plain = bool((decaying == 1).all())
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # [T, B, K, W]
        for time in range(len(moves) - 1, 0, -1):
            keep = decays if plain else 1 - decaying[time].view(-1, 1, 1) * rest
            total[time - 1].addcmul_(total[time], keep)
        to_start = total[0] * (1 - decaying[0].view(-1, 1, 1) * rest)
        # With respect to lam an event's effect is d * s_{t-1} - m.
        weighted = total if plain else total * decaying.view(*decaying.shape, 1, 1)
        to_decays = (weighted[0] * start).sum(0) + (weighted[1:] * states[:-1]).sum((0, 1))
        to_decays = to_decays - (total * moves.unsqueeze(2)).sum((0, 1))  # [K, W]
        to_moves = total.mul_(rest).sum(2)  # [T, B, W]
        return to_start, to_moves, to_decays, None
