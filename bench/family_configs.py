"""A tiny, randomly initialised text model of every mixture-of-experts family of the installed transformers library."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VOCABULARY = 99

# What makes a model small, by the many names that configurations have for it; a configuration takes what it knows.
_WIDTHS = (
    "hidden_size d_model n_embd intermediate_size moe_intermediate_size ffn_hidden_size expert_ffn_hidden_size d_ff "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size shared_experts_intermediate_size "
    "encoder_ffn_dim decoder_ffn_dim expert_dim share_expert_dim router_hidden_size dense_intermediate_size "
    "intermediate_size_mlp moe_latent_size"
)
_COUNTS = {
    2: "num_hidden_layers n_layers num_layers num_decoder_layers encoder_layers decoder_layers num_key_value_heads "
    "kv_n_heads num_kv_heads num_global_key_value_heads num_experts_per_tok num_experts_per_token moe_topk moe_top_k "
    "top_k_experts moe_k",
    4: "num_attention_heads n_heads num_heads encoder_attention_heads decoder_attention_heads mamba_num_heads "
    "mamba_n_heads mamba_d_conv index_n_heads linear_num_heads linear_num_key_heads linear_num_value_heads",
    8: "num_experts num_local_experts n_routed_experts moe_num_experts head_dim global_head_dim d_kv qk_rope_head_dim "
    "qk_nope_head_dim v_head_dim mamba_d_state ssm_state_size kv_channels hidden_size_per_layer_input "
    "linear_head_dim linear_key_head_dim linear_value_head_dim",
    16: "q_lora_rank kv_lora_rank o_lora_rank qk_head_dim mamba_head_dim mamba_d_head index_head_dim sliding_window",
    1: "n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts n_groups mamba_n_groups",
    0: "first_k_dense_replace num_dense_layers pad_token_id",
    64: "max_position_embeddings n_positions max_seq_len",
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
}
_SMALL: dict[str, int] = dict.fromkeys(_WIDTHS.split(), 32) | {
    name: value for value, names in _COUNTS.items() for name in names.split()
}

# What a family needs besides, or to have other layers than sparse ones with attention.
_LATENT = {"num_key_value_heads": 4}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_SPARSE = {"mlp_layer_types": ["sparse", "sparse"]}


def _rope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}


_OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": _LATENT | _MIXED | _SPARSE,
    "beam": _SPARSE,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_ocr2": _SPARSE,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe"]},
    "diffusion_gemma": {"layer_types": ["sliding_attention", "full_attention"]},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots3_note": _LATENT,
    "ernie4_5_vl_moe": _SPARSE | {"moe_intermediate_size": [32, 32], "rope_parameters": _rope([1, 1, 2])},
    "flint": {"mlp_only_layers": []},
    "gemma4": {"enable_moe_block": True},
    "glm4_moe_lite": _LATENT,
    "glm4v_moe": {"rope_parameters": _rope([1, 1, 0])},
    "glm5_next": _LATENT | _SPARSE | _MIXED | {"qk_rope_head_dim": 0, "head_dim": 0},
    "glm_moe_dsa": _LATENT,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_period": 1, "expert_layer_offset": 0},
    "kimi_linear": _LATENT | _MIXED | _SPARSE | {"q_lora_rank": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": _LATENT | {"zero_expert_num": 2},
    "mistral4": _LATENT,
    "mistral_large4": _LATENT,
    "nllb_moe": {"encoder_sparse_step": 1, "decoder_sparse_step": 1},
    "qwen3_5_moe": _MIXED,
    "qwen3_next": _MIXED,
    "qwen4_exp": _MIXED
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "step3p7": _SPARSE | {"layer_types": ["full_attention", "sliding_attention"]},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
}
_CLASSES = {
    "diffusion_gemma": "DiffusionGemmaEncoderTextModel",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerTextModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
    "nllb_moe": "NllbMoeEncoder",
}
"""Text models that are neither ...ForCausalLM nor ...TextModel, or of which only a part reads one text."""


def families() -> list[str]:
    """Folders of transformers.models whose code knows router logits, in alphabetical order."""
    import transformers

    root = Path(transformers.__file__).parent / "models"
    files = sorted(root.glob("*/modeling_*.py"))
    return sorted({file.parent.name for file in files if "router_logits" in file.read_text(encoding="utf-8")})


def text_model_class(family: str) -> Any:
    """The class of a family's text model, the one with a language head where there is one."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if family in _CLASSES:
        return getattr(module, _CLASSES[family])
    models = {
        name: model
        for name, model in vars(module).items()
        if inspect.isclass(model) and model.__module__ == module.__name__ and hasattr(model, "_can_record_outputs")
    }
    for ending in ("ForCausalLM", "TextModel", "Model"):
        found = [name for name in models if name.endswith(ending) and "PreTrained" not in name]
        if found:
            return models[min(found, key=len)]
    raise LookupError(f"no text model in transformers.models.{family}")


def tiny_config(family: str, model_class: Any) -> Any:
    """A configuration of about 50,000 weights: 2 layers, 8 experts, 2 of them a token, wherever the family allows."""
    config_class = model_class.config_class
    known = {field.name: field.default for field in dataclasses.fields(config_class)}
    values = {name: value for name, value in _SMALL.items() if name in known}
    return config_class(**(values | _OVERRIDES.get(family, {})))


def tiny_model(family: str) -> torch.nn.Module:
    """The text model of a family in eval mode, random, its routers decided: logits spread and biases not 0."""
    import torch

    from moe_core.routing.instruments.find import find_routers

    model_class = text_model_class(family)
    torch.manual_seed(0)
    model: torch.nn.Module = model_class(tiny_config(family, model_class)).eval()
    for router in find_routers(model).values():
        for weight in router.module.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    for name, buffer in model.named_buffers():
        if "bias" in name and buffer.is_floating_point():
            buffer.uniform_(-0.3, 0.3)
        if name.endswith("tid2eid"):  # which experts a token's id leads to
            buffer.copy_(torch.rand(len(buffer), 8).argsort(dim=1)[:, : buffer.shape[1]])
    return model
