"""Rotary angles for long texts: the schemes against transformers' formulas, and a cache against no cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import Qwen3MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moe_core.config import Config, ModelConfig
from moe_core.config.rope_schemes import RopeConfig
from moe_core.exchange.configs import from_huggingface, to_huggingface
from moe_core.model import MoETransformer
from moe_core.model.kv_cache import KVCache
from moe_core.model.rope import inverse_frequencies, rope_angles

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 300, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "max_seq_len": 96,
    "num_experts": 4, "top_k": 2, "expert_hidden_dim": 16,
}  # fmt: skip
SCHEMES: list[dict[str, Any]] = [
    {"scheme": "linear", "factor": 4.0},
    {"scheme": "dynamic", "factor": 4.0, "original_length": 24},
    {"scheme": "yarn", "factor": 4.0, "original_length": 24},
    {"scheme": "yarn", "factor": 40.0, "original_length": 4096, "beta_fast": 64.0, "beta_slow": 2.0},
    {"scheme": "yarn", "factor": 16.0, "original_length": 512, "attention_factor": 0.7},
    {"scheme": "llama3", "factor": 8.0, "original_length": 64},
    {"scheme": "llama3", "factor": 32.0, "original_length": 8192, "low_freq_factor": 2.0, "high_freq_factor": 7.0},
]


def their_angles(rope: RopeConfig, theta: float, width: int, tokens: int) -> tuple[torch.Tensor, float]:
    """By transformers' own function."""
    parameters: dict[str, Any] = rope.model_dump(exclude_none=True, exclude={"scheme", "original_length"})
    parameters |= {"rope_type": rope.scheme, "rope_theta": theta}
    if rope.scheme in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = rope.original_length
    config = Qwen3MoeConfig(
        head_dim=width, max_position_embeddings=rope.original_length or 2048, rope_parameters=parameters
    )
    inverse, scale = ROPE_INIT_FUNCTIONS[rope.scheme](config, CPU, seq_len=tokens)
    return inverse, float(scale)


@pytest.mark.parametrize("rope", SCHEMES)
@pytest.mark.parametrize(("theta", "width"), [(10_000.0, 64), (1e6, 128), (500.0, 8)])
def test_frequencies_and_scale_equal_those_of_transformers(rope: dict[str, Any], theta: float, width: int) -> None:
    config = ModelConfig(head_dim=width, rope_theta=theta, rope=RopeConfig(**rope))
    for tokens in (8, 24, 25, 97, 20_000):
        expected, scale = their_angles(config.rope, theta, width, tokens)
        ours, our_scale = inverse_frequencies(config, tokens, CPU)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
        assert our_scale == pytest.approx(scale, abs=1e-6)


def test_ntk_is_the_dynamic_rule_at_the_length_where_it_stretches_by_the_factor() -> None:
    ours, _ = inverse_frequencies(ModelConfig(rope=RopeConfig(scheme="ntk", factor=4.0)), 1, CPU)
    dynamic = RopeConfig(scheme="dynamic", factor=1.0, original_length=100)
    torch.testing.assert_close(ours, their_angles(dynamic, 10_000.0, 64, 400)[0], atol=1e-6, rtol=1e-6)
    # The fastest pair is left alone, the slowest is divided by the factor (bloc97's derivation).
    plain, _ = inverse_frequencies(ModelConfig(), 1, CPU)
    assert (ours / plain)[0] == 1
    assert float((ours / plain)[-1]) == pytest.approx(1 / 4, rel=1e-5)


def test_without_a_scheme_angles_and_saved_configurations_are_as_they_were() -> None:
    assert "rope" not in Config().model_dump(mode="json")["model"]
    cos, sin = rope_angles(ModelConfig(), 3, 4, CPU)
    exponents = torch.arange(0, 64, 2, dtype=torch.float32) / 64
    angles = torch.outer(torch.arange(3, 7).float(), 1.0 / (10_000.0**exponents))[:, None]
    assert torch.equal(cos, angles.cos())
    assert torch.equal(sin, angles.sin())
    saved = Config(model=ModelConfig(rope=RopeConfig(scheme="yarn", factor=2))).model_dump(mode="json")
    assert Config.model_validate(saved).model.rope.factor == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"rope": {"scheme": "ntk"}, "head_dim": 2}, "head_dim = 2 is a single pair"),
        ({"rope": {"scheme": "yarn"}, "rope_theta": 1.0}, "rope_theta = 1 makes no pair slower"),
        ({"rope": {"scheme": "yarn", "beta_fast": 1}}, "beta_slow = 1 is not below model.rope.beta_fast = 1"),
        ({"rope": {"factor": 0.5}}, "factor"),
    ],
)
def test_what_cannot_be_stretched_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(model)


@pytest.mark.parametrize("scheme", ["none", "linear", "ntk", "dynamic", "yarn", "llama3"])
def test_a_text_read_through_a_cache_is_the_text_read_at_once(scheme: str) -> None:
    """Beyond the original length, too: the cache's room is what the dynamic scheme is made for."""
    config = ModelConfig.model_validate(SMALL | {"rope": {"scheme": scheme, "factor": 4, "original_length": 24}})
    torch.manual_seed(0)
    model = MoETransformer(config).eval()
    token_ids = torch.randint(0, 300, (2, 80))
    with torch.no_grad():
        whole = model(token_ids).logits
        cache = KVCache(config, 2, 80)
        parts = [model(part, cache=cache).logits for part in token_ids.split([10, 1, 30, 1, 38], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


def test_gradients_pass_through_scaled_angles() -> None:
    config = ModelConfig.model_validate(SMALL | {"rope": {"scheme": "yarn", "factor": 8, "original_length": 24}})
    torch.manual_seed(0)
    from moe_core.model.rope import apply_rope

    cos, sin = (angle.double() for angle in rope_angles(config, 3, 2, CPU))
    x = torch.randn(1, 2, 3, 16, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(apply_rope, (x, cos, sin))


@pytest.mark.parametrize("rope", SCHEMES)
def test_a_checkpoint_says_the_scheme_and_is_read_back(rope: dict[str, Any]) -> None:
    config = ModelConfig.model_validate(SMALL | {"rope": rope, "max_seq_len": 8192})
    again, _ = from_huggingface(to_huggingface(config, "qwen3_moe", context=8192, end_of_text=0))
    for tokens in (8, 100):
        mine, theirs = (inverse_frequencies(each, tokens, CPU) for each in (config, again))
        torch.testing.assert_close(mine, theirs)


def test_yarn_without_a_factor_and_with_mscale_is_read_as_transformers_reads_it() -> None:
    tree = to_huggingface(ModelConfig.model_validate(SMALL), "qwen3_moe", context=96, end_of_text=0)
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 24, "factor": None}
    rope |= {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 0}
    ours = inverse_frequencies(from_huggingface(tree | {"rope_parameters": rope})[0], 96, CPU)
    config = Qwen3MoeConfig(head_dim=16, max_position_embeddings=96, rope_parameters=dict(rope))
    torch.testing.assert_close(ours, ROPE_INIT_FUNCTIONS["yarn"](config, CPU))
