"""Does bfloat16 pay on this processor? By width, number of experts and what is done: `bench --only precision`.

Four layers, two of 8 or 16 experts a token, each twice as wide as the model, vocabulary 4,096, random weights, so that
the load is nearly even. float32 takes turns with bfloat16 autocast (float32 weights, converted in every pass, as in
training) and, where no gradient is wanted, with weights that are bfloat16 (as `--dtype bfloat16` loads them). The
gradient of a training step is timed without its optimizer, which computes in float32 either way.

What training.autocast = auto does rests on this table (moe_core/training/repeatability.py).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from bench.references import affordable_rounds
from bench.results import Result, compared
from bench.suite import Scale
from moe_core.config import Config, ModelConfig, TrainingConfig
from moe_core.experiments.timing import interleave
from moe_core.model import KVCache, MoETransformer
from moe_core.training.batches import TensorBatch
from moe_core.training.gradient import accumulate_gradient

WIDTHS, EXPERTS = (64, 128, 192, 256, 512, 768), (8, 16)
FLOAT32, AUTOCAST, WEIGHTS = "float32", "bfloat16 autocast", "bfloat16 weights"
PROMPT = 64
"""Tokens in the cache when one more is read."""
SECONDS = 6.0
"""Rounds of one case are fewer than asked for where they would take longer than this; two at least."""
TOLERANCE = 0.1
"""Largest difference as a part of the whole, in squares: a token whose choice of expert flips changes much, but few
do. Beyond it something else is computed."""

Calls = dict[str, Callable[[], Tensor]]


def run(scale: Scale) -> list[Result]:
    """One row for each width, number of experts, task and way to use bfloat16."""
    sizes = [(16, 4)] if scale.smoke else [(width, experts) for width in WIDTHS for experts in EXPERTS]
    rows = []
    for number, (width, experts) in enumerate(sizes):
        scale.progress("precision", number, len(sizes))
        rows += size_rows(width, experts, scale)
    return rows


def size_rows(width: int, num_experts: int, scale: Scale) -> list[Result]:
    """The rows of one model."""
    torch.manual_seed(0)
    config = model_config(width, num_experts)
    model = MoETransformer(config.model)
    step, read = ((2, 16), (2, 16)) if scale.smoke else ((16, 128), (8, 256))
    size = f"width {width}, {num_experts} experts"
    return [
        *_rows(f"gradient of a step, {step[0]} x {step[1]} tokens, {size}", _gradients(model, config, step), scale),
        *_rows(f"prefill {read[0]} x {read[1]} tokens, {size}", _readings(model, read), scale),
        *_rows(f"decoding one token, batch 1, {size}", _decodings(model), scale),
    ]


def model_config(width: int, num_experts: int) -> Config:
    """The presets' proportions at any width."""
    model = ModelConfig(
        vocab_size=4096,
        dim=width,
        num_heads=max(4, width // 64),
        num_kv_heads=2,
        head_dim=min(64, width // 4),
        num_experts=num_experts,
        top_k=2,
        expert_hidden_dim=2 * width,
    )
    return Config(model=model, training=TrainingConfig(seq_len=128))


def _gradients(model: MoETransformer, config: Config, shape: tuple[int, int]) -> Calls:
    ids_BS = torch.randint(config.model.vocab_size, shape)
    batch = TensorBatch(ids_BS, ids_BS.roll(-1, dims=1))
    model.train()

    def gradient(*, autocast: bool) -> Tensor:
        model.zero_grad()
        losses, _ = accumulate_gradient(model, batch, config, autocast=autocast)
        return losses.language_model

    return {FLOAT32: lambda: gradient(autocast=False), AUTOCAST: lambda: gradient(autocast=True)}


def _readings(model: MoETransformer, shape: tuple[int, int]) -> Calls:
    ids_BS = torch.randint(model.config.vocab_size, shape)

    def read(one: MoETransformer) -> Tensor:
        found: Tensor = one(ids_BS).logits
        return found

    return _three_ways(model, lambda one: lambda: read(one))


def _decodings(model: MoETransformer) -> Calls:
    ids_1S = torch.randint(model.config.vocab_size, (1, PROMPT + 1))

    def decoding(one: MoETransformer) -> Callable[[], Tensor]:
        cache = KVCache(one.config, 1, PROMPT + 1, dtype=one.embedding.weight.dtype)
        with torch.inference_mode():
            one(ids_1S[:, :-1], cache=cache)

        def step() -> Tensor:
            cache.length = PROMPT
            found: Tensor = one(ids_1S[:, -1:], cache=cache).logits
            return found

        return step

    calls = _three_ways(model, decoding)
    del calls[AUTOCAST]  # it would convert all weights for every token
    return calls


def _three_ways(model: MoETransformer, call_of: Callable[[MoETransformer], Callable[[], Tensor]]) -> Calls:
    model.eval()
    converted = deepcopy(model).to(torch.bfloat16).eval()

    def without_gradient(call: Callable[[], Tensor], *, autocast: bool = False) -> Callable[[], Tensor]:
        def called() -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return call()

        return called

    plain = call_of(model)
    return {
        FLOAT32: without_gradient(plain),
        AUTOCAST: without_gradient(plain, autocast=True),
        WEIGHTS: without_gradient(call_of(converted)),
    }


def _rows(case: str, calls: Calls, scale: Scale) -> list[Result]:
    expected = calls[FLOAT32]().detach().float()
    for name in [other for other in calls if other != FLOAT32]:
        difference = (calls[name]().detach().float() - expected).square().sum() / expected.square().sum()
        assert difference < TOLERANCE, f"{name} and {FLOAT32} differ by {difference:.3f} in {case}"
    timings = interleave(calls, rounds=affordable_rounds(calls, scale.rounds, SECONDS), warmup=0)
    return [compared(f"{case}, {name}", timings, name, FLOAT32) for name in calls if name != FLOAT32]
