"""What one rank of a layout keeps and sends, from the configuration alone: for machines that are not at hand.

Memory follows wrap.spread: experts over `expert` and `shard`, heads over `tensor` and `shard`, all else over `shard`,
and everything whole over `data`. Traffic is that of ring algorithms, in which a rank sends (n - 1) / n of what n ranks
gather or scatter, and twice that of what they add up. Tests hold both against torch's own counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

from moe_core.config import Config
from moe_core.config.parallel import ParallelConfig
from moe_core.model.outline import outline
from moe_core.model.size import training_memory

NUMBER = 4
"""Bytes of a weight, a gradient and a number that is sent; half of it where autocast computes in bfloat16."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes that the first rank holds at the worst moment of a step; no other holds more."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW: two numbers a weight."""
    gathered: int
    """With `shard`: the largest block and the embedding, whole for the moment in which they compute."""
    activations: int
    """Of its rows: see size.training_memory. `tensor` is not taken off."""

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


@dataclass(frozen=True)
class RankTraffic:
    """Bytes that one rank sends in one step of training.gradient_accumulation parts, by what for."""

    data: int
    """Gradients, added up over all that hold the same part."""
    shard: int
    """Weights gathered, and gradients scattered."""
    expert: int
    """Tokens to their experts and back, and their gradients; expected where every rank's tokens want all experts alike.
    """
    tensor: int
    """Outputs of the attention, and the gradients of its inputs, added up."""

    @property
    def total(self) -> int:
        """All together."""
        return self.data + self.shard + self.expert + self.tensor


def rank_memory(config: Config, layout: ParallelConfig, *, autocast: bool = False) -> RankMemory:
    """Of one of `layout.processes` ranks, with AdamW. `autocast`: activations in bfloat16."""
    parts = [_local_numbers(name, tensor, layout) for name, tensor in _weights(config)]
    local = sum(parts)
    training = config.training
    rows = training.batch_size // layout.batch_ranks
    own = config.model_copy(update={"training": training.model_copy(update={"batch_size": max(1, rows)})})
    return RankMemory(
        weights=NUMBER * local,
        gradients=NUMBER * local,
        optimizer=2 * NUMBER * local,
        gathered=NUMBER * (_largest_block(config, layout) + _embedding(config)) if layout.shard > 1 else 0,
        activations=training_memory(own, autocast=autocast).activations,
    )


def rank_traffic(config: Config, layout: ParallelConfig) -> RankTraffic:
    """Of one of `layout.processes` ranks, in float32."""
    model, training = config.model, config.training
    data = shard = 0.0
    for name, tensor in _weights(config):
        numbers, local = _before_shards(name, tensor, layout), _local_numbers(name, tensor, layout)
        alike = layout.data if _is_spread_expert(name, layout) else layout.data * layout.expert
        data += 2 * _ring(alike) * (local if layout.shard > 1 else numbers)
        # What a block computes with is gathered for either pass; what the whole model holds stays for both.
        times = (1 if name.startswith(("embedding", "norm")) else 2) + 1
        shard += times * _ring(layout.shard) * numbers * training.gradient_accumulation
    tokens = training.batch_size // layout.batch_ranks * training.seq_len
    slots = tokens * model.experts_per_token * len(model.moe_layers)
    expert = 4 * _ring(layout.expert) * slots * model.dim
    tensor_sums = 2 * 2 * _ring(layout.tensor) * tokens * model.num_layers * model.dim
    return RankTraffic(*(round(NUMBER * numbers) for numbers in (data, shard, expert, tensor_sums)))


def _weights(config: Config) -> list[tuple[str, Tensor]]:
    return list(outline(config.model).named_parameters())


def _ring(ranks: int) -> float:
    return (ranks - 1) / ranks


def _is_spread_expert(name: str, layout: ParallelConfig) -> bool:
    return layout.expert > 1 and ".experts." in name


def _before_shards(name: str, tensor: Tensor, layout: ParallelConfig) -> int:
    """Numbers of a weight that a rank computes with."""
    if _is_spread_expert(name, layout):
        return tensor.numel() // layout.expert
    heads = any(f".{projection}.weight" in name for projection in ("q_proj", "k_proj", "v_proj", "o_proj"))
    return tensor.numel() // layout.tensor if heads else tensor.numel()


def _local_numbers(name: str, tensor: Tensor, layout: ParallelConfig) -> int:
    """Numbers of a weight that the first rank keeps: FSDP cuts along one axis, and rounds up."""
    shape = list(tensor.shape)
    if _is_spread_expert(name, layout):
        shape[0] //= layout.expert
    elif any(f".{projection}.weight" in name for projection in ("q_proj", "k_proj", "v_proj")):
        shape[0] //= layout.tensor
    elif ".o_proj.weight" in name:
        shape[1] //= layout.tensor
    axis = 1 if cut_along_width(shape, layout.shard) else 0
    shape[axis] = -(-shape[axis] // layout.shard)
    return prod(shape)


def cut_along_width(shape: list[int], ranks: int) -> bool:
    """Whether FSDP cuts stacked experts [E, out, in] along `out`: there are fewer of them than ranks, and ranks without
    an expert would keep nothing while others kept a whole one."""
    return len(shape) == 3 and shape[0] % ranks != 0 and shape[1] % ranks == 0


def _largest_block(config: Config, layout: ParallelConfig) -> int:
    blocks: dict[str, int] = {}
    for name, tensor in _weights(config):
        if name.startswith("layers."):
            block = name.split(".")[1]
            blocks[block] = blocks.get(block, 0) + _before_shards(name, tensor, layout)
    return max(blocks.values())


def _embedding(config: Config) -> int:
    return config.model.vocab_size * config.model.dim
