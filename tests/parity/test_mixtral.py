"""With QK-norm off, our model is Mixtral: the same weights give the same logits and the same experts."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moe_core.config import ModelConfig
from moe_core.model import MoETransformer
from tests.parity.hugging_face_weights import load_into, router_indices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_logits_and_experts_equal_mixtral(implementation: str, dtype: torch.dtype) -> None:
    config = ModelConfig(
        vocab_size=300,
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
    torch.manual_seed(0)
    model = MoETransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    mixtral = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=64,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": 5_000.0},
            num_local_experts=4,
            num_experts_per_tok=2,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    ).eval()
    mixtral.set_experts_implementation(implementation)
    load_into(mixtral, model)
    model, mixtral = model.to(dtype), mixtral.to(dtype)

    token_ids = torch.randint(0, 300, (2, 40))
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
