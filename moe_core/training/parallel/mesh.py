"""The processes of one training and the mesh they form.

Axes of the mesh: data, expert and shard divide the rows of a batch, tensor the heads of the attention. Experts that are
spread live on the whole mesh; for all other weights the ranks of data and expert are alike, so theirs is a mesh of
replicate = data * expert, shard and tensor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from moe_core.config import Config
from moe_core.config.parallel import ParallelConfig
from moe_core.errors import RunError, UsageError

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: they wait while the first one evaluates and saves. A process that ends is
seen at once."""


@dataclass(frozen=True)
class Mesh:
    """The place of this process among those of a training. Groups are of torch.distributed."""

    config: ParallelConfig
    weights: DeviceMesh
    """replicate, shard, tensor."""
    experts: DeviceMesh
    """data, expert, shard, tensor."""
    batch: Any
    """The group of those that see the other rows of a batch, in the order of the rows."""
    routing: Any
    """The same ones, for what routers ask in the middle of a pass, beside the sums of gradients."""

    @property
    def row(self) -> int:
        """Which of the batch_ranks equal parts of a batch is this process's."""
        return distributed.get_rank(self.batch)


def processes_started() -> int:
    """The processes that torchrun, or what does as it does, started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first_process() -> bool:
    """Of those that torchrun started, the one that writes; True without it."""
    return processes_started() == 1 or os.environ["RANK"] == "0"


def check_layout(config: Config, processes: int) -> None:
    """Raise UsageError unless so many processes can train this model in the layout that `config.parallel` names."""
    parallel, model, training = config.parallel, config.model, config.training
    asked = parallel.processes
    if asked != processes:
        if processes == 1:
            raise UsageError(
                f"parallel: {parallel} needs {asked} processes and this is one; start them with torchrun "
                f"--nproc-per-node {asked} -- main.py and the same options"
            )
        raise UsageError(
            f"parallel: {parallel} is {asked} of {processes} processes that were started; make the product of "
            f"--parallel.data, shard, expert and tensor {processes}, or start {asked} (torchrun --nproc-per-node)"
        )
    parts = parallel.batch_ranks * training.gradient_accumulation
    if training.batch_size % parts:
        raise UsageError(
            f"training.batch_size = {training.batch_size} is not a multiple of {parallel.batch_ranks} ranks that share "
            f"a batch times training.gradient_accumulation = {training.gradient_accumulation}; change either"
        )
    if model.moe_layers and model.num_experts % parallel.expert:
        raise UsageError(
            f"parallel.expert = {parallel.expert} does not divide model.num_experts = {model.num_experts}; "
            "choose a divisor"
        )
    if parallel.expert > 1 and not model.moe_layers:
        raise UsageError("parallel.expert: this model has no experts; use --parallel.data or --parallel.shard")
    if model.num_kv_heads % parallel.tensor:
        raise UsageError(
            f"parallel.tensor = {parallel.tensor} does not divide model.num_kv_heads = {model.num_kv_heads}, the heads "
            "that are divided; choose a divisor, or --parallel.shard"
        )
    if processes > 1 and training.micro_batch == "auto":
        raise UsageError(
            "training.micro_batch = auto looks at the memory of one process only; with --parallel give "
            "training.gradient_accumulation"
        )
    if parallel.offload and parallel.shard == 1:
        raise UsageError(
            "parallel.offload = true is FSDP's and needs --parallel.shard of at least 2; without it every process "
            "holds the whole model"
        )
    if processes > 1 and training.autocast == "float16":
        raise UsageError(
            "training.autocast = float16 scales the loss in one process only; with --parallel use bfloat16 or none"
        )


@contextmanager
def started(config: Config, device: torch.device) -> Iterator[Mesh | None]:
    """The mesh of this training's processes, None where this is the only one. A group that exists already is used, and
    stays. Raises UsageError for a layout that does not fit, RunError in the processes that are left when one ends."""
    ours = not distributed.is_initialized()
    processes = processes_started() if ours else distributed.get_world_size()
    check_layout(config, processes)
    if processes == 1:
        yield None
        return
    if ours:
        _join(device)
    try:
        yield mesh_of(config.parallel, device)
    except RuntimeError as error:
        if not _is_of_another_process(error):
            raise
        raise RunError("another process of this training ended; its message says why") from None
    finally:
        if ours:
            distributed.destroy_process_group()


def mesh_of(config: ParallelConfig, device: torch.device) -> Mesh:
    """The mesh over all processes of the group there is, which every one of them must make at once."""
    data, shard, expert, tensor = config.data, config.shard, config.expert, config.tensor
    places = torch.arange(config.processes).view(-1, tensor)
    batch = [distributed.new_group(column.tolist()) for column in places.t()]
    routing = [distributed.new_group(column.tolist()) for column in places.t()]
    mine = distributed.get_rank() % tensor
    return Mesh(
        config,
        init_device_mesh(device.type, (data * expert, shard, tensor), mesh_dim_names=("replicate", "shard", "tensor")),
        init_device_mesh(
            device.type, (data, expert, shard, tensor), mesh_dim_names=("data", "expert", "shard", "tensor")
        ),
        batch[mine],
        routing[mine],
    )


def _join(device: torch.device) -> None:
    """Meet the other processes, as torchrun's environment says where."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    local = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if local and sys.platform == "linux":  # a name of the machine that does not resolve would end it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def _is_of_another_process(error: RuntimeError) -> bool:
    said = str(error)
    return any(words in said for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))
