"""What the processes of a training add up: counts of routers, losses, gradients and their norm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from moe_core.model.all_tokens import AllTokens
from moe_core.training.parallel.mesh import Mesh
from moe_core.training.shared_weights import is_shared, local_part


class TokensOfRanks(AllTokens):
    """The tokens of a batch, spread over the processes of a group in equal parts."""

    are_elsewhere = True

    def __init__(self, group: Any) -> None:
        self._group = group

    def add_up(self, values: Tensor) -> Tensor:
        """See AllTokens."""
        total = values.detach().clone()
        distributed.all_reduce(total, group=self._group)
        return total

    def add_up_with_gradient(self, values: Tensor) -> Tensor:
        """See AllTokens."""
        total: Tensor = _AddUp.apply(values, self._group)  # type: ignore[no-untyped-call]
        return total

    def concatenate(self, rows: Tensor) -> Tensor:
        """See AllTokens."""
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size(self._group))]
        distributed.all_gather(parts, rows.detach().contiguous(), group=self._group)
        return torch.cat(parts)


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor, None]:
        # Every process has the same loss of the sum; the mean of gradients undoes this sum.
        d_values = d_total.clone()
        distributed.all_reduce(d_values, group=ctx.group)
        return d_values, None


def average(tensors: Sequence[Tensor], group: Any, ranks: int) -> None:
    """Replace each tensor by its sum over the group, divided by `ranks`, in one message."""
    if not tensors or distributed.get_world_size(group) == 1 == ranks:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat, group=group)
    flat.div_(ranks)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
        tensor.copy_(part.view_as(tensor))


def mean_of_ranks(values: Tensor, mesh: Mesh) -> Tensor:
    """The mean over the processes that share a batch, where equally many tokens belong to each."""
    total = values.clone()
    distributed.all_reduce(total, group=mesh.batch)
    return total.div_(mesh.config.batch_ranks)


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of the whole gradient, every piece of it counted once; the same in each process."""
    world = distributed.get_world_size()
    squares: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            holders = world // _pieces(parameter.grad)
            squares.append(local_part(parameter.grad).float().square().sum() / holders)
    total = torch.stack(squares).sum()
    distributed.all_reduce(total)
    return total.sqrt_()


def _pieces(tensor: Tensor) -> int:
    """Different pieces of it that processes hold."""
    pieces = 1
    if is_shared(tensor):
        for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
            pieces *= 1 if placement.is_replicate() else size
    return pieces
