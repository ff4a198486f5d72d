"""With QK-norm on, our model is Qwen3-MoE, with or without dense layers and normalised scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hugging_face_weights import as_transformers, random_model, router_indices
from transformers import Qwen3MoeForCausalLM

from moe_core.config import ModelConfig
from moe_core.model import KVCache, MoETransformer


def pair(
    folder: Path, normalize_scores: bool, first_dense_layers: int, moe_every: int
) -> tuple[MoETransformer, torch.nn.Module]:
    """Our model and theirs, with the same random weights."""
    config = ModelConfig.model_validate(
        {
            "vocab_size": 290,
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
    model = random_model(config)
    qwen = as_transformers(model, folder)
    assert isinstance(qwen, Qwen3MoeForCausalLM)
    return model, qwen


@pytest.mark.parametrize("normalize_scores", [True, False])
@pytest.mark.parametrize(("first_dense_layers", "moe_every"), [(0, 1), (1, 1), (0, 2)])
def test_logits_and_experts_equal_qwen3_moe(
    normalize_scores: bool, first_dense_layers: int, moe_every: int, tmp_path: Path
) -> None:
    model, qwen = pair(tmp_path / "hf", normalize_scores, first_dense_layers, moe_every)
    token_ids = torch.randint(0, 290, (2, 40))
    with torch.no_grad():
        ours = model(token_ids)
    logits, chosen = router_indices(qwen, token_ids)
    torch.testing.assert_close(ours.logits, logits, atol=1e-4, rtol=0)
    for routed, theirs in zip(ours.router_outputs, chosen, strict=True):
        assert torch.equal(routed.router_indices, theirs)


@torch.no_grad()
def test_cached_decoding_equals_theirs(tmp_path: Path) -> None:
    model, qwen = pair(tmp_path / "hf", True, 0, 1)
    token_ids = torch.randint(0, 290, (1, 20))
    cache = KVCache(model.config, 1, 20)
    ours = torch.cat([model(part, cache=cache).logits for part in token_ids.split([15, 1, 1, 1, 1, 1], dim=1)], dim=1)
    torch.testing.assert_close(ours, qwen(token_ids).logits, atol=1e-4, rtol=0)
