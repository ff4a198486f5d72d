"""With QK-norm on, our model is Qwen3-MoE, with or without dense layers and normalised scores."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe_core.config import ModelConfig
from moe_core.model import KVCache, MoETransformer
from tests.parity.hugging_face_weights import load_into, router_indices


def pair(normalize_scores: bool, first_dense_layers: int, moe_every: int) -> tuple[MoETransformer, Qwen3MoeForCausalLM]:
    """Our model and theirs, with the same random weights."""
    config = ModelConfig.model_validate(
        {
            "vocab_size": 300,
            "dim": 32,
            "num_layers": 4,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "max_seq_len": 64,
            "num_experts": 6,
            "top_k": 3,
            "expert_hidden_dim": 24,
            "dense_hidden_dim": 40,
            "first_dense_layers": first_dense_layers,
            "moe_every": moe_every,
            "router": {"normalize_scores": normalize_scores},
        }
    )
    torch.manual_seed(0)
    model = MoETransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    qwen = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=40,
            moe_intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=64,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=normalize_scores,
            mlp_only_layers=[i for i in range(4) if i not in config.moe_layers],
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    ).eval()
    load_into(qwen, model)
    return model, qwen


@pytest.mark.parametrize("normalize_scores", [True, False])
@pytest.mark.parametrize(("first_dense_layers", "moe_every"), [(0, 1), (1, 1), (0, 2)])
def test_logits_and_experts_equal_qwen3_moe(normalize_scores: bool, first_dense_layers: int, moe_every: int) -> None:
    model, qwen = pair(normalize_scores, first_dense_layers, moe_every)
    token_ids = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        ours = model(token_ids)
    logits, chosen = router_indices(qwen, token_ids)
    torch.testing.assert_close(ours.logits, logits, atol=1e-4, rtol=0)
    for routed, theirs in zip(ours.router_outputs, chosen, strict=True):
        assert torch.equal(routed.router_indices, theirs)


@torch.no_grad()
def test_cached_decoding_equals_theirs() -> None:
    model, qwen = pair(True, 0, 1)
    token_ids = torch.randint(0, 300, (1, 20))
    cache = KVCache(model.config, 1, 20)
    ours = torch.cat([model(part, cache=cache).logits for part in token_ids.split([15, 1, 1, 1, 1, 1], dim=1)], dim=1)
    torch.testing.assert_close(ours, qwen(token_ids).logits, atol=1e-4, rtol=0)
