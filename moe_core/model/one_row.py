"""Products of a single row where no gradient is wanted, as when a text is decoded: there every call counts.

MKL multiplies a matrix by one vector at half the speed at which memory could deliver the matrix, by two of them at full
speed (docs/LOG.md, 2026-11-23). So a row goes together with its twin, and one of the two results is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.model.activation import Activation

WIDEST = 1024
"""Rows longer than this are faster alone; measured up to 2,048."""


def alone(x: Tensor) -> bool:
    """Whether x is a single row [..., D] that these functions are for."""
    return x.numel() == x.shape[-1] and x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()


def twin(x_1D: Tensor) -> Tensor:
    """[D, 2], both columns equal; [D, 1] if a row is faster alone."""
    row_1D = x_1D.reshape(1, -1)
    return (row_1D if row_1D.shape[1] > WIDEST else torch.cat((row_1D, row_1D))).t()


def product(weight_RD: Tensor, twin_D2: Tensor) -> Tensor:
    """W x: [R]."""
    return torch.mm(weight_RD, twin_D2)[:, 0]


def gated_product(twin_D2: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, activation: Activation) -> Tensor:
    """down(activation(gate x) * up x): [D]."""
    hidden_F2 = activation.value_(torch.mm(gate_FD, twin_D2)).mul_(torch.mm(up_FD, twin_D2))
    return torch.mv(down_DF, hidden_F2[:, 0])


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm of a single row [..., D]."""
    row_D = x.reshape(-1)
    mean_square = torch.dot(row_D, row_D).item() / len(row_D)
    return (x * weight_D).mul_((mean_square + eps) ** -0.5)
