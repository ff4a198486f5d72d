"""Optimizers: fused AdamW, and Muon for the matrices inside the Transformer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a weight matrix by the
nearest matrix whose singular values are all 1, so that no direction of the update dwarfs the others. Here it takes
stacked matrices [E, rows, columns] too: every expert is orthogonalised by itself, all in one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from moe_core.config import TrainingConfig
from moe_core.training.shared_weights import laid_out_alike, local_part, of_whole_matrices, placed_as

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


@contextmanager
def newton_schulz_products(device: torch.device) -> Iterator[None]:
    """Let float32 products be TF32 ones on CUDA (operands of 10 bits, sums in float32), where others take several times
    as long. The update changes by half a per cent; bfloat16 would change it by four (docs/LOG.md). Elsewhere nothing
    happens."""
    if device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


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

    found_inf: Tensor | None = None
    """As torch's fused optimizers take it from torch.amp.GradScaler: a float scalar on the parameters' device, 1 = the
    gradients are not finite and this is no step, 0 = it is one; None = it is one."""

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
                change = _change if self.found_inf is None else partial(_change_unless, self.found_inf)
                scale = math.sqrt(max(1.0, parameter.shape[-2] / parameter.shape[-1]))
                decay = 1.0 - group["lr"] * group["weight_decay"]
                update = partial(of_whole_matrices, orthogonalise, like=parameter.detach())
                weight, gradient, momentum = map(local_part, (parameter.detach(), parameter.grad, state["momentum"]))
                change(weight, gradient, momentum, update, group["momentum"], decay, -group["lr"] * scale)


def _change(
    parameter: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    orthogonal: Callable[[Tensor], Tensor],
    beta: float,
    decay: float,
    rate: float,
) -> None:
    """Muon's step of one parameter, in place."""
    momentum.lerp_(gradient, 1.0 - beta)
    with newton_schulz_products(momentum.device):
        update = orthogonal(gradient.lerp(momentum, beta))
    if decay != 1.0:
        parameter.mul_(decay)
    parameter.add_(update, alpha=rate)


def _change_unless(
    found_inf: Tensor,
    parameter: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    orthogonal: Callable[[Tensor], Tensor],
    beta: float,
    decay: float,
    rate: float,
) -> None:
    """The same, but nothing where `found_inf` is 1, which the host is not told: one more pass over the gradient."""
    keeps = 1.0 - found_inf
    gradient = gradient.masked_fill_(found_inf.bool(), 0.0)  # NaN times 0 would be NaN
    momentum.lerp_(gradient, keeps * (1.0 - beta))
    with newton_schulz_products(momentum.device):
        update = orthogonal(gradient.lerp(momentum, beta))
    if decay != 1.0:
        parameter.mul_(torch.where(found_inf.bool(), 1.0, decay))
    parameter.addcmul_(update, keeps, value=rate)


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
    groups: list[dict[str, Any]] = [
        {"params": embedding, "weight_decay": config.weight_decay, "lr": embedding_lr},
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    used = [{**group, "params": alike} for group in groups for alike in laid_out_alike(group["params"])]
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


def step_optimizers(optimizers: Sequence[Optimizer], skipped: Tensor | None = None) -> None:
    """One update of all weights from the gradients at hand.

    `skipped`: bool scalar on the weights' device, True = weights and optimizer state stay as they are, to the bit. So
    the host can go on without having read whether the gradients are finite. None = they are known to be.
    """
    found_inf = None if skipped is None else skipped.float()
    for optimizer in optimizers:
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        optimizer.step()


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
            moved = tensor.to(parameter.device, copy=True)
            owner[parameter].state[parameter][key] = placed_as(moved, parameter)
