"""Parameters, operations and bytes by formula, held against real tensors and a measured training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_support import TINY_CONFIG

from moe_core.config import Config, ModelConfig, load_config, validate_config
from moe_core.config.router import ROUTER_KINDS, RouterConfig
from moe_core.errors import UsageError
from moe_core.model import MoETransformer, logit_chunks, size
from moe_core.runs.folder import RunFolder
from moe_core.training.batches import TensorBatch
from moe_core.training.gradient import accumulate_gradient
from moe_core.training.loop import train
from moe_core.training.optimizers import build_optimizers

# How far the estimate may be from a measured step. Measured: 0.85 to 1.00 of it (docs/LOG.md).
FACTOR = 1.2


def tiny(**changes: object) -> ModelConfig:
    tree = {"vocab_size": 300, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8,
            "num_experts": 4, "top_k": 2, "expert_hidden_dim": 24, "max_seq_len": 64, **changes}  # fmt: skip
    return ModelConfig.model_validate(tree)


# ---- parameters and operations ----


@pytest.mark.parametrize("kind", ROUTER_KINDS)
@pytest.mark.parametrize("hash_weights", ["equal", "learned"])
@torch.no_grad()
def test_every_kind_of_router_is_counted(kind: str, hash_weights: str) -> None:
    router = RouterConfig.model_validate({"kind": kind, "hash_weights": hash_weights, "mean_experts": 2.0})
    config = tiny(router=router, top_k=2)
    model = MoETransformer(config).eval()
    assert size.total_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    if kind in ("top_p", "expert_threshold", "expert_choice"):
        return  # how many experts a token visits is not known beforehand; top_k bounds it
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randint(300, (2, 12)))
    assert counter.get_total_flops() == 24 * size.flops_per_token(config, 12)


# ---- memory ----


def measured_step(config: Config, *, autocast: bool) -> tuple[int, int]:
    """Bytes at the worst moment of a second training step, and those held between steps."""
    torch.manual_seed(0)
    model = MoETransformer(config.model).train()
    model.recomputes_blocks = config.training.activation_checkpointing
    optimizers = build_optimizers(model, config.training)
    shape = (config.training.batch_size, config.training.seq_len)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.model.vocab_size, shape))

    def step() -> None:
        accumulate_gradient(model, TensorBatch(ids, ids), config, autocast=autocast)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step()
    held = sum(parameter.nbytes for parameter in model.parameters())
    for optimizer in optimizers:
        for state in optimizer.state.values():
            held += sum(tensor.nbytes for tensor in state.values() if tensor.ndim > 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return held + peak, held


@pytest.mark.parametrize(
    ("changes", "autocast"),
    [
        ({}, False),
        ({"training.gradient_accumulation": 4, "training.batch_size": 8}, False),
        ({"training.optimizer": "adamw", "training.batch_size": 8}, False),
        ({"model.first_dense_layers": 4, "training.batch_size": 8}, False),
        ({"training.batch_size": 2}, True),
        ({"training.activation_checkpointing": True, "training.batch_size": 8}, False),
        (
            {
                "training.activation_checkpointing": True,
                "training.batch_size": 8,
                "training.gradient_accumulation": 2,
                "model.moe_every": 2,
            },
            True,
        ),
    ],
)
def test_the_estimate_of_a_training_step_is_near_what_a_quick_step_takes(
    changes: dict[str, object], autocast: bool
) -> None:
    config = load_config("quick", environment={}, overrides=changes)
    estimate = size.training_memory(config, autocast=autocast)
    peak, held = measured_step(config, autocast=autocast)
    assert held == 4 * size.total_parameters(config.model) + estimate.optimizer
    assert peak / FACTOR <= estimate.total <= peak * FACTOR


def test_the_estimate_holds_with_logits_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("quick", environment={}, overrides={"training.batch_size": 4})
    at_once = size.training_memory(config)
    monkeypatch.setattr(logit_chunks, "CHUNK_NUMBERS", 2**18)
    estimate = size.training_memory(config)
    peak, _ = measured_step(config, autocast=False)
    assert peak / FACTOR <= estimate.total <= peak * FACTOR
    logits, chunk, gradients = 4 * 128 * 2048, 2**18, (4 * 128 + 2048) * 128
    assert at_once.activations - estimate.activations == 4 * (3 * logits - 2 * chunk - gradients)


def test_training_memory_by_hand() -> None:
    config = validate_config({**TINY_CONFIG, "training": {**TINY_CONFIG["training"], "batch_size": 64}})
    # Attention 2 * 32 * (32 + 16), experts 4 * 3 * 32 * 32, router 4 * 32, norms 2 * 32 + 2 * 16, in two layers.
    matrices = 2 * (3072 + 12_288)
    total = matrices + 2 * (128 + 96) + 320 * 32 + 32
    memory = size.training_memory(config)
    assert (memory.weights, memory.gradients) == (4 * total, 4 * total)
    assert memory.optimizer == 4 * matrices + 8 * (total - matrices)
    layer = 4 * 32 + 3 * 32 + 3 * 16 + 2 * 2 * 32
    assert memory.activations == 64 * 32 * 4 * (2 * layer + 2 * 32 + 3 * 320)
    assert memory.total == memory.weights + memory.optimizer + memory.activations
    training = config.training.model_copy(update={"gradient_accumulation": 4})
    in_parts = size.training_memory(config.model_copy(update={"training": training}))
    assert in_parts.activations == memory.activations / 4
    assert in_parts.total == in_parts.weights + in_parts.optimizer + in_parts.activations + in_parts.gradients
    mixed = size.training_memory(config, autocast=True)
    assert mixed.weights == 4 * total + 2 * (matrices + 320 * 32)
    halves = 2 * layer + 2 * 32 + 2 * (2 * 32 + 32 + 16) + 2 * 32
    assert mixed.activations == 64 * 32 * (2 * halves + 12 * 320)


def test_serving_memory_by_hand() -> None:
    config = tiny()
    matrices = 2 * (2 * 16 * (16 + 8) + 4 * 3 * 16 * 24)
    others = size.total_parameters(config) - matrices
    cached = 2 * 2 * 8 * 64
    expected = {"float32": (4.0, 4), "bfloat16": (2.0, 2), "int8": (1 + 1 / 64, 2), "int4": (0.5 + 1 / 64, 2)}
    for precision, (matrix, other) in expected.items():
        memory = size.serving_memory(config, precision, batch_size=3)  # type: ignore[arg-type]
        assert memory.weights == matrix * matrices + other * others
        assert memory.kv_cache == 3 * other * cached


# ---- refusals ----


def test_a_step_is_refused_exactly_when_it_takes_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("quick", environment={})
    need = size.training_memory(config)
    monkeypatch.setattr(size, "memory_present", lambda _: need.total)
    size.check_fits_training(config, "cpu")
    monkeypatch.setattr(size, "memory_present", lambda _: need.total - 1)
    with pytest.raises(UsageError, match=r"16 x 128 tokens 0\.1 GiB\), this machine has .* lower training\.batch_size"):
        size.check_fits_training(config, "cpu")
    with pytest.raises(UsageError, match="the GPU has"):
        size.check_fits_training(config, "cuda")
    monkeypatch.setattr(size, "memory_present", lambda _: need.weights)
    with pytest.raises(UsageError, match=r"choose a smaller preset \(python main\.py presets\)"):
        size.check_fits_training(config, "cpu")


def test_the_memory_is_that_of_the_container_where_it_has_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = tmp_path / "memory.max", tmp_path / "none"
    monkeypatch.setattr(size, "CGROUP_LIMITS", limits)
    whole = size.memory_present()
    for text, expected in (("max\n", whole), (f"{whole * 2}\n", whole), ("1048576\n", 1_048_576)):
        limits[0].write_text(text)
        assert size.memory_present() == expected
    with pytest.raises(UsageError, match=r"this machine has 0\.0 GiB"):
        MoETransformer(load_config("quick", environment={}).model)


def test_the_vocabulary_that_the_text_yields_decides(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    smallest = tiny_config.model_copy(
        update={"model": tiny_config.model.model_copy(update={"vocab_size": size.SMALLEST_VOCABULARY})}
    )
    present = size.training_memory(smallest).total
    monkeypatch.setattr(size, "memory_present", lambda _: present)
    run = RunFolder("late", tmp_path)
    with pytest.raises(UsageError, match="training a model of"):
        train(run, tiny_config)
    status = run.status()
    assert status is not None
    assert (status.state, status.step) == ("failed", 0)
    monkeypatch.setattr(size, "memory_present", lambda _: present - 1)
    with pytest.raises(UsageError, match="training a model of"):
        train(RunFolder("early", tmp_path), tiny_config)
    assert not RunFolder("early", tmp_path).exists()
