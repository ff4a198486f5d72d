"""The unscaled auxiliary losses of one MoE layer, pure functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def load_balancing_loss(
    router_logits: Tensor, router_indices: Tensor, num_experts: int, score_function: str = "softmax"
) -> Tensor:
    """E * sum_e f_e * P_e (Switch, arXiv:2101.03961, eq. 4-6): 1 at perfectly even routing, E when all is one expert's.

    f_e is expert e's share of the used slots of `router_indices` [T, K] (-1 = unused), P_e the mean of its probability
    over the T tokens of `router_logits` [T, E]: the softmax, or the sigmoid divided by the token's sum of sigmoids
    (DeepSeek-V3, arXiv:2412.19437, eq. 18-20). The gradient flows through P alone. Float32 scalar.
    """
    counts_E = torch.bincount(router_indices.flatten() + 1, minlength=num_experts + 1)[1:]
    share_E = counts_E.float() / counts_E.sum()
    probability_E = _probabilities(router_logits.float(), score_function).mean(dim=0)
    return num_experts * torch.dot(share_E, probability_E)


def router_z_loss(router_logits: Tensor) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv:2202.08906, eq. 5): keeps logits small. Float32 scalar."""
    return router_logits.float().logsumexp(dim=-1).square().mean()


def _probabilities(logits_TE: Tensor, score_function: str) -> Tensor:
    """[T, E], each row sums to 1. Sigmoids by way of logarithms: those of very negative logits underflow to 0."""
    return (logits_TE if score_function == "softmax" else nn.functional.logsigmoid(logits_TE)).softmax(dim=-1)
