"""The unscaled auxiliary losses of one MoE layer, pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


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
