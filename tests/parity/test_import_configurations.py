"""Every configuration that is imported computes what transformers computes; every other is refused by a key's name.

Configurations are drawn at random, with keys of other families among them, old names of rope keys, biases and values
that our model does not have.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import masking_utils
from transformers.models.glm4_moe import modeling_glm4_moe
from transformers.models.granitemoeshared import modeling_granitemoeshared
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen2_moe import modeling_qwen2_moe
from transformers.models.qwen3_moe import modeling_qwen3_moe

from moe_core.errors import MoescopeError
from moe_core.exchange.configs import model_config_of
from moe_core.exchange.family_configs import FAMILY_CONFIGS, INERT_COMMON, ONLY_COMMON, read_family_config
from moe_core.exchange.import_ import read_model
from moe_core.exchange.layouts import FAMILIES, Family
from moe_core.exchange.weight_files import read_config_file

# A shared expert without hidden units is a matter of this file.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")

CLASSES: dict[Family, tuple[Any, Any, Any]] = {
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM, modeling_mixtral),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, modeling_qwen3_moe),
    "qwen2_moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM, modeling_qwen2_moe),
    "granitemoeshared": (
        transformers.GraniteMoeSharedConfig, transformers.GraniteMoeSharedForCausalLM, modeling_granitemoeshared,
    ),
    "glm4_moe": (transformers.Glm4MoeConfig, transformers.Glm4MoeForCausalLM, modeling_glm4_moe),
}  # fmt: skip
# Attributes of a configuration object that are no keys of config.json, or that only say how to compute, not what.
NOT_KEYS = {"get_text_config", "_attn_implementation", "_experts_implementation", "rope_parameters"}
SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
OWN: dict[Family, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "qwen2_moe": {
        "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 12, "qkv_bias": False,
    },
    "granitemoeshared": {"num_local_experts": 4, "shared_intermediate_size": 12, "attention_multiplier": 8**-0.5},
    "glm4_moe": {"n_routed_experts": 4, "moe_intermediate_size": 16, "partial_rotary_factor": 1.0, "head_dim": 8},
}  # fmt: skip

ROPE = st.sampled_from(
    [
        {"rope_theta": 300.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rope_theta": 77.0},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 77},
        {"rope_parameters": {"rope_theta": 400.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_theta": 400.0, "partial_rotary_factor": 1.0}},
        {"rope_parameters": {}},
        {"rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 50.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 50.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 50.0},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 60.0}, "rope_parameters": {"rope_theta": 9000.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 9000.0}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 20.0},
        {"rope_scaling": None, "rope_theta": 20.0},
        {"rope_scaling": {}, "rope_theta": 20.0},
        {"partial_rotary_factor": 0.5},
        {"partial_rotary_factor": None},
        {"partial_rotary_factor": 1},
        {"rope_theta": 0.01},
        {"rope_theta": 1e11},
        {
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "rope_theta": 100.0,
        },
    ]
)  # fmt: skip
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "hidden_act": st.sampled_from(["silu", "swish", "gelu", "relu"]),
    "head_dim": st.sampled_from([8, 16, 6, 7]),
    "num_key_value_heads": st.sampled_from([1, 2, 4]),
    "num_experts_per_tok": st.sampled_from([1, 2, 3, 4]),
    "rms_norm_eps": st.sampled_from([1e-6, 1e-5, 0.1]),
    "norm_topk_prob": st.booleans(),
    "attention_bias": st.booleans(),
    "qkv_bias": st.booleans(),
    "use_qk_norm": st.booleans(),
    "tie_word_embeddings": st.booleans(),
    "sliding_window": st.sampled_from([None, 0, 4, 4096]),
    "use_sliding_window": st.booleans(),
    "max_window_layers": st.sampled_from([0, 1, 28]),
    "layer_types": st.sampled_from(
        [None, ["full_attention"] * 3, ["sliding_attention"] * 3, ["full_attention", "sliding_attention"] * 2]
    ),
    "decoder_sparse_step": st.sampled_from([1, 2, 3, 4]),
    "mlp_only_layers": st.sampled_from([None, [], [0], [1], [2], [0, 1], [0, 1, 2], [7, -1]]),
    "first_k_dense_replace": st.sampled_from([-1, 0, 1, 2, 3, 9]),
    "n_group": st.sampled_from([1, 2]),
    "topk_group": st.sampled_from([1, 2]),
    "n_shared_experts": st.sampled_from([0, 1, 2]),
    "shared_expert_intermediate_size": st.sampled_from([0, 1, 20]),
    "shared_intermediate_size": st.sampled_from([0, 1, 20]),
    "routed_scaling_factor": st.sampled_from([1.0, 1, 2.5]),
    "embedding_multiplier": st.sampled_from([1.0, 12.0]),
    "logits_scaling": st.sampled_from([1.0, 6.0]),
    "residual_multiplier": st.sampled_from([1.0, 0.22]),
    "attention_multiplier": st.sampled_from([1.0, 8**-0.5, 16**-0.5, 0.0078125]),
    "attention_dropout": st.sampled_from([0.0, 0.5]),
    "router_jitter_noise": st.sampled_from([0.0, 0.5]),
    "output_router_logits": st.booleans(),
    "use_cache": st.booleans(),
    "is_causal": st.booleans(),
    "attention_chunk_size": st.sampled_from([None, 4]),
    "num_experts": st.sampled_from([4, 5]),
    "num_local_experts": st.sampled_from([4, 5]),
    "num_mtp_layers": st.sampled_from([0, 1]),
    "scale_attn_by_inverse_layer_idx": st.booleans(),
    "clip_qkv": st.sampled_from([None, 0.1]),
    "final_logit_softcapping": st.sampled_from([None, 5.0]),
}


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """A few keys at once, of whatever family."""
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True))
    drawn = {key: draw(VALUES[key]) for key in keys}
    return drawn | (draw(ROPE) if draw(st.booleans()) else {})


def parity_or_refusal(family: Family, change: dict[str, Any], *, seed: int, zero_biases: bool) -> str:
    """ "imported" where the logits agree, else the refusal; "" where transformers itself has no such model."""
    config_class, model_class, _ = CLASSES[family]
    tree = {"model_type": family, **SMALL, **OWN[family], **change}
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(tree))
        expected = None
        try:
            theirs = model_class(config_class.from_pretrained(folder)).eval()
            for key, tensor in theirs.state_dict().items():
                tensor.copy_(
                    0 * tensor if zero_biases and key.endswith("proj.bias") else 0.3 * torch.randn(tensor.shape)
                )
            token_ids = torch.randint(0, 300, (2, 24))
            theirs.save_pretrained(folder)
            # What is imported is the file as it was written by hand; transformers reads the same one.
            (folder / "config.json").write_text(json.dumps(tree))
            theirs = model_class.from_pretrained(folder, dtype=torch.float32).eval()
            with torch.no_grad():
                expected = theirs(token_ids).logits
        except Exception:
            pass
        try:
            typed, found = read_family_config(read_config_file(folder / "config.json"))
            config = model_config_of(typed, found)
            if expected is None:
                return ""
            ours = read_model(folder, typed, config, found)
        except MoescopeError as error:
            return str(error)
        with torch.no_grad():
            torch.testing.assert_close(ours(token_ids).logits, expected, atol=1e-4, rtol=1e-5)
        return "imported"


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(change=changes(), seed=st.integers(0, 9), zero_biases=st.booleans())
@example(change={}, seed=0, zero_biases=False)
@example(change={"norm_topk_prob": False}, seed=0, zero_biases=False)
@example(change={"norm_topk_prob": True}, seed=0, zero_biases=False)
@example(change={"sliding_window": 0}, seed=0, zero_biases=False)
@example(change={"qkv_bias": True, "attention_bias": True}, seed=0, zero_biases=True)
@example(change={"shared_expert_intermediate_size": 0, "n_shared_experts": 0}, seed=0, zero_biases=False)
def test_logits_agree_or_the_key_is_named(family: Family, change: dict[str, Any], seed: int, zero_biases: bool) -> None:
    outcome = parity_or_refusal(family, change, seed=seed, zero_biases=zero_biases)
    named = {
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
        "MoE layers",
        "no router",
        "lm_head.weight",
        "head_dim",
        *VALUES,
        *change,
    }
    assert "\n" not in outcome
    # Our own names of theirs, where several keys do not fit together.
    named |= {"top_k", "num_experts", "bias"}
    assert outcome in ("imported", "") or any(key in outcome for key in named), outcome


@pytest.mark.parametrize(
    ("family", "change", "outcome"),
    [
        ("mixtral", {}, "imported"),
        ("mixtral", {"norm_topk_prob": False}, "imported"),
        ("mixtral", {"sliding_window": 0}, "sliding_window is 0"),
        ("mixtral", {"sliding_window": 4}, "imported"),
        ("mixtral", {"sliding_window": 4, "layer_types": ["full_attention"] * 3}, "layer_types is .* every layer"),
        ("qwen3_moe", {"sliding_window": 4, "use_sliding_window": True}, "imported"),
        ("qwen2_moe", {"sliding_window": 4, "use_sliding_window": True}, "imported"),
        ("qwen2_moe", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}, "imported"),
        (
            "qwen2_moe",
            {
                "sliding_window": 4,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            "layer_types .* num_hidden_layers = 3",
        ),
        (
            "qwen2_moe",
            {
                "sliding_window": 4,
                "use_sliding_window": True,
                "layer_types": ["full_attention"] + ["sliding_attention"] * 2,
            },
            "imported",
        ),
        ("granitemoeshared", {"sliding_window": 4}, "sliding_window is 4"),
        ("mixtral", {"attention_bias": True, "use_sliding_window": True, "routed_scaling_factor": 9.0}, "imported"),
        ("qwen3_moe", {"attention_bias": True}, "attention_bias .* is not zero"),
        ("qwen3_moe", {"is_causal": None}, "is_causal is None"),
        ("qwen3_moe", {"num_local_experts": 4}, "imported"),
        ("qwen3_moe", {"num_local_experts": 5}, "num_local_experts is 5; its num_experts is 4"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "imported"),
        ("qwen2_moe", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("qwen2_moe", {"n_group": 4, "norm_topk_prob": True}, "imported"),
        ("granitemoeshared", {"norm_topk_prob": False, "num_experts": 9}, "imported"),
        ("granitemoeshared", {"logits_scaling": 6.0}, "logits_scaling is 6.0"),
        ("granitemoeshared", {"attention_multiplier": 1.0}, "attention_multiplier is 1.0"),
        ("glm4_moe", {"n_shared_experts": 0}, "imported"),
        ("glm4_moe", {"partial_rotary_factor": None}, "imported"),
        ("glm4_moe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("glm4_moe", {"n_group": 2, "topk_group": 1}, "n_group is 2"),
        ("glm4_moe", {"first_k_dense_replace": -1, "use_qk_norm": True}, "imported"),
    ],
)
def test_known_cases(family: Family, change: dict[str, Any], outcome: str) -> None:
    assert re.search(outcome, parity_or_refusal(family, change, seed=0, zero_biases=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_biases_are_imported(family: Family) -> None:
    change = {"qkv_bias": True, "attention_bias": True}
    assert parity_or_refusal(family, change, seed=0, zero_biases=True) == "imported"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_transformers_has_a_fate(family: Family) -> None:
    """What its configuration class declares, and what the model's code and the masks read, is decided here by name."""
    config_class, _, modeling = CLASSES[family]
    kind = FAMILY_CONFIGS[family]
    decided = {*kind.model_fields, *kind.aliases, *kind.only, *kind.inert, *ONLY_COMMON, *INERT_COMMON, *NOT_KEYS}
    source = inspect.getsource(modeling) + inspect.getsource(masking_utils.create_causal_mask)
    read = set(re.findall(r"\bconfig\.([a-z_]+)\b", source))
    read |= set(re.findall(r"getattr\((?:self\.)?config, \"([a-z_]+)\"", source))
    declared = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    assert {"hidden_act", "num_experts_per_tok", "is_causal"} <= read | declared
    assert not (read | declared) - decided
    # Defaults are theirs, so that a config.json which leaves a key out means the same.
    defaults = config_class()
    for key, field in kind.model_fields.items():
        if key in config_class.__dataclass_fields__ and not field.is_required():
            assert config_class.__dataclass_fields__[key].default == field.default, key
    assert defaults.rope_parameters["rope_theta"] == kind.default_rope_base
