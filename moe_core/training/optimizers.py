"""Optimizers: fused AdamW, and Muon for the matrices inside the Transformer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a weight matrix by the
nearest matrix whose singular values are all 1, so that no direction of the update dwarfs the others. Here it takes
stacked matrices [E, rows, columns] too: every expert is orthogonalised by itself, all in one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from moe_core.config import TrainingConfig

# The post takes 5; at our sizes the update would then cost more than the backward pass, and 3 lose nothing that shows
# in the loss (docs/LOG.md).
NEWTON_SCHULZ_ITERATIONS = 3
# The quintic of the post: its slope at 0 is as steep as it can be while [0, 1] still lands in about [0.7, 1.2].
QUINTIC = (3.4445, -4.7750, 2.0315)
# The post's 0.95 is for longer runs: over a few hundred steps it lags behind (docs/LOG.md).
MUON_MOMENTUM = 0.9
ADAMW_BETAS = (0.9, 0.95)
# Read or written row by row (embedding = head) or too thin for "all singular values 1" to mean much: left to AdamW.
ADAMW_MATRICES = ("embedding", "router", "shared_expert_gate")


def orthogonalise(matrices: Tensor, iterations: int = NEWTON_SCHULZ_ITERATIONS) -> Tensor:
    """Float32 [..., R, C] -> the same shape, each matrix with its singular values moved towards 1.

    U S V^T becomes about U V^T by an odd polynomial in the matrix (Newton-Schulz), applied `iterations` times. Those
    above a fifth of the largest end within 0.6 to 1.25 after 3, those above a twentieth after 5. Zero stays zero.
    """
    a, b, c = QUINTIC
    rows, columns = matrices.shape[-2:]
    x = matrices.float().reshape(-1, rows, columns)
    x = x.mT if rows > columns else x
    length = x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)  # Frobenius >= spectral norm: singular values <= 1
    # An iteration multiplies x by a polynomial P of its Gram matrix. All these commute, so the small square matrices
    # can be iterated alone, G <- P G P, and the large one is multiplied once, by the product Q of all P.
    gram = torch.bmm(x, x.mT).div_(length.square())
    product: Tensor | None = None
    for iteration in range(iterations):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else torch.bmm(polynomial, product)
        if iteration < iterations - 1:
            gram = torch.bmm(polynomial, torch.bmm(polynomial, gram))
    x = x / length if product is None else torch.bmm(product.div_(length), x)
    x = x.mT if rows > columns else x
    return x.reshape(matrices.shape)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, times sqrt(max(1, rows / columns)); decoupled weight decay.

    Parameters are matrices [R, C] or stacks of them [E, R, C]. State: one momentum tensor per parameter.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, momentum: float = MUON_MOMENTUM, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
                update = orthogonalise(parameter.grad.lerp(momentum, group["momentum"]))
                scale = math.sqrt(max(1.0, parameter.shape[-2] / parameter.shape[-1]))
                if group["weight_decay"]:
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[Optimizer]:
    """The optimizers that share the model's parameters: Muon + AdamW, or AdamW alone. Only matrices decay."""
    muon: list[nn.Parameter] = []
    embedding: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        by_adamw = config.optimizer == "adamw" or any(part in name for part in ADAMW_MATRICES)
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif name == "embedding.weight":
            embedding.append(parameter)
        else:
            (matrices if by_adamw else muon).append(parameter)
    embedding_lr = config.embedding_learning_rate or config.learning_rate
    groups = [
        {"params": embedding, "weight_decay": config.weight_decay, "lr": embedding_lr},
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    optimizers: list[Optimizer] = [AdamW(used, lr=config.learning_rate, betas=ADAMW_BETAS, fused=True)]
    if muon:
        optimizers.append(Muon(muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rates(optimizers: Sequence[Optimizer], multiplier: float) -> None:
    """Give every parameter group `multiplier` times its peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * multiplier


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """All optimizer state as named tensors, "optimizer.<parameter>.<key>", for a safetensors file."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"optimizer.{names[parameter]}.{key}": tensor
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, tensor in state.items()
    }


def restore_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`: put every named tensor back where it was."""
    parameters = dict(model.named_parameters())
    owner = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for full_name, tensor in tensors.items():
        prefix, _, rest = full_name.partition(".")
        name, _, key = rest.rpartition(".")
        if prefix == "optimizer":
            parameter = parameters[name]
            owner[parameter].state[parameter][key] = tensor.to(parameter.device, copy=True)
