"""A gated recurrent unit over a whole history, with its gradient written out.

Autograd over T small steps costs twice the time: it multiplies once a step for the gradient of the weights, and keeps
every intermediate. Here that is one product over all steps, and a step backward is four operations.
The reset gate hears the event alone: what it learned from the state gained nothing (models/README.md).
Source: Cho et al. 2014; the reset gate acts after the product, as in torch.nn.GRU and ONNX's `linear_before_reset`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class GatedRecurrence(torch.autograd.Function):
    """r = sigmoid(x_r);  z = sigmoid(x_z + h U_z);  n = tanh(x_n + r * (h U_n + b));  h <- n + z * (h - n).

    The last one where an event is live.

    Args:
        start: float32[B, S], the state before the first event.
        inputs: float32[T, B, 3 S], the events' share of reset gate, update gate and new state, biases included.
        weight: float32[S, 2 S], U: update gate, new state.
        bias: float32[S], b.
        live: float32[T, B], 1 where the event moves the state, else 0: the state stays as it is.
    Returns: float32[T, B, S], the state after each event.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor, live: Tensor) -> Tensor:
        length, batch, size = len(inputs), len(start), len(weight)
        resets = torch.sigmoid(inputs[..., :size])
        states, updates, news, pasts = (inputs.new_empty(length, batch, size) for _ in range(4))
        product = inputs.new_empty(batch, 2 * size)
        plain, still = bool((live == 1).all()), (1 - live).unsqueeze(-1)  # [T, B, 1]
        product_update, product_new = product[:, :size], product[:, size:]
        state = start
        # Views of single steps made all at once: made one by one they cost as much as the arithmetic.
        for update, reset, past, new, after, to_gate, to_state, stays in zip(
            updates.unbind(),
            resets.unbind(),
            pasts.unbind(),
            news.unbind(),
            states.unbind(),
            inputs[..., size : 2 * size].unbind(),
            inputs[..., 2 * size :].unbind(),
            still.unbind(),
            strict=True,
        ):
            torch.mm(state, weight, out=product)
            torch.add(to_gate, product_update, out=update)
            update.sigmoid_()
            if not plain:
                torch.maximum(update, stays, out=update)
            torch.add(product_new, bias, out=past)
            torch.addcmul(to_state, reset, past, out=new)
            new.tanh_()
            state = torch.lerp(new, state, update, out=after)
        ctx.save_for_backward(start, weight, resets, updates, states, news, pasts)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        start, weight, resets, updates, states, news, pasts = ctx.saved_tensors
        length, batch, size = states.shape
        before = torch.cat([start.unsqueeze(0), states[:-1]])  # [T, B, S]
        # What a unit of gradient on the state after an event is worth to each of its parts; zero where it is not live.
        to_new = (1 - updates) * (1 - news * news)
        parts = torch.cat([(before - news) * updates * (1 - updates), to_new * resets], dim=2).view(
            length, batch, 2, size
        )
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # [T, B, S]
        back = weight.T.contiguous()
        totals, shares, kept = total.unbind(), parts.unbind(), updates.unbind()
        for time in range(length - 1, -1, -1):
            share = shares[time].mul_(totals[time].unsqueeze(1))  # [B, 2, S]
            earlier = torch.addmm(totals[time] * kept[time], share.view(batch, -1), back)
            if time:
                totals[time - 1].add_(earlier)
        flat = parts.view(length * batch, 2 * size)
        to_weight = before.view(length * batch, size).T @ flat
        to_bias = parts[:, :, 1].sum((0, 1))
        to_new *= total
        to_inputs = torch.cat([to_new * pasts * resets * (1 - resets), parts[:, :, 0], to_new], dim=2)
        return earlier, to_inputs, to_weight, to_bias, None
