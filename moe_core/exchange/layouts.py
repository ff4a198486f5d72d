"""How the families of transformers that our model can equal store its weights: one table, read in both directions.

Names are those on disk (one key an expert where the family has it so), as transformers 5.23 loads and saves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.errors import RunError

Family = Literal["mixtral", "qwen3_moe", "qwen2_moe", "granitemoeshared", "glm4_moe"]
FAMILIES: tuple[Family, ...] = get_args(Family)
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
UNTIED: tuple[Family, ...] = ("qwen2_moe", "glm4_moe")
"""Families of which engines want the head written out, though it is the embedding: without it llama.cpp finds no
output.weight, and vLLM 0.30 writes token 0 for ever."""
BIASES = tuple(f".self_attn.{name}_proj.bias" for name in "qkvo")
QKV_WEIGHTS = tuple(f".self_attn.{name}_proj.weight" for name in "qkv")
SHARED_EXPERTS = (".mlp.shared_expert.", ".mlp.shared_experts.", ".mlp.shared_expert_gate.")


@dataclass(frozen=True)
class Place:
    """Where tensors of ours lie in a checkpoint."""

    theirs: str
    """Name on disk. "{expert}" in it means that our tensor's first axis is cut into one tensor per expert."""
    ours: tuple[str, ...]
    """Names in MoETransformer.state_dict(). Two names are stacked along the last axis but one."""


def places(config: ModelConfig, family: Family) -> Iterator[Place]:
    """All tensors of a model of this configuration, in the order of its layers."""
    yield Place(EMBEDDING, ("embedding.weight",))
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        attention = ["q_proj", "k_proj", "v_proj", "o_proj", *(["q_norm", "k_norm"] if config.qk_norm else [])]
        block = {
            **{f"self_attn.{name}.weight": (f"attention.{name}.weight",) for name in attention},
            "input_layernorm.weight": ("attention_norm.weight",),
            "post_attention_layernorm.weight": ("feed_forward_norm.weight",),
            **(_moe(config, family) if layer in config.moe_layers else _mlp("mlp", "mlp")),
        }
        for name, sources in block.items():
            yield Place(theirs + name, tuple(ours + source for source in sources))
    yield Place("model.norm.weight", ("norm.weight",))


def needed_names(config: ModelConfig, family: Family) -> Iterator[str]:
    """Names on disk of all tensors of a model of this configuration; made one by one, for there may be millions."""
    for place in places(config, family):
        if "{expert}" in place.theirs:
            yield from (place.theirs.format(expert=expert) for expert in range(config.num_experts))
        else:
            yield place.theirs


def is_left_out(name: str, config: ModelConfig) -> bool:
    """Whether our model has no place for the tensor, and needs none if its numbers are what they should be: biases of
    attention, which must be 0, and a shared expert without hidden units with its gate, which add nothing."""
    if name.endswith(BIASES):
        return True
    return config.shared_expert_hidden_dim == 0 and any(part in name for part in SHARED_EXPERTS)


def to_checkpoint(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Our tensors under their names; the head is the embedding and is left out, as transformers does, but for UNTIED.

    qwen2_moe gets biases of zeros: vLLM 0.30 has them whatever qkv_bias says.
    """
    checkpoint: dict[str, Tensor] = {}
    for place in places(config, family):
        tensor = (
            torch.cat([state[name] for name in place.ours], dim=-2) if len(place.ours) > 1 else state[place.ours[0]]
        )
        if "{expert}" in place.theirs:
            checkpoint |= {place.theirs.format(expert=expert): part for expert, part in enumerate(tensor)}
        else:
            checkpoint[place.theirs] = tensor
            if family == "qwen2_moe" and place.theirs.endswith(QKV_WEIGHTS):
                checkpoint[place.theirs.removesuffix("weight") + "bias"] = tensor.new_zeros(tensor.shape[0])
    if family in UNTIED:
        checkpoint[HEAD] = state["embedding.weight"].clone()
    return {name: tensor.contiguous() for name, tensor in checkpoint.items()}


def from_checkpoint(checkpoint: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Their tensors under our names. Raises RunError naming a tensor that is missing or that has no place with us.

    An `lm_head.weight` is accepted if it equals the embedding, which is our head; biases of attention if they are 0.
    """
    unused = dict(checkpoint)
    state: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if name not in unused:
            raise RunError(
                f"the checkpoint lacks the tensor {name!r}, which a {family} model of its config.json has; "
                "restore the checkpoint from a copy"
            )
        return unused.pop(name)

    for place in places(config, family):
        if "{expert}" in place.theirs:
            tensor = torch.stack([take(place.theirs.format(expert=expert)) for expert in range(config.num_experts)])
        else:
            tensor = take(place.theirs)
        parts = tensor.chunk(len(place.ours), dim=-2) if len(place.ours) > 1 else (tensor,)
        state |= {name: part.contiguous() for name, part in zip(place.ours, parts, strict=True)}
    for name in [name for name in unused if is_left_out(name, config)]:
        tensor = unused.pop(name)
        if name.endswith(BIASES) and tensor.count_nonzero():
            raise RunError(
                f"the checkpoint cannot be imported: its {name} (attention_bias or qkv_bias of config.json) is not "
                "zero; our attention has no biases"
            )
        if not name.endswith(BIASES) and "_gate." not in name and tensor.numel():
            raise RunError(f"the checkpoint's {name} has numbers, but its config.json has no shared expert")
    head = unused.pop(HEAD, None)
    if head is not None and not torch.equal(head, state["embedding.weight"]):
        raise RunError(
            "the checkpoint's lm_head.weight differs from its embedding; expected one matrix for both "
            "(tie_word_embeddings), as in our model: such a checkpoint cannot be imported"
        )
    if unused:
        raise RunError(
            f"the checkpoint has {len(unused)} tensor{'s' if len(unused) > 1 else ''} that our model has no place for, "
            f"the first is {sorted(unused)[0]!r}; only plain {family} checkpoints can be imported"
        )
    return state


def _mlp(theirs: str, ours: str) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.{name}.weight": (f"{ours}.{name}.weight",) for name in ("gate_proj", "up_proj", "down_proj")}


def _moe(config: ModelConfig, family: Family) -> dict[str, tuple[str, ...]]:
    """One MoE block: their name -> our names, both within the layer."""
    if family == "mixtral":
        return {
            "block_sparse_moe.gate.weight": ("moe.router.weight",),
            "block_sparse_moe.experts.{expert}.w1.weight": ("moe.experts.gate_proj",),
            "block_sparse_moe.experts.{expert}.w3.weight": ("moe.experts.up_proj",),
            "block_sparse_moe.experts.{expert}.w2.weight": ("moe.experts.down_proj",),
        }
    if family == "granitemoeshared":
        shared = {
            "shared_mlp.input_linear.weight": (
                "moe.shared_expert.gate_proj.weight",
                "moe.shared_expert.up_proj.weight",
            ),
            "shared_mlp.output_linear.weight": ("moe.shared_expert.down_proj.weight",),
        }
        return {
            "block_sparse_moe.router.layer.weight": ("moe.router.weight",),
            "block_sparse_moe.input_linear.weight": ("moe.experts.gate_proj", "moe.experts.up_proj"),
            "block_sparse_moe.output_linear.weight": ("moe.experts.down_proj",),
            **(shared if config.shared_expert_hidden_dim else {}),
        }
    qwen: dict[str, tuple[str, ...]] = {
        "mlp.gate.weight": ("moe.router.weight",),
        **{
            f"mlp.experts.{{expert}}.{name}.weight": (f"moe.experts.{name}",)
            for name in ("gate_proj", "up_proj", "down_proj")
        },
    }
    if family == "qwen2_moe":
        gate = {"mlp.shared_expert_gate.weight": ("moe.shared_expert_gate.weight",)}
        shared = _mlp("mlp.shared_expert", "moe.shared_expert") | gate
        return qwen | (shared if config.shared_expert_hidden_dim else {})
    if family == "glm4_moe":
        bias = {"mlp.gate.e_score_correction_bias": ("moe.router.expert_bias",)}
        shared = _mlp("mlp.shared_experts", "moe.shared_expert") if config.shared_expert_hidden_dim else {}
        return qwen | bias | shared
    return qwen
