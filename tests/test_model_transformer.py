"""The whole model: causality, cache, invariances, sizes and costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model import KVCache, ModelOutput, MoETransformer
from moe_core.model.feed_forward import MoE

BASE = {
    "vocab_size": 300,
    "dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_seq_len": 32,
    "num_experts": 4,
    "top_k": 2,
    "expert_hidden_dim": 12,
    "dense_hidden_dim": 20,
}
VARIANTS = {
    "default": {},
    "mixtral": {"qk_norm": False},
    "top_1": {"top_k": 1},
    "one_expert": {"num_experts": 1, "top_k": 1},
    "shared": {"shared_expert_hidden_dim": 8},
    "shared_gated": {"shared_expert_hidden_dim": 8, "shared_expert_gate": True},
    "dense_between": {"num_layers": 5, "first_dense_layers": 1, "moe_every": 2},
    "full_heads": {"num_kv_heads": 4},
}


def build(**changes: object) -> MoETransformer:
    """A small model in evaluation mode whose weights are large enough for routing to differ between tokens."""
    torch.manual_seed(0)
    model = MoETransformer(ModelConfig.model_validate({**BASE, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tokens(batch: int = 3, length: int = 12) -> Tensor:
    return torch.randint(0, 300, (batch, length), generator=torch.Generator().manual_seed(1))


def cached(model: MoETransformer, token_ids: Tensor, chunks: list[int]) -> ModelOutput:
    cache = KVCache(model.config, len(token_ids), token_ids.shape[1])
    outputs = [model(part, cache=cache) for part in token_ids.split(chunks, dim=1)]
    assert cache.length == token_ids.shape[1]
    return ModelOutput(torch.cat([out.logits for out in outputs], dim=1), outputs[-1].router_outputs)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_future_token_never_changes_the_past(variant: str) -> None:
    model, token_ids = build(**VARIANTS[variant]), tokens()
    before = model(token_ids).logits
    changed = token_ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 300
    after = model(changed).logits
    torch.testing.assert_close(after[:, :7], before[:, :7], atol=1e-5, rtol=1e-5)
    assert (after[:, 7:] - before[:, 7:]).abs().amax(dim=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("chunks", [[1] * 12, [5, 4, 3], [11, 1], [12]], ids=str)
@pytest.mark.parametrize("variant", ["default", "mixtral", "shared_gated", "dense_between", "top_1"])
@torch.no_grad()
def test_cached_decoding_equals_the_whole_sequence(variant: str, chunks: list[int]) -> None:
    model = build(**VARIANTS[variant])
    for batch in (1, 3):
        token_ids = tokens(batch)
        torch.testing.assert_close(
            cached(model, token_ids, chunks).logits, model(token_ids).logits, atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
def test_a_sequence_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    model, token_ids = build(), tokens(4)
    together = model(token_ids).logits
    alone = torch.cat([model(row[None]).logits for row in token_ids])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits() -> None:
    def gradients() -> list[Tensor]:
        model = build().train()
        out = model(tokens())
        return [out.logits, *torch.autograd.grad(out.logits.logsumexp(-1).sum(), list(model.parameters()))]

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_equal_the_real_tensors(variant: str) -> None:
    model = build(**VARIANTS[variant])
    total = sum(parameter.numel() for parameter in model.parameters())
    assert model.total_parameters == total
    idle = 0
    for block in model.modules():
        if isinstance(block, MoE):
            per_expert = sum(parameter[0].numel() for parameter in block.experts.parameters())
            idle += (model.config.num_experts - model.config.top_k) * per_expert
    assert model.active_parameters == total - idle


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_flops_equal_what_torch_counts(variant: str) -> None:
    model, token_ids = build(**VARIANTS[variant]), tokens(2, 12)
    # torch's counter knows no formula for the CPU's fused attention; plain matrix products it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(token_ids)
    # The counter takes attention over the full square, as if every token attended to all 12.
    assert counter.get_total_flops() == token_ids.numel() * model.flops_per_token(12)


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = build(shared_expert_hidden_dim=8, shared_expert_gate=True, first_dense_layers=1).train()
    model(tokens()).logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_router_outputs_come_from_moe_layers_in_order() -> None:
    model = build(**VARIANTS["dense_between"])
    assert model.config.moe_layers == (2, 4)
    routers = [name for name, module in model.named_modules() if getattr(module, "is_moe_router", False)]
    assert routers == ["layers.2.moe.router", "layers.4.moe.router"]
    out = model(tokens(2, 5))
    assert [tuple(routed.router_logits.shape) for routed in out.router_outputs] == [(10, 4)] * 2
    assert model.layers[0].mlp is not None
    assert out.logits.shape == (2, 5, 300)


def test_a_hook_can_replace_the_routers_choice() -> None:
    model, token_ids = build(), tokens(1, 6)
    router = model.get_submodule("layers.0.moe.router")

    def to_expert_3(_module: object, _inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        logits, scores, indices = output[:3]
        return logits, torch.zeros_like(scores).index_fill(1, torch.tensor([0]), 1.0), torch.full_like(indices, 3)

    before = model(token_ids).logits
    handle = router.register_forward_hook(to_expert_3)
    out = model(token_ids)
    handle.remove()
    assert (out.router_outputs[0].router_indices == 3).all()
    assert not torch.allclose(out.logits, before)
    assert torch.equal(model(token_ids).logits, before)


def test_capacity_drops_in_training_and_never_in_evaluation() -> None:
    model = build(capacity_factor=0.5)
    routed = model.train()(tokens()).router_outputs[0]
    assert (routed.router_indices < 0).any()
    assert not (model.eval()(tokens()).router_outputs[0].router_indices < 0).any()


def test_a_model_on_the_meta_device_takes_weights_without_a_first_copy() -> None:
    model = build()
    with torch.device("meta"):
        empty = MoETransformer(model.config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    assert empty.total_parameters == model.total_parameters
    empty.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(empty.eval()(tokens()).logits, model(tokens()).logits, atol=0, rtol=0)


def test_residual_writers_start_smaller_with_depth() -> None:
    torch.manual_seed(0)
    model = MoETransformer(ModelConfig.model_validate({**BASE, "dim": 64, "num_layers": 8}))
    experts = model.get_submodule("layers.0.moe.experts")
    assert experts.get_parameter("gate_proj").std().item() == pytest.approx(0.02, rel=0.05)
    assert experts.get_parameter("down_proj").std().item() == pytest.approx(0.005, rel=0.05)


def test_autocast_stays_near_float32() -> None:
    model, token_ids = build(), tokens()
    exact = model(token_ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        out = model.train()(token_ids)
    assert (out.logits.float() - exact).abs().mean() < 0.1 * exact.abs().mean()
    out.logits.float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_impossible_requests_are_refused_in_one_line() -> None:
    model = build()
    with pytest.raises(UsageError, match=r"33 tokens exceeds model\.max_seq_len = 32"):
        model(tokens(1, 33))
    with pytest.raises(UsageError, match=r"needs .* GiB for its weights"):
        MoETransformer(ModelConfig(dim=65_536, vocab_size=1_000_000, num_layers=100))
