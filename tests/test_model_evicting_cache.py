"""A budget of tokens: which stay, by hand; nothing changes where the budget holds all; what a model makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_support import Run, assert_one_line
from routers_support import model_with

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.inference.cache_choice import CacheChoice
from moe_core.model import KVCache
from moe_core.model.evicting_cache import EvictingCache, HeavyHitterCache


def numbered(config: ModelConfig, positions: range) -> torch.Tensor:
    """Keys or values that tell which token they are of: [1, Hkv, S, d]."""
    shape = (1, config.num_kv_heads, len(positions), config.head_dim)
    return torch.tensor(list(positions), dtype=torch.float32)[:, None].expand(shape[-2:]).expand(shape)


def positions_of(seen: torch.Tensor) -> list[list[int]]:
    """Of the tokens that a layer looks at, by head."""
    return [sorted(int(token[0]) for token in head) for head in seen[0]]


@pytest.mark.parametrize("piece", [1, 3, 7, 12])
def test_sinks_and_the_newest_stay_however_a_text_is_cut(piece: int) -> None:
    config = model_with("softmax").config
    cache = EvictingCache(config, 1, 12, budget=5, first=2)
    for at in range(0, 12, piece):
        new = range(at, min(at + piece, 12))
        for layer in range(config.num_layers):
            keys, values = cache.write(layer, numbered(config, new), -numbered(config, new))
        assert torch.equal(keys, -values)
        for row, position in enumerate(new):
            mask = cache.mask(0)
            seen = keys if mask is None else keys[:, :, mask[row]]
            expected = range(position + 1) if position < 5 else [0, 1, position - 2, position - 1, position]
            told = [[place for place in head if place <= position] for head in positions_of(seen)]  # or the causal rule
            assert told == [list(expected)] * config.num_kv_heads
        assert cache.is_exact == (at < 5)
        cache.advance(len(new))
    assert cache.key_value_bytes == 2 * 4 * config.num_layers * config.num_kv_heads * 5 * config.head_dim


def test_the_most_looked_at_stay_by_hand() -> None:
    config = model_with("softmax", num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2).config
    cache = HeavyHitterCache(config, 1, 8, budget=4)  # 2 heavy, 2 newest
    # A weight of token j is e^keys[j], before they are divided by their sum; two query heads look alike.
    keys = torch.tensor([0.0, 3.0, 0.0, 5.0, 0.0, 0.0, 0.0])
    # Behind token 3 the sums are 0: 2.20, 1: 3.96, 2: .10, 3: 1.74. Token 2 leaves the newest two and is the least of
    # those beside it. Behind token 4 they are 0: 2.21, 1: 4.20, 3: 3.48: token 3 leaves them and takes the place of 0.
    held = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 3, 4], [1, 3, 4, 5], [1, 3, 5, 6]]
    query = torch.tensor([[2**0.5, 0.0], [2**0.5, 0.0]])[None, :, None]
    sums: dict[int, float] = {}
    for position, expected in enumerate(held):
        key = torch.tensor([float(keys[position]), float(position)])[None, None, None]
        seen, _ = cache.write(0, key, key)
        assert sorted(int(token[1]) for token in seen[0, 0]) == expected
        cache.look(0, query)
        cache.advance(1)
        total = sum(float(keys[one].exp()) for one in expected)
        sums = {one: sums.get(one, 0.0) + 2 * float(keys[one].exp()) / total for one in expected}
        for place, token in enumerate(seen[0, 0]):
            assert float(cache._sums[0, 0, 0, place]) == pytest.approx(sums[int(token[1])], rel=1e-5)
        if position == 3:
            assert [round(sums[one], 2) for one in range(4)] == [2.2, 3.96, 0.1, 1.74]


@torch.inference_mode()
@pytest.mark.parametrize("kind", [EvictingCache, HeavyHitterCache])
def test_a_full_budget_is_exact_to_the_bit_and_a_small_one_is_not(kind: type[EvictingCache]) -> None:
    model = model_with("document_pool", head_dim=8)
    ids = torch.randint(1, 300, (3, 32), generator=torch.Generator().manual_seed(1))
    reference = KVCache(model.config, 3, 32)
    expected = torch.cat([model(ids[:, at : at + 1], cache=reference).logits for at in range(32)], dim=1)
    for budget in (40, 32, 12):
        cache = kind(model.config, 3, 32, budget=budget)
        found = torch.cat([model(ids[:, at : at + 1], cache=cache).logits for at in range(32)], dim=1)
        exact = min(budget, 32)
        assert torch.equal(found[:, :exact], expected[:, :exact])
        assert cache._keys.nbytes + cache._values.nbytes == reference.key_value_bytes * exact // 32
        assert cache.key_value_bytes <= reference.key_value_bytes * exact / 32 * (1 + 1 / 16)  # a sum for 16 numbers
    assert not torch.equal(found[:, 12:], expected[:, 12:])
    assert float((found - expected).abs().max()) < 10


@torch.inference_mode()
def test_a_model_reads_by_sinks_in_pieces_as_singly() -> None:
    model = model_with("softmax", head_dim=8)
    ids = torch.randint(1, 300, (2, 32), generator=torch.Generator().manual_seed(2))
    singly, pieces = (EvictingCache(model.config, 2, 32, budget=9) for _ in range(2))
    expected = torch.cat([model(ids[:, at : at + 1], cache=singly).logits for at in range(32)], dim=1)
    found = torch.cat([model(part, cache=pieces).logits for part in ids.split([5, 14, 1, 12], dim=1)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    heavy = HeavyHitterCache(model.config, 2, 32, budget=9)
    with pytest.raises(UsageError, match="5 tokens at once for a cache of heavy hitters"):
        model(ids[:, :5], cache=heavy)


def test_generate_and_agree_take_it(cli: Run, trained_root: Path) -> None:
    asked = ("generate", "--run", "tiny", "--prompt", "The ", "--max-new-tokens", "40", "--temperature", "0", "--json")
    whole, sinks, heavy, full = (
        json.loads(cli(trained_root, *asked, *more)[1])
        for more in ((), ("--cache", "sinks:8"), ("--cache", "heavy:8"), ("--cache", "heavy:500"))
    )
    assert full["text"] == whole["text"]
    assert sinks["cache"]["name"] == "sinks:8 cache"
    assert sinks["cache"]["bytes"] * 32 == sinks["cache"]["whole_bytes"] * 8
    assert heavy["cache"]["bytes"] * 4 < heavy["cache"]["whole_bytes"] * 1.2
    code, out, err = cli(trained_root, "agree", "--run", "tiny", "--cache", "heavy:8", "--tokens-per-domain", "64")
    assert code == 0, err
    assert "The first 8 tokens of a window look at nothing that was changed." in out
    for given, words in (
        (("--cache", "sinks:4"), "a budget of 4 tokens; expected 5 or more"),
        (("--cache", "sinks"), "a cache of 'sinks'; expected int8, int4, int2, sinks:N or heavy:N"),
        (("--cache", "heavy:8", "--cache-recent", "2"), "--cache-recent 2 goes with int8, int4, int2"),
    ):
        code, _, err = cli(trained_root, *asked[:-1], *given)
        assert code == 2
        assert_one_line(err, words)


def test_a_choice_is_whole_or_says_its_budget() -> None:
    assert CacheChoice.parse("heavy:12") == CacheChoice("heavy", budget=12)
    for wrong in (("sinks",), ("int4", 32, 5), ("heavy", 1, 5)):
        with pytest.raises(UsageError, match="budget"):
            CacheChoice(*wrong)  # type: ignore[arg-type]
