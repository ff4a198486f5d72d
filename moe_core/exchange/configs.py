"""config.json of transformers' families from our configuration, and back. What our model lacks is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_core.config import ModelConfig, validate_config
from moe_core.errors import RunError, UsageError
from moe_core.exchange.layouts import FAMILIES, Family
from moe_core.program import program

CLASSES: dict[Family, str] = {
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}
# The meaning of a config.json that leaves these out: defaults of transformers 5.23 that change what a model computes.
DEFAULTS: dict[Family, dict[str, Any]] = {
    "mixtral": {"rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "qwen3_moe": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "norm_topk_prob": False},
    "qwen2_moe": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "norm_topk_prob": False, "qkv_bias": True},
    "granitemoeshared": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "attention_multiplier": 1.0},
    "glm4_moe": {
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "norm_topk_prob": True, "use_qk_norm": False,
        "partial_rotary_factor": 0.5, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
}  # fmt: skip
# Options of which our model has one value only. "absent" stands for the default, which is that value.
PLAIN: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "qkv_bias": False,
    "use_sliding_window": False,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
}


def to_huggingface(config: ModelConfig, family: Family, *, context: int, end_of_text: int) -> dict[str, Any]:
    """The config.json of our model, which `family` must hold as it is (targets.fit_to_family).

    `context`: tokens the model has learned to see at once. `end_of_text`: id of the token that begins and ends texts.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
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
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "attention_bias": False,
        "tie_word_embeddings": True,
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
            **{key: PLAIN[key] for key in ("embedding_multiplier", "logits_scaling", "residual_multiplier")},
        }
    elif family in ("qwen3_moe", "qwen2_moe"):
        tree |= {"num_experts": config.num_experts, "mlp_only_layers": dense, "decoder_sparse_step": 1}
        tree |= {"use_sliding_window": False, "sliding_window": None}
        if family == "qwen2_moe":
            tree |= {"shared_expert_intermediate_size": config.shared_expert_hidden_dim, "qkv_bias": False}
    elif family == "glm4_moe":
        tree |= {
            "n_routed_experts": config.num_experts,
            "n_shared_experts": config.shared_expert_hidden_dim // config.expert_hidden_dim,
            "first_k_dense_replace": len(dense),
            "use_qk_norm": config.qk_norm,
            "partial_rotary_factor": 1.0,
            "num_nextn_predict_layers": 0,
            **{key: PLAIN[key] for key in ("routed_scaling_factor", "n_group", "topk_group")},
        }
        rope["partial_rotary_factor"] = 1.0
    return tree


def from_huggingface(tree: Mapping[str, Any]) -> tuple[ModelConfig, Family]:
    """Our configuration of the model that a config.json describes, and its family.

    Raises UsageError for an architecture or option that our model does not have, RunError for a config.json that
    lacks a size.
    """
    family = _family(tree)
    tree = {**DEFAULTS[family], **{key: value for key, value in tree.items() if value is not None}}
    _refuse_unlike(tree, family)
    top_k = _size(tree, "num_experts_per_tok")
    normalized = bool(tree.get("norm_topk_prob", True))
    if normalized and top_k == 1:
        raise _refuse_key("num_experts_per_tok", 1, "our model weighs a single expert by its probability, not by 1")
    layers, heads = _size(tree, "num_hidden_layers"), _size(tree, "num_attention_heads")
    dim = _size(tree, "hidden_size")
    head_dim = int(tree.get("head_dim") or dim // heads)
    if family == "granitemoeshared" and abs(tree["attention_multiplier"] * head_dim**0.5 - 1) > 1e-6:
        raise _refuse_key(
            "attention_multiplier", tree["attention_multiplier"], f"expected head_dim**-0.5 = {head_dim**-0.5}"
        )
    first_dense, every = _dense_pattern(_moe_layers(tree, family, layers), layers)
    fused = family in ("mixtral", "granitemoeshared")
    expert_dim = _size(tree, "intermediate_size" if fused else "moe_intermediate_size")
    model = {
        "vocab_size": _size(tree, "vocab_size"),
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": int(tree.get("num_key_value_heads") or heads),
        "head_dim": head_dim,
        "max_seq_len": _size(tree, "max_position_embeddings"),
        "rope_theta": _rope_theta(tree),
        "norm_eps": tree["rms_norm_eps"],
        "qk_norm": family == "qwen3_moe" or (family == "glm4_moe" and bool(tree["use_qk_norm"])),
        "num_experts": _num_experts(tree),
        "top_k": top_k,
        "expert_hidden_dim": expert_dim,
        "shared_expert_hidden_dim": _shared_width(tree, family, expert_dim),
        "shared_expert_gate": family == "qwen2_moe",
        "first_dense_layers": first_dense,
        "moe_every": every,
        "dense_hidden_dim": _size(tree, "intermediate_size"),
        "router": {"kind": "sigmoid" if family == "glm4_moe" else "softmax", "normalize_scores": normalized},
    }
    try:
        return validate_config({"model": model, "training": {"seq_len": 8}}).model, family
    except UsageError as error:
        raise UsageError(f"the checkpoint's config.json describes a model that ours cannot be: {error}") from None


def _family(tree: Mapping[str, Any]) -> Family:
    found = tree.get("model_type")
    for family in FAMILIES:
        if found == family:
            return family
    raise UsageError(
        f"the checkpoint's model_type is {str(found)[:60]!r}; our model can become one of {', '.join(FAMILIES)}: look "
        f"at other models with `{program()} trace --model`"
    )


def _refuse_unlike(tree: Mapping[str, Any], family: Family) -> None:
    for key, value in PLAIN.items():
        if tree.get(key, value) != value:
            raise _refuse_key(key, tree[key], f"our model has {value!r} only")
    if tree.get("quantization_config"):
        raise _refuse_key("quantization_config", "…", "expected weights that are not quantised")
    # These families use a window if it is given; Qwen's are off unless use_sliding_window is true.
    if family == "mixtral" and tree.get("sliding_window"):
        raise _refuse_key("sliding_window", tree["sliding_window"], "our attention sees the whole context")
    rope = _rope(tree)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise _refuse_key("rope_type", kind, "our model has the default one only")
    part = rope.get("partial_rotary_factor", tree.get("partial_rotary_factor", 1.0))
    if part != 1.0:
        raise _refuse_key("partial_rotary_factor", part, "our model rotates whole heads, 1.0")


def _refuse_key(key: str, value: object, reason: str) -> UsageError:
    return UsageError(f"the checkpoint cannot be imported: its {key} is {value!r}; {reason}")


def _size(tree: Mapping[str, Any], key: str) -> int:
    value = tree.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RunError(f"the checkpoint's config.json has {key} = {value!r}; expected a whole number")
    return value


def _num_experts(tree: Mapping[str, Any]) -> int:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return _size(tree, next((name for name in names if name in tree), names[0]))


def _shared_width(tree: Mapping[str, Any], family: Family, expert_dim: int) -> int:
    if family == "glm4_moe":
        return expert_dim * _size(tree, "n_shared_experts")
    if family == "qwen2_moe":
        return _size(tree, "shared_expert_intermediate_size")
    return _size({"shared_intermediate_size": 0, **tree}, "shared_intermediate_size")


def _rope(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = tree.get("rope_parameters", tree.get("rope_scaling")) or {}
    if not isinstance(rope, Mapping):
        raise RunError(f"the checkpoint's config.json has rope_parameters = {str(rope)[:60]!r}; expected an object")
    return rope


def _rope_theta(tree: Mapping[str, Any]) -> float:
    return float(_rope(tree).get("rope_theta", tree["rope_theta"]))


def _moe_layers(tree: Mapping[str, Any], family: Family, layers: int) -> list[int]:
    if family == "glm4_moe":
        return list(range(_size(tree, "first_k_dense_replace"), layers))
    if family in ("qwen2_moe", "qwen3_moe"):
        step, dense = int(tree.get("decoder_sparse_step", 1)), set(tree.get("mlp_only_layers", []))
        return [layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0]
    return list(range(layers))


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
