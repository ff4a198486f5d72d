"""The architectures of llama.cpp that compute what our model computes, and what they call its tensors.

llama.cpp knows less than transformers of the same families: its qwen3moe and llama always make a token's expert weights
sum to 1, its qwen2moe never does, and only its glm4moe has dense layers. What it lacks is refused by name.
Looked up in ggml-org/llama.cpp, src/models (qwen3moe, qwen2moe, llama, granite, glm4-moe), 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.exchange.layouts import UNTIED, Family

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp has of a family."""

    name: str
    """general.architecture"""
    normalizes: bool | None
    """Whether the weights of a token's experts are made to sum to 1; None = the file says it."""
    dense_layers: bool = False
    """Whether the first layers may be dense."""
    interleaved: bool = False
    """Whether rotary pairs are neighbours (2i, 2i + 1), where our pairs are the two halves of a head."""
    square_attention: bool = False
    """Whether the heads together must be as wide as the model."""
    feed_forward_norm: str = "ffn_norm"


ARCHITECTURES: Mapping[Family, Architecture] = {
    "qwen3_moe": Architecture("qwen3moe", normalizes=True),
    "mixtral": Architecture("llama", normalizes=True, interleaved=True),
    "granitemoeshared": Architecture("granitemoe", normalizes=True, interleaved=True),
    "qwen2_moe": Architecture("qwen2moe", normalizes=False, square_attention=True),
    "glm4_moe": Architecture("glm4moe", normalizes=None, dense_layers=True, feed_forward_norm="post_attention_norm"),
}

# Our names within a layer -> llama.cpp's.
IN_LAYERS: Mapping[str, str] = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.q_proj.weight": "attn_q.weight",
    "attention.k_proj.weight": "attn_k.weight",
    "attention.v_proj.weight": "attn_v.weight",
    "attention.o_proj.weight": "attn_output.weight",
    "attention.q_norm.weight": "attn_q_norm.weight",
    "attention.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "moe.router.weight": "ffn_gate_inp.weight",
    "moe.router.expert_bias": "exp_probs_b.bias",
    "moe.experts.gate_proj": "ffn_gate_exps.weight",
    "moe.experts.up_proj": "ffn_up_exps.weight",
    "moe.experts.down_proj": "ffn_down_exps.weight",
    "moe.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "moe.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "moe.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "moe.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
OUTSIDE: Mapping[str, str] = {"embedding.weight": EMBEDDING, "norm.weight": "output_norm.weight"}


def architecture_of(config: ModelConfig, family: Family) -> Architecture:
    """The architecture of llama.cpp that equals a model of ours whose family is `family`.

    Raises UsageError naming what llama.cpp lacks.
    """
    found = ARCHITECTURES[family]
    layers = config.num_layers - len(config.moe_layers)
    if layers and not found.dense_layers:
        raise _lacking(
            found,
            f"dense layers ({layers} of {config.num_layers} are)",
            "expected model.first_dense_layers = 0 and model.moe_every = 1, or model.router.kind = sigmoid",
        )
    if config.expert_activation != "silu":
        raise _lacking(
            found,
            f"blocks gated by {config.expert_activation}",
            f"model.expert_activation is {config.expert_activation}, expected silu",
        )
    if config.attention.window is not None:
        raise _lacking(
            found, "windows of attention", f"model.attention.window is {config.attention.window}, expected none"
        )
    if config.rope.scheme not in ("none", "ntk"):
        raise _lacking(
            found,
            f"angles stretched by {config.rope.scheme} as this export writes them",
            "expected model.rope.scheme = none or ntk, or --format huggingface",
        )
    normalizes = config.router.normalize_scores and config.top_k > 1
    if found.normalizes is not None and normalizes != found.normalizes:
        raise _lacking(
            found,
            "weights of a token's experts that sum to 1 behind a gated shared expert"
            if normalizes
            else "weights of a token's experts that do not sum to 1",
            f"model.router.normalize_scores is {str(config.router.normalize_scores).lower()} and model.top_k "
            f"{config.top_k}, and the model would compute something else",
        )
    if family == "qwen2_moe" and config.shared_expert_hidden_dim and not config.shared_expert_gate:
        raise _lacking(found, "shared expert without a gate", "expected model.shared_expert_gate = true")
    width = config.num_heads * config.head_dim
    if found.square_attention and width != config.dim:
        raise _lacking(
            found,
            "heads that are together not as wide as the model",
            f"model.num_heads x model.head_dim is {width}, expected model.dim = {config.dim}",
        )
    return found


def to_gguf_tensors(
    state: Mapping[str, Tensor], config: ModelConfig, family: Family, architecture: Architecture
) -> dict[str, Tensor]:
    """The tensors of a model that the family holds as it is (targets.fit_to_family), under llama.cpp's names.

    Experts are [E, out, in], everything else as in our model. The head is the embedding: it is left out where llama.cpp
    takes the embedding by itself.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        inside = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if inside is None:
            tensors[OUTSIDE[name]] = tensor
            continue
        layer, rest = inside.groups()
        if rest not in IN_LAYERS and rest != "feed_forward_norm.weight":
            continue  # what only training uses, as in layouts.places
        is_norm = rest == "feed_forward_norm.weight"
        theirs = f"{architecture.feed_forward_norm}.weight" if is_norm else IN_LAYERS[rest]
        if architecture.interleaved and rest in ("attention.q_proj.weight", "attention.k_proj.weight"):
            tensor = _neighbours(tensor, config.head_dim)
        if rest == "moe.shared_expert_gate.weight":
            tensor = tensor.reshape(-1)
        tensors[f"blk.{layer}.{theirs}"] = tensor
    if family in UNTIED:
        tensors[HEAD] = state["embedding.weight"]
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}


def _neighbours(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head in the order 0, h/2, 1, h/2 + 1, ...: pairs of halves become pairs of neighbours."""
    rows, width = weight.shape
    halves = weight.reshape(rows // head_dim, 2, head_dim // 2, width)
    return torch.transpose(halves, 1, 2).reshape(rows, width)


def _lacking(architecture: Architecture, what: str, remedy: str) -> UsageError:
    return UsageError(
        f"llama.cpp's {architecture.name}, the nearest to this run, has no {what}, so a GGUF file would not be exact: "
        f"{remedy}; write --format huggingface instead"
    )
