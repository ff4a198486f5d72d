"""A model laid out over the processes of a training, and gathered again.

What is spread becomes a DTensor, which knows how: heads of the attention (tensor), experts (expert), then all of what
is left of a weight (shard, FSDP2). What every process holds whole stays a tensor; DDP averages its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from moe_core.model.attention import Attention
from moe_core.model.outline import outline
from moe_core.model.transformer import Block, ModelStates, MoETransformer
from moe_core.training.batches import TensorBatch
from moe_core.training.parallel.footprint import cut_along_width
from moe_core.training.parallel.mesh import Mesh
from moe_core.training.parallel.reduce import TokensOfRanks, average, mean_of_ranks, total_norm
from moe_core.training.parallel.spread_experts import SpreadExperts
from moe_core.training.random_numbers import random_state

if TYPE_CHECKING:
    from moe_core.runs.folder import RunFolder
    from moe_core.training.parallel.sharded_checkpoint import ShardedSaves
from moe_core.training.shared_weights import local_part


class SpreadModel:
    """The model of one training in the processes of a mesh; each must make and ask it at the same time."""

    def __init__(self, model: MoETransformer, mesh: Mesh, seed: int) -> None:
        self.model, self.mesh = model, mesh
        self.tokens = TokensOfRanks(mesh.routing)
        for router in model.routers:
            router.all_tokens = self.tokens
        if mesh.row:  # noise and dropout of other rows are drawn anew; the first has what one process would have
            torch.manual_seed(seed + (mesh.row << 32))
        spread(model, mesh)
        self._replicas: DistributedDataParallel | None = None
        if mesh.config.shard == 1 and mesh.config.batch_ranks > 1:
            self._replicas = _replicas(model, mesh)

    @property
    def states(self) -> Callable[[Tensor], ModelStates]:
        """As MoETransformer.states, for the gradient."""
        return self.model.states if self._replicas is None else cast("Callable[[Tensor], ModelStates]", self._replicas)

    def own_rows(self, part: TensorBatch, *, is_last: bool) -> TensorBatch:
        """This process's share of one part of a batch, before its forward pass. Replicas average behind the last."""
        if self._replicas is not None:
            self._replicas.require_backward_grad_sync = is_last
        return part.split(self.mesh.config.batch_ranks)[self.mesh.row]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes that share a batch."""
        return mean_of_ranks(values, self.mesh)

    def gradient_norm(self) -> Tensor:
        """Of the whole gradient."""
        return total_norm(self.model.parameters())

    def local_parameters(self) -> list[nn.Parameter]:
        """The parameters as this process holds them, with their gradients, in the same memory."""
        found: list[nn.Parameter] = []
        for parameter in self.model.parameters():
            local = nn.Parameter(local_part(parameter.detach()))
            local.grad = None if parameter.grad is None else local_part(parameter.grad)
            found.append(local)
        return found

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """See `gathered`."""
        return gathered(tensors)

    def saves(self, run: RunFolder, interval: int | None) -> ShardedSaves | None:
        """Checkpoints in parts, every `interval` steps; None = none."""
        if interval is None:
            return None
        from moe_core.training.parallel.sharded_checkpoint import ShardedSaves

        return ShardedSaves(run, interval)

    def random_states(self, device: torch.device) -> dict[str, Tensor]:
        """Of all processes that see other rows."""
        found: dict[str, Tensor] = {}
        for place, state in enumerate(random_state(device).values()):
            parts = [torch.empty_like(state) for _ in range(self.mesh.config.batch_ranks)]
            distributed.all_gather(parts, state, group=self.mesh.batch)
            for row, part in enumerate(parts):
                found[list(random_state(device, row))[place]] = part
        return found

    def finish_gradients(self) -> None:
        """After the last backward pass: average what DDP or FSDP did not."""
        sizes, tensor = self.mesh.config, self.mesh.weights["tensor"]
        experts = [one for name, one in self.model.named_parameters() if is_spread_expert(name, self.mesh)]
        if sizes.shard > 1:  # FSDP averaged over those that hold the same experts
            for gradient in _local_gradients(experts):
                gradient.div_(sizes.expert)
        else:
            average(_local_gradients(experts), self.mesh.experts["data"].get_group(), sizes.data * sizes.expert)
            known = {id(one) for one in experts}
            others = [one for one in self.model.parameters() if isinstance(one, DTensor) and id(one) not in known]
            average(_local_gradients(others), self.mesh.batch, sizes.batch_ranks)
        if sizes.tensor > 1:  # each process knows what its heads contribute
            norms = [
                parameter
                for module in self.model.modules()
                if isinstance(module, Attention)
                for parameter in (*module.q_norm.parameters(), *module.k_norm.parameters())
            ]
            average(_local_gradients(norms), tensor.get_group(), 1)

    def whole(self) -> MoETransformer | None:
        """A model with all weights for the first process, None for the others; all must ask."""
        state = gathered(self.model.state_dict())
        if state is None:
            return None
        model = outline(self.model.config)
        model.load_state_dict(state, assign=True)
        return model.train()


def spread(model: MoETransformer, mesh: Mesh) -> None:
    """Turn the weights that other processes share into DTensors of this process's part."""
    sizes = mesh.config
    replicated, expert_mesh = mesh.weights["replicate", "shard"], mesh.experts["data", "shard"]
    dense = replicated if mesh.weights.size(0) > 1 else mesh.weights["shard"]

    def placed(weight: nn.Parameter) -> Shard:
        return Shard(1 if cut_along_width(list(local_part(weight).shape), sizes.shard) else 0)

    rest = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if sizes.offload else OffloadPolicy()
    for block in model.layers:
        assert isinstance(block, Block)
        if sizes.tensor > 1:
            plan = {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), ColwiseParallel()), "o_proj": RowwiseParallel()}
            parallelize_module(block.attention, mesh.weights["tensor"], plan)
        if sizes.expert > 1 and block.moe is not None:
            block.moe.experts = SpreadExperts(block.moe.experts, mesh.experts["expert"])
            if sizes.shard > 1:
                own = expert_mesh if sizes.data > 1 else mesh.experts["shard"]
                fully_shard(block.moe.experts, mesh=own, shard_placement_fn=placed, offload_policy=rest)
        if sizes.shard > 1:
            fully_shard(block, mesh=dense, shard_placement_fn=placed, offload_policy=rest)
    if sizes.shard > 1:
        # The head is the embedding, which the loss reads behind the pass.
        fully_shard(model, mesh=dense, reshard_after_forward=False, offload_policy=rest)
        register_fsdp_forward_method(model, "states")


def is_spread_expert(name: str, mesh: Mesh) -> bool:
    """Whether the parameter of this name belongs to experts that processes share."""
    return mesh.config.expert > 1 and ".experts." in name


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors, each whole, for the first process; None for the others. All must ask, for the same names."""
    is_first = distributed.get_rank() == 0
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_first:
            found[name] = whole.detach()
    return found if is_first else None


def _replicas(model: MoETransformer, mesh: Mesh) -> DistributedDataParallel:
    """DDP over those that see other rows, for all that every one of them holds whole."""
    states = _States(model)
    spread_names = [name for name, one in states.named_parameters() if isinstance(one, DTensor)]
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(states, spread_names)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(states, process_group=mesh.batch, forward_sync_buffers=False)


class _States(nn.Module):
    """MoETransformer.states as the forward pass of a module, which is what DDP wraps."""

    def __init__(self, model: MoETransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> ModelStates:
        return self.model.states(token_ids)


def _local_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [local_part(one.grad) for one in parameters if one.grad is not None]
