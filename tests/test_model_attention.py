"""RMSNorm, RoPE, attention and the key/value cache, each alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model.attention import Attention
from moe_core.model.kv_cache import KVCache
from moe_core.model.norm import RMSNorm
from moe_core.model.rope import apply_rope, rope_angles

CPU = torch.device("cpu")


def formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("transposed", [False, True])
def test_norm_and_its_gradients_equal_the_formula(transposed: bool) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(8, 1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 3, 8, requires_grad=True)
    seed = torch.randn(3, 5, 8).transpose(0, 1) if transposed else torch.randn(5, 3, 8)
    expected = formula(x, norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), expected)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), seed)
    theirs = torch.autograd.grad(expected, (x, norm.weight), seed)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), expected)


def test_norm_multiplies_after_the_cast() -> None:
    norm = RMSNorm(4, 1e-6).to(torch.bfloat16)
    torch.nn.init.constant_(norm.weight, 1.7)
    x = torch.randn(3, 4).to(torch.bfloat16)
    unit = formula(x.float(), torch.ones(4), 1e-6).to(torch.bfloat16)
    assert torch.equal(norm(x), norm.weight * unit)


def test_norm_of_zeros_and_of_huge_values_is_finite() -> None:
    norm = RMSNorm(4, 1e-5)
    x = torch.tensor([[0.0] * 4, [1e4] * 4], requires_grad=True)
    norm(x).sum().backward()
    torch.testing.assert_close(norm(x), torch.tensor([[0.0] * 4, [1.0] * 4]))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rope_rotates_half_split_pairs_by_hand() -> None:
    # head_dim 4, theta 100: frequencies 1 and 1/10; the pairs are (0, 2) and (1, 3). Position 2.
    cos, sin = rope_angles(ModelConfig(head_dim=4, rope_theta=100.0), 2, 1, CPU)
    rotated = apply_rope(torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4), cos, sin).flatten()
    expected = [math.cos(2), math.cos(0.2), math.sin(2), math.sin(0.2)]
    assert rotated.tolist() == pytest.approx(expected, rel=1e-5)


def test_rope_keeps_lengths_and_sees_only_distances() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    config = ModelConfig(head_dim=8)

    def product(query_at: int, key_at: int) -> float:
        rotated = apply_rope(query, *rope_angles(config, query_at, 1, CPU))
        assert rotated.norm().item() == pytest.approx(query.norm().item(), rel=1e-5)
        return float((rotated * apply_rope(key, *rope_angles(config, key_at, 1, CPU))).sum())

    assert product(9, 4) == pytest.approx(product(25, 20), rel=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), rel=1e-4)


def test_rope_gradient() -> None:
    torch.manual_seed(0)
    cos, sin = (angle.double() for angle in rope_angles(ModelConfig(head_dim=4), 3, 2, CPU))
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(apply_rope, (x, cos, sin))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_explicit_softmax_over_shared_heads(qk_norm: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(dim=8, num_heads=4, num_kv_heads=2, head_dim=6, qk_norm=qk_norm)
    attention = Attention(config, 0)
    x_BSD = torch.randn(2, 5, 8)
    cos, sin = rope_angles(config, 0, 5, CPU)
    queries = apply_rope(attention.q_norm(attention.q_proj(x_BSD).view(2, 5, 4, 6)), cos, sin)
    keys = apply_rope(attention.k_norm(attention.k_proj(x_BSD).view(2, 5, 2, 6)), cos, sin)
    values = attention.v_proj(x_BSD).view(2, 5, 2, 6)
    expected = torch.empty(2, 5, 4, 6)
    for head in range(4):
        scores = queries[:, :, head] @ keys[:, :, head // 2].transpose(1, 2) / math.sqrt(6)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        expected[:, :, head] = scores.softmax(dim=-1) @ values[:, :, head // 2]
    torch.testing.assert_close(attention(x_BSD, cos, sin, None), attention.o_proj(expected.flatten(2)))


def test_cache_refuses_what_does_not_fit() -> None:
    config = ModelConfig(max_seq_len=16)
    with pytest.raises(UsageError, match="17 tokens does not fit"):
        KVCache(config, 1, 17)
    cache = KVCache(config, 2, 8)
    cache.advance(6)
    with pytest.raises(UsageError, match="6 cached \\+ 3 new tokens do not fit a cache of 8"):
        cache.check_room(2, 3)
    with pytest.raises(UsageError, match="holds 2 sequences, the batch has 1"):
        cache.check_room(1, 1)
