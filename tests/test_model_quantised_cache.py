"""Keys and values in few bits: how far off they are, that history stays as it is, and what a model makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_support import Run, assert_one_line
from routers_support import model_with

from moe_core.errors import RunError, UsageError
from moe_core.model import KVCache
from moe_core.model.quantised_cache import BITS, QuantisedCache, dequantise, quantise


@pytest.mark.parametrize("bits", BITS)
def test_a_number_is_off_by_half_a_step_at_most(bits: int) -> None:
    drawn = torch.Generator().manual_seed(bits)
    size, shift = (10.0 ** torch.empty(4000, 1).uniform_(-6, 3, generator=drawn) for _ in range(2))
    numbers = torch.randn(4000, 32, generator=drawn) * size + shift * torch.randn(4000, 1, generator=drawn).sign()
    numbers[0] = 0.0
    numbers[1] = 0.3
    codes = quantise(numbers, bits)
    assert codes.packed.shape == (4000, 32 * bits // 8)
    error = (dequantise(codes, bits, torch.float64) - numbers.double()).abs()
    half = codes.scale.double() / 2
    # Beside it only the rounding of float32 arithmetic on the numbers themselves.
    assert (error <= half * (1 + 1e-5) + 4e-7 * numbers.abs().amax(-1, keepdim=True)).all()
    # The step is hardly larger than it must be where float16 can tell.
    wide = (numbers.amax(-1) - numbers.amin(-1)) > numbers.abs().amax(-1)
    step = (numbers.amax(-1) - numbers.amin(-1)) / (2**bits - 1)
    assert (codes.scale[wide, 0] <= 1.01 * step[wide] + 2e-7).all()


def test_numbers_by_hand() -> None:
    codes = quantise(torch.tensor([-1.0, 0.4, 1.6, 2.0, 0.0, 0.9, 0.1, -0.6]), 2)
    assert codes.packed.tolist() == [0b11_11_01_00, 0b00_01_10_01]  # -1, 0, 1, 2 in steps of 1, the first one lowest
    with pytest.raises(RunError, match=r"1e\+05 cannot be kept in 4 bits; expected numbers within 65,504"):
        quantise(torch.tensor([0.0, -1e5]), 4)


@torch.inference_mode()
def test_history_is_never_quantised_again_and_pieces_change_nothing() -> None:
    config = model_with("softmax").config
    shape = (2, config.num_kv_heads, 32, config.head_dim)
    drawn = torch.Generator().manual_seed(0)
    given = torch.randn(shape, generator=drawn), torch.randn(shape, generator=drawn)
    whole, pieces = (QuantisedCache(config, 2, 32, bits=4, group=8, recent=5) for _ in range(2))
    for layer in range(config.num_layers):
        whole.write(layer, *given)
    whole.advance(32)
    kept: list[list[torch.Tensor]] = []
    for at, end in ((0, 1), (1, 7), *((at, at + 1) for at in range(7, 32))):
        for layer in range(config.num_layers):
            seen = pieces.write(layer, *(part[:, :, at:end] for part in given))
            old = pieces.quantised(at)
            for part, original in zip(seen, given, strict=True):
                assert part.shape[2] == end
                assert torch.equal(part[:, :, old:], original[:, :, old:end])  # recent ones as they are
                assert not old or 0 < float((part[:, :, :old] - original[:, :, :old]).abs().max()) < 0.4
            for place, part in enumerate(seen):
                if layer == 0:
                    assert all(torch.equal(before[place], part[:, :, : before[place].shape[2]]) for before in kept)
            if layer == 0:
                kept.append([part[:, :, :old].clone() for part in seen])
        pieces.advance(end - at)
        assert 5 <= pieces.length - pieces.quantised(pieces.length) < 13 or pieces.length < 5
    for one, other in zip((*whole._keys, *whole._values), (*pieces._keys, *pieces._values), strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_a_model_reads_on_by_it() -> None:
    model = model_with("document_pool", head_dim=8)
    ids = torch.randint(1, 300, (3, 32), generator=torch.Generator().manual_seed(1))
    reference = KVCache(model.config, 3, 32)
    expected = torch.cat([model(ids[:, at : at + 1], cache=reference).logits for at in range(32)], dim=1)
    off = {}
    for bits in BITS:
        cache = QuantisedCache(model.config, 3, 32, bits=bits, group=8, recent=4)
        found = torch.cat([model(ids[:, at : at + 1], cache=cache).logits for at in range(32)], dim=1)
        assert torch.equal(found[:, :12], expected[:, :12])  # nothing was quantised yet
        off[bits] = float((found - expected)[:, 12:].abs().mean() / expected.abs().mean())
        # 24 of 32 tokens in groups of 8 with a scale and a zero point of 2 bytes each; a tail of 11 tokens.
        numbers = 2 * 3 * 3 * 8
        assert cache.key_value_bytes == numbers * (24 * bits // 8 + 24 * 4 // 8 + 11 * 4)
        assert cache.nbytes > cache.key_value_bytes  # a router's notes
    assert off[8] < 0.02 < off[2]
    assert off[8] < off[4] < off[2]
    assert reference.key_value_bytes == 2 * 3 * 3 * 8 * 32 * 4


def test_what_does_not_fit_is_refused() -> None:
    config = model_with("softmax").config
    for changes, words in (
        ({"bits": 3}, "in 3 bits; expected one of 8, 4, 2 bits"),
        ({"bits": 4, "group": 5}, "groups of 5 numbers"),
        ({"recent": 0}, "recent = 0"),
    ):
        with pytest.raises(UsageError, match=words):
            QuantisedCache(config, 1, 16, **changes)


def test_generate_with_fewer_bits(cli: Run, trained_root: Path) -> None:
    asked = ("generate", "--run", "tiny", "--prompt", "The ", "--max-new-tokens", "12", "--temperature", "0", "--json")
    whole, eight, two = (
        json.loads(cli(trained_root, *asked, *more)[1])
        for more in ((), ("--cache", "int8", "--cache-recent", "1"), ("--cache", "int2", "--cache-recent", "200"))
    )
    assert whole["cache"]["bytes"] == whole["cache"]["whole_bytes"] == eight["cache"]["whole_bytes"]
    assert (whole["cache"]["name"], eight["cache"]["name"]) == ("whole cache", "int8 cache behind 1 token")
    assert two["text"] == whole["text"]  # all of it is recent
    code, _, err = cli(trained_root, *asked[:-1], "--cache-recent", "3")
    assert code == 2
    assert_one_line(err, "--cache-recent 3 goes with --cache")
    code, _, err = cli(trained_root, "generate", "--model", "x", "--prompt", "A", "--cache", "int4")
    assert code == 2
    assert_one_line(err, "--cache int4 goes with --run")
