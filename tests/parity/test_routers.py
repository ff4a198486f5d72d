"""Our routers against those of transformers, router by router: the same weights, the same tokens, the same choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, Ernie4_5_MoeConfig, MixtralConfig, OlmoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HashRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from moe_core.config import ModelConfig
from moe_core.config.router import RouterConfig
from moe_core.model.feed_forward import MoE
from moe_core.model.routers import ROUTERS, Router, RouterContext, RouterShape

D, E, K, T = 16, 8, 3, 200
SIZES = {"hidden_size": D, "num_experts_per_tok": K}


def ours(**config: Any) -> Router:
    settings = RouterConfig.model_validate(config)
    return ROUTERS[settings.kind](RouterShape(D, E, K, vocab_size=50), settings).eval()


def assert_same(router: Router, theirs: tuple[Tensor, ...], x_TD: Tensor, context: RouterContext | None = None) -> None:
    """Experts in any order; the weight of each the same."""
    with torch.no_grad():
        logits, scores, indices = router(x_TD, context)[:3]
    _, their_scores, their_indices = theirs
    none = torch.zeros(T, E)
    torch.testing.assert_close(
        none.scatter(1, indices, scores), none.scatter(1, their_indices, their_scores.float()), atol=1e-6, rtol=1e-5
    )
    if context is None:  # a hash router has none to compare
        torch.testing.assert_close(logits, theirs[0].float())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("normalised", [True, False])
def test_softmax_is_mixtral_and_undivided_olmoe(normalised: bool) -> None:
    theirs = (
        MixtralTopKRouter(MixtralConfig(**SIZES, num_local_experts=E))
        if normalised
        else OlmoeTopKRouter(OlmoeConfig(**SIZES, num_experts=E, norm_topk_prob=False))
    )
    router, x_TD = ours(normalize_scores=normalised), torch.randn(T, D)
    theirs.weight.copy_(torch.randn(E, D))
    router.load_state_dict({"weight": theirs.weight})
    assert_same(router, theirs(x_TD), x_TD)


@torch.no_grad()
def test_softmax_with_a_bias_is_ernie() -> None:
    config = Ernie4_5_MoeConfig(hidden_size=D, moe_k=K, moe_num_experts=E)
    theirs = Ernie4_5_MoeTopKRouter(config)
    router, x_TD = ours(balancing="bias"), torch.randn(T, D)
    bias = 0.1 * torch.randn(E)
    theirs.weight.copy_(torch.randn(E, D))
    theirs.moe_statics.e_score_correction_bias.copy_(bias[None])
    router.load_state_dict({"weight": theirs.weight, "expert_bias": bias})
    assert_same(router, theirs(x_TD), x_TD)


@torch.no_grad()
def test_sigmoid_is_deepseek_v3() -> None:
    config = DeepseekV3Config(
        **SIZES, n_routed_experts=E, n_group=1, topk_group=1, routed_scaling_factor=1.0, norm_topk_prob=True,
        moe_intermediate_size=8, n_shared_experts=1,
    )  # fmt: skip
    theirs = DeepseekV3MoE(config).gate
    router, x_TD = ours(kind="sigmoid"), torch.randn(T, D)
    bias = 0.3 * torch.randn(E)
    theirs.weight.copy_(torch.randn(E, D))
    theirs.e_score_correction_bias.copy_(bias)
    router.load_state_dict({"weight": theirs.weight, "expert_bias": bias})
    assert_same(router, theirs(x_TD), x_TD)


@torch.no_grad()
def test_hash_is_deepseek_v4_when_its_weights_say_nothing() -> None:
    theirs = DeepseekV4HashRouter(
        DeepseekV4Config(**SIZES, n_routed_experts=E, vocab_size=50, routed_scaling_factor=1.0)
    )
    theirs.weight.zero_()
    router, x_TD, ids = ours(kind="hash"), torch.randn(T, D), torch.randint(0, 50, (4, T // 4))
    router.prepare(torch.randint(0, 999, (50,)), 0)
    theirs.tid2eid.copy_(router.state_dict()["table"])
    assert_same(router, theirs(x_TD, ids), x_TD, RouterContext(ids, None))


@torch.no_grad()
def test_identity_experts_are_longcat_flash() -> None:
    nulls, hidden = 4, 12
    theirs = LongcatFlashMoE(
        LongcatFlashConfig(
            hidden_size=D, expert_ffn_hidden_size=hidden, n_routed_experts=E, zero_expert_num=nulls, moe_topk=K,
            num_experts_per_tok=K, routed_scaling_factor=1.0,
        )
    )  # fmt: skip
    config = ModelConfig.model_validate(
        {
            "dim": D, "num_experts": E, "top_k": K, "expert_hidden_dim": hidden, "null_experts": nulls,
            "null_output": "identity", "router": {"normalize_scores": False, "balancing": "bias"},
        }
    )  # fmt: skip
    mine = MoE(config).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.5)
    theirs.router.e_score_correction_bias.copy_(0.1 * torch.randn(E + nulls))
    gate_up = theirs.experts.gate_up_proj[:E]
    mine.load_state_dict(
        {
            "router.weight": theirs.router.classifier.weight,
            "router.expert_bias": theirs.router.e_score_correction_bias,
            "experts.gate_proj": gate_up[:, :hidden],
            "experts.up_proj": gate_up[:, hidden:],
            "experts.down_proj": theirs.experts.down_proj,
        }
    )
    x_TD = torch.randn(T, D)
    found_TD, routed = mine(x_TD)
    assert (routed.router_indices >= E).any()
    torch.testing.assert_close(found_TD, theirs(x_TD[None])[0], atol=1e-5, rtol=1e-5)
