"""The language-model loss, and the unscaled auxiliary losses of one MoE layer; all pure functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def load_balancing_loss(router_logits: Tensor, router_indices: Tensor, num_experts: int) -> Tensor:
    """E * sum_e f_e * P_e (Switch, arXiv:2101.03961, eq. 4-6): 1 at perfectly even routing, E when all is one expert's.

    f_e is expert e's share of the used slots of `router_indices` [T, K] (-1 = unused), P_e the mean of its softmax
    probability over the T tokens of `router_logits` [T, E]. The gradient flows through P alone. Float32 scalar.
    """
    counts_E = torch.bincount(router_indices.flatten() + 1, minlength=num_experts + 1)[1:]
    share_E = counts_E.float() / counts_E.sum()
    probability_E = router_logits.float().softmax(dim=-1).mean(dim=0)
    return num_experts * torch.dot(share_E, probability_E)


def router_z_loss(router_logits: Tensor) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv:2202.08906, eq. 5): keeps logits small. Float32 scalar."""
    return router_logits.float().logsumexp(dim=-1).square().mean()


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not negative. Float32 scalar; NaN if there is none.

    logits [..., V], targets int64 [...]. Equal to torch's cross_entropy with ignore_index, in fewer passes over the
    largest tensor of a training step.
    """
    flat = logits.reshape(-1, logits.shape[-1]).float()
    loss: Tensor = _CrossEntropy.apply(flat, targets.reshape(-1))  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    """d loss / d logits = (softmax - one_hot) / targets counted: one exponential of what the forward pass kept."""

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        counted_T = targets_T >= 0
        columns_T1 = targets_T.clamp(min=0)[:, None]
        log_probabilities_TV = logits_TV.log_softmax(dim=-1)
        share_T = counted_T.float() / counted_T.sum()
        ctx.save_for_backward(log_probabilities_TV, columns_T1, share_T)
        picked_T = log_probabilities_TV.gather(1, columns_T1)[:, 0]
        return -torch.dot(picked_T.masked_fill(~counted_T, 0.0), share_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        log_probabilities_TV, columns_T1, share_T = ctx.saved_tensors
        d_logits_TV = log_probabilities_TV.exp()
        d_logits_TV.scatter_add_(1, columns_T1, torch.full_like(columns_T1, -1.0, dtype=d_logits_TV.dtype))
        return d_logits_TV.mul_((share_T * d_loss)[:, None]), None
