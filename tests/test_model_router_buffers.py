"""What a router keeps beside its weights decides about choices: it is float32 whatever the model's dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from routers_support import BASE, VARIANTS, model_with, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_core.config import Config, validate_config
from moe_core.data.tokenizer import Tokenizer
from moe_core.model.transformer import MoETransformer
from moe_core.routing import capture
from moe_core.runs.checkpoint import _write_manifest, find_checkpoint, load_run, save_checkpoint, slim_run
from moe_core.runs.folder import RunFolder

KEEPS = ["softmax_bias", "sigmoid", "expert_threshold"]
"""Kinds with a buffer of floating-point numbers."""
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "to(float16)": lambda model: model.to(torch.float16),
    "to(device, dtype)": lambda model: model.to("cpu", torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "there and back": lambda model: model.half().float(),
    "double": lambda model: model.double(),
    "type": lambda model: model.type(torch.bfloat16),
    "a copy": lambda model: copy.deepcopy(model).bfloat16(),
}


def spread_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every float buffer set to a large offset and a small spread, as published GLM biases are; copies of them."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and not name.endswith("updates"):
            buffer.copy_(6.82 + 0.246 * torch.rand_like(buffer))
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def assert_whole(model: nn.Module, before: dict[str, Tensor]) -> None:
    found = dict(model.named_buffers())
    assert before
    for name, buffer in before.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], buffer), name


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("variant", KEEPS)
def test_no_change_of_precision_rounds_them(variant: str, cast: str) -> None:
    model = model_with(variant)
    before = spread_buffers(model)
    assert_whole(CASTS[cast](model), before)


def test_kinds_without_such_buffers_change_their_precision_as_ever() -> None:
    for variant in VARIANTS:
        if variant not in KEEPS:
            model = model_with(variant).bfloat16()
            assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
            assert not [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]


def test_an_outline_without_memory_and_a_default_dtype_change_nothing() -> None:
    with torch.device("meta"):
        outline = MoETransformer(config_of("sigmoid").model).bfloat16()
    assert {(buffer.dtype, buffer.device.type) for buffer in outline.buffers()} == {(torch.float32, "meta")}
    assert {buffer.dtype for buffer in model_with("hash").bfloat16().buffers()} == {torch.int64}
    torch.set_default_dtype(torch.bfloat16)
    try:
        buffers = dict(MoETransformer(config_of("sigmoid").model).named_buffers())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {buffer.dtype for buffer in buffers.values()} == {torch.float32}


def config_of(variant: str) -> Config:
    return validate_config({"model": {**BASE, "router": VARIANTS[variant]}, "training": {"seq_len": 16}})


class Saved:
    """A run of one checkpoint with spread buffers, and what its model chooses."""

    def __init__(self, variant: str, root: Path) -> None:
        tokenizer = Tokenizer.train(["a b"], 300)
        tree = config_of(variant).model_dump()
        config = validate_config({**tree, "model": {**tree["model"], "vocab_size": tokenizer.vocab_size}})
        torch.manual_seed(0)
        self.model = MoETransformer(config.model).eval()
        self.buffers = spread_buffers(self.model)
        self.run = RunFolder(variant, root)
        with self.run.lock():
            self.run.create(config)
            save_checkpoint(
                self.run, step=0, model=self.model, tokenizer=tokenizer, config=config, trainer_state=None,
                trainer_meta=None,
            )  # fmt: skip


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", KEEPS)
def test_a_run_opened_in_half_precision_or_slimmed_keeps_them(
    variant: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    saved = Saved(variant, tmp_path)
    opened = load_run(variant, tmp_path, dtype=dtype).model
    assert_whole(opened, saved.buffers)
    assert opened.embedding.weight.dtype == (dtype or torch.float32)
    slim_run(saved.run, max_bytes=10**9)
    slimmed = load_run(variant, tmp_path, dtype=dtype).model
    assert_whole(slimmed, saved.buffers)
    rounded = saved.model.embedding.weight.bfloat16().to(dtype or torch.float32)
    assert torch.equal(slimmed.embedding.weight, rounded)
    stored = load_file(find_checkpoint(saved.run) / "model.safetensors")
    assert {stored[name].dtype for name in saved.buffers} == {torch.float32}
    assert stored["embedding.weight"].dtype == torch.bfloat16


def test_a_run_that_was_slimmed_with_rounded_biases_opens_as_before(tmp_path: Path) -> None:
    saved = Saved("sigmoid", tmp_path)
    slim_run(saved.run, max_bytes=10**9)
    folder = find_checkpoint(saved.run)
    stored = load_file(folder / "model.safetensors")
    rounded = {name: tensor.clone().bfloat16() for name, tensor in stored.items()}
    (folder / "manifest.json").unlink()
    save_file(rounded, folder / "model.safetensors")
    _write_manifest(folder, 0)
    opened = load_run("sigmoid", tmp_path).model
    assert_whole(opened, {name: rounded[name].float() for name in saved.buffers})


def test_rounding_would_have_led_tokens_to_other_experts() -> None:
    """What it was about: of 32 biases between 6.8 and 7.1 bfloat16 leaves nine."""
    model = model_with("sigmoid", num_experts=32, top_k=4)
    before = spread_buffers(model)
    ids = tokens()

    def choices() -> Tensor:
        with torch.no_grad(), capture(model) as recorder:
            model(ids)
        return torch.tensor(recorder.trace(token_ids=ids).router_indices)

    whole = choices()
    for name, buffer in model.named_buffers():
        if name in before:
            buffer.copy_(buffer.bfloat16().float())
    assert (choices() != whole).any(dim=-1).float().mean() > 0.05
