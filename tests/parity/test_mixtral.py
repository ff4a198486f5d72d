"""With QK-norm off, our model is Mixtral: the same weights give the same logits and the same experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hugging_face_weights import as_transformers, random_model, router_indices
from transformers import MixtralForCausalLM

from moe_core.config import ModelConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_logits_and_experts_equal_mixtral(implementation: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=290,
        dim=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_seq_len=64,
        num_experts=4,
        expert_hidden_dim=24,
        qk_norm=False,
        rope_theta=5_000.0,
    )
    model = random_model(config)
    mixtral = as_transformers(model, tmp_path / "hf")
    assert isinstance(mixtral, MixtralForCausalLM)
    mixtral.set_experts_implementation(implementation)
    model, mixtral = model.to(dtype), mixtral.to(dtype)

    token_ids = torch.randint(0, 290, (2, 40))
    with torch.no_grad():
        ours = model(token_ids)
    logits, chosen = router_indices(mixtral, token_ids)
    if dtype == torch.float32:
        torch.testing.assert_close(ours.logits, logits, atol=1e-4, rtol=0)
        for routed, theirs in zip(ours.router_outputs, chosen, strict=True):
            assert torch.equal(routed.router_indices, theirs)
    else:
        # Products rounded in another order may tip a near tie between experts; the bulk must agree to rounding.
        same = torch.stack([(r.router_indices == c).all(1) for r, c in zip(ours.router_outputs, chosen, strict=True)])
        assert same.float().mean() > 0.95
        assert (ours.logits - logits).abs().float().median() < 0.02 * logits.float().std()
