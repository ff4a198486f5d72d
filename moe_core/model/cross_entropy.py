"""The language-model loss from the states that the output head reads, with all logits at once or some rows at a time.

All at once keeps [T, V] logits for the backward pass, and makes their log-softmax and their gradient beside them: at a
vocabulary of 32,768 that is half of a step's memory. In chunks the gradient is made right behind the logits, and no
chunk outlives the next (decision 0041).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_core.model.logit_chunks import chunk_rows

IGNORED = -1
"""A target that is not scored."""


def cross_entropy(states_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -ln softmax(head states)[target] over the targets that are not IGNORED, in nats; a float32 scalar.

    Products are in autocast's precision where it is on, else in that of the states; softmax and sums in float32.
    NaN where every target is ignored.
    """
    rows = chunk_rows(len(states_ND), len(head_VD))
    if rows is not None and torch.is_grad_enabled():
        return chunked_cross_entropy(states_ND, head_VD, targets_N, rows)
    logits_NV = torch.nn.functional.linear(states_ND, head_VD)
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORED)


def chunked_cross_entropy(states_ND: Tensor, head_VD: Tensor, targets_N: Tensor, rows: int) -> Tensor:
    """The same, `rows` rows of logits at a time. The gradient is made on the way, and there is none of a gradient."""
    device = states_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_ND.dtype
    loss: Tensor = _Chunked.apply(states_ND, head_VD, targets_N, rows, dtype)  # type: ignore[no-untyped-call]
    return loss


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_ND: Tensor, head_VD: Tensor, targets_N: Tensor, rows: int, dtype: torch.dtype
    ) -> Tensor:
        used_N = targets_N != IGNORED
        # Gradients of logits, at most 1 / N, would be lost in float16, whose numbers end at 6e-8. They are made larger
        # by a power of two, which rounds nothing, and no larger than leaves room for sums of them.
        raised = 2.0 ** max(0, len(states_ND).bit_length() - 5)
        share_N1 = (used_N / used_N.sum())[:, None] * raised
        places_N1 = targets_N.clamp(min=0)[:, None]
        d_states_ND = torch.empty_like(states_ND)
        # Gradients of chunks are added up in float32, however coarse the products are.
        d_head_VD = torch.zeros_like(head_VD, dtype=torch.float32)
        loss = torch.zeros((), device=states_ND.device)
        with torch.autocast(states_ND.device.type, enabled=False):
            weight_VD = head_VD.to(dtype)
            for start in range(0, len(states_ND), rows):
                part = slice(start, start + rows)
                x_nD = states_ND[part].to(dtype)
                nats, d_logits_nV = _nats_and_gradient(x_nD @ weight_VD.t(), places_N1[part], share_N1[part])
                loss += nats
                d_states_ND[part] = d_logits_nV @ weight_VD
                d_head_VD += d_logits_nV.t() @ x_nD
                del d_logits_nV  # before the next chunk is made
        ctx.save_for_backward(d_states_ND, d_head_VD)
        ctx.raised = raised
        return loss / raised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_states_ND, d_head_VD = ctx.saved_tensors
        d_loss = d_loss / ctx.raised
        return d_loss * d_states_ND, d_loss * d_head_VD, None, None, None


def _nats_and_gradient(logits_nV: Tensor, targets_n1: Tensor, share_n1: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of share * -ln softmax(logits)[target], and its gradient [n, V] by the logits, (softmax - 1 at the target) *
    share."""
    log_p_nV = torch.log_softmax(logits_nV, dim=-1, dtype=torch.float32)
    own_n1 = log_p_nV.gather(1, targets_n1)
    d_logits_nV = log_p_nV.exp_().scatter_(1, targets_n1, own_n1.expm1()).mul_(share_n1)
    return -(own_n1 * share_n1).sum(), d_logits_nV.to(logits_nV.dtype)
