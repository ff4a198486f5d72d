"""What of a weight is in this process, where several share one; without them every tensor is whole, and nothing is
imported."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Some = TypeVar("Some", bound=Tensor)


def is_shared(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether other processes hold other parts of it."""
    return hasattr(tensor, "placements")


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of it, in the same memory."""
    return tensor.to_local() if is_shared(tensor) else tensor


def laid_out_alike(tensors: Iterable[Some]) -> list[list[Some]]:
    """The tensors in lists of those that are shared in one way, which one operation may take together."""
    groups: dict[Hashable, list[Some]] = {}
    for tensor in tensors:
        layout = (tensor.device_mesh, tensor.placements) if is_shared(tensor) else None
        groups.setdefault(layout, []).append(tensor)
    return list(groups.values())


def of_whole_matrices(function: Callable[[Tensor], Tensor], part: Tensor, like: Tensor) -> Tensor:
    """This process's part of `function` of whole matrices, the last two axes, from its part of them. `like`: a tensor
    laid out so. Where the matrices themselves are cut they are gathered first, so all processes must call it."""
    if not is_shared(like):
        return function(part)
    if like.ndim == 3 and all(not placement.is_shard() or placement.is_shard(0) for placement in like.placements):
        return function(part) if len(part) else part
    from torch.distributed.tensor import DTensor, distribute_tensor

    shared = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    result = function(shared.full_tensor())
    return distribute_tensor(result, like.device_mesh, like.placements, src_data_rank=None).to_local()


def placed_as(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape, laid out as the parameter is; no process is asked."""
    if is_shared(tensor) or not is_shared(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
