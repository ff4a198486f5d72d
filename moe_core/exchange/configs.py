"""config.json of transformers' families from our configuration, and back. What our model lacks is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from moe_core.config import ModelConfig
from moe_core.errors import UsageError, first_fault
from moe_core.exchange.family_configs import FamilyConfig, GraniteMoeSharedConfig, read_family_config
from moe_core.exchange.layouts import UNTIED, Family
from moe_core.exchange.refusing import refuse_key
from moe_core.exchange.rope_parameters import positions, rope_parameters
from moe_core.exchange.window_keys import window_keys

CLASSES: dict[Family, str] = {
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}


def to_huggingface(config: ModelConfig, family: Family, *, context: int, end_of_text: int) -> dict[str, Any]:
    """The config.json of our model, which `family` must hold as it is (targets.fit_to_family).

    `context`: tokens the model has learned to see at once. `end_of_text`: id of the token that begins and ends texts.
    """
    rope = rope_parameters(config)
    by_switch_loss = config.router.balances_by in ("layer", "global_batch")
    tree: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.expert_activation,
        "max_position_embeddings": positions(config, context),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "attention_bias": False,
        "tie_word_embeddings": family not in UNTIED,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "num_experts_per_tok": config.top_k,
        "router_aux_loss_coef": config.router.load_balancing_loss_coef if by_switch_loss else 0.0,
    }
    normalized = config.router.normalize_scores and config.top_k > 1
    dense = [layer for layer in range(config.num_layers) if layer not in config.moe_layers]
    if family in ("mixtral", "granitemoeshared"):
        tree |= {"num_local_experts": config.num_experts, "intermediate_size": config.expert_hidden_dim}
    else:
        tree |= {
            "moe_intermediate_size": config.expert_hidden_dim,
            "intermediate_size": config.dense_hidden_dim,
            "norm_topk_prob": normalized,
        }
    if family == "granitemoeshared":
        tree |= {
            "shared_intermediate_size": config.shared_expert_hidden_dim,
            "attention_multiplier": config.head_dim**-0.5,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
        }
    elif family in ("qwen3_moe", "qwen2_moe"):
        tree |= {"num_experts": config.num_experts, "mlp_only_layers": dense, "decoder_sparse_step": 1}
        if family == "qwen2_moe":
            tree |= {"shared_expert_intermediate_size": config.shared_expert_hidden_dim, "qkv_bias": True}
    elif family == "glm4_moe":
        tree |= {
            "n_routed_experts": config.num_experts,
            "n_shared_experts": config.shared_expert_hidden_dim // config.expert_hidden_dim,
            "first_k_dense_replace": len(dense),
            "use_qk_norm": config.qk_norm,
            "partial_rotary_factor": 1.0,
            "num_nextn_predict_layers": 0,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
        }
        rope["partial_rotary_factor"] = 1.0
    return tree | window_keys(config, family)


# Our key -> the key of a config.json that it is read from, for refusals.
THEIR_KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "num_experts": "the number of experts (num_experts, num_local_experts, n_routed_experts)",
    "top_k": "num_experts_per_tok",
    "expert_hidden_dim": "the experts' width (moe_intermediate_size, intermediate_size)",
    "shared_expert_hidden_dim": "the shared expert's width",
    "dense_hidden_dim": "intermediate_size",
}


def from_huggingface(tree: Mapping[str, Any]) -> tuple[ModelConfig, Family]:
    """Our configuration of the model that a config.json describes, and its family.

    Raises UsageError for an architecture or option that our model does not have, RunError for a value of a wrong type.
    """
    theirs, family = read_family_config(tree)
    return model_config_of(theirs, family), family


def model_config_of(theirs: FamilyConfig, family: Family) -> ModelConfig:
    """Our configuration of the same model. Raises UsageError where there is none."""
    if theirs.normalizes and theirs.num_experts_per_tok == 1:
        raise refuse_key("num_experts_per_tok", 1, "our model weighs a single expert by its probability, not by 1")
    model: dict[str, object] = {
        "vocab_size": theirs.vocab_size,
        "dim": theirs.hidden_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_attention_heads
        if theirs.num_key_value_heads is None
        else theirs.num_key_value_heads,
        "head_dim": theirs.head_width,
        "max_seq_len": _longest(theirs),
        "rope_theta": theirs.rope_theta,
        "rope": theirs.rope,
        "attention": theirs.attention,
        "norm_eps": theirs.rms_norm_eps,
        "qk_norm": theirs.norms_queries,
        "num_experts": theirs.experts,
        "top_k": theirs.num_experts_per_tok,
        "expert_hidden_dim": theirs.expert_width,
        "expert_activation": "gelu" if theirs.hidden_act == "gelu" else "silu",
        "shared_expert_hidden_dim": theirs.shared_width,
        "shared_expert_gate": family == "qwen2_moe" and theirs.shared_width > 0,
        "dense_hidden_dim": theirs.intermediate_size,
        "router": {"kind": theirs.scores, "normalize_scores": theirs.normalizes},
    }
    # Sizes first: what follows takes time by the number of layers.
    _validated(model)
    if isinstance(theirs, GraniteMoeSharedConfig) and abs(theirs.attention_multiplier * theirs.head_width**0.5 - 1) > (
        1e-6
    ):
        raise refuse_key(
            "attention_multiplier",
            theirs.attention_multiplier,
            f"expected head_dim**-0.5 = {theirs.head_width**-0.5}",
        )
    first_dense, every = _dense_pattern(theirs.moe_layers, theirs.num_hidden_layers)
    return _validated(model | {"first_dense_layers": first_dense, "moe_every": every})


def _longest(theirs: FamilyConfig) -> int:
    """For the dynamic scheme, max_position_embeddings is where stretching begins, not where texts end."""
    if theirs.rope.scheme == "dynamic":
        return int(theirs.max_position_embeddings * theirs.rope.factor)
    return theirs.max_position_embeddings


def _validated(model: dict[str, object]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(model)
    except ValidationError as error:
        fault = first_fault(error)
        message = fault.message
        if fault.key in THEIR_KEYS:
            message = f"{THEIR_KEYS[fault.key]} = {fault.value}: {message}"
        raise UsageError(f"the checkpoint's config.json describes a model that ours cannot be: {message}") from None


def _dense_pattern(moe_layers: list[int], layers: int) -> tuple[int, int]:
    """first_dense_layers and moe_every that give these MoE layers."""
    if not moe_layers:
        raise UsageError("the checkpoint has no router: all its layers are dense; expected a Mixture of Experts")
    for every in range(1, layers + 1):
        first = moe_layers[0] + 1 - every
        if first >= 0 and [i for i in range(first, layers) if (i - first + 1) % every == 0] == moe_layers:
            return first, every
    raise UsageError(
        f"the checkpoint cannot be imported: its MoE layers are {moe_layers}; our model has every n-th layer, after "
        "some dense ones at the bottom"
    )
