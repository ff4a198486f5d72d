"""One GPU: what part of its matrix products' speed a training step reaches, and what a whole training adds to a step.

MFU is 3 times the forward operations of a batch, attention at the causal half, by the step's seconds and the speed of a
product of two 8,192 x 8,192 bfloat16 matrices on the same device in the same run. Weights are float32, products
bfloat16 by autocast, the model and its optimizers those of a run. Beside it stands the Mixtral of transformers with its
grouped_mm experts, the same weights, batch, precision and optimizer. What writes and reads is in bench/gpu_reading.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.gpu_reading import reading_rows, writing_rows
from bench.references import HAS_TRANSFORMERS, absent_rows, mixtral
from bench.results import Goal, Result, compared
from bench.suite import Scale
from bench.training_loop import SMOKE, share_of_bare_step, timed
from moe_core.config import Config, load_config, validate_config
from moe_core.experiments.timing import Timings
from moe_core.inference.device import resolve_device
from moe_core.model import MoETransformer
from moe_core.training.batches import TensorBatch
from moe_core.training.compiling import can_compile, compile_blocks
from moe_core.training.gradient import accumulate_gradient
from moe_core.training.optimizers import build_optimizers, step_optimizers
from moe_core.training.step_report import is_not_finite

OURS, THEIRS = "ours", "Mixtral grouped_mm"
PRODUCT = 8192


@dataclass(frozen=True)
class Shape:
    """A training step that is timed."""

    name: str
    dim: int
    layers: int
    experts: int
    top_k: int
    hidden: int
    vocabulary: int
    batch: tuple[int, int]
    mfu: Goal
    optimizer: str | None = "adamw"
    """None: forward and backward alone."""
    beside_mixtral: bool = True
    memory: Goal | None = None
    """GiB at the worst moment."""

    @property
    def config(self) -> Config:
        """Mixtral's layout; heads of 64, as many for keys as for queries."""
        model = {
            "vocab_size": self.vocabulary, "dim": self.dim, "num_layers": self.layers, "num_heads": self.dim // 64,
            "num_kv_heads": self.dim // 64, "head_dim": 64, "num_experts": self.experts, "top_k": self.top_k,
            "expert_hidden_dim": self.hidden, "qk_norm": False, "max_seq_len": self.batch[1],
        }  # fmt: skip
        training = {"batch_size": self.batch[0], "seq_len": self.batch[1], "optimizer": self.optimizer or "adamw"}
        return validate_config({"model": model, "training": training})


SHAPES = (
    Shape("OLMoE's layers, 2048 x 16, E64 k8 F1024", 2048, 16, 64, 8, 1024, 50_304, (4, 2048), Goal(0.42, 0.5), None),
    Shape("768 x 12, E8 k2 F3072", 768, 12, 8, 2, 3072, 32_768, (16, 1024), Goal(0.34, 0.45)),
    Shape("1024 x 16, E32 k4 F1024", 1024, 16, 32, 4, 1024, 32_768, (16, 1024), Goal(0.34, 0.45),
          memory=Goal(37.0, 28.0, at_most=True)),
    Shape("512 x 8, E16 k2 F1024, Muon", 512, 8, 16, 2, 1024, 16_384, (64, 512), Goal(0.19, 0.28), "muon", False),
)  # fmt: skip
SMALL = (
    Shape("64 x 2, E4 k2 F64", 64, 2, 4, 2, 64, 512, (2, 16), Goal(1.0), None),
    Shape("64 x 2, E4 k2 F64, Muon", 64, 2, 4, 2, 64, 512, (2, 16), Goal(1.0), "muon", False),
)
LOOP = {
    "model.dim": 512, "model.num_layers": 8, "model.num_heads": 8, "model.num_kv_heads": 8, "model.head_dim": 64,
    "model.num_experts": 16, "model.expert_hidden_dim": 1024, "model.vocab_size": 16_384,
    "training.batch_size": 64, "training.seq_len": 512,
}  # fmt: skip


def run(scale: Scale) -> list[Result]:
    """Every row on this machine's accelerator; small ones on its processor, if scale.smoke and there is none."""
    device = resolve_device("auto")
    side = 256 if scale.smoke else PRODUCT
    ceiling = product_speed(side, device, scale.rounds)
    rows = [Result(f"product of two {side:,} x {side:,} bfloat16 matrices", ceiling / 1e12, "TFLOP/s")]
    rows += absent_rows("training step on the GPU")
    shapes = SMALL if scale.smoke else SHAPES
    for number, shape in enumerate(shapes):
        scale.progress("GPU: training steps", number, len(shapes))
        rows += step_rows(shape, ceiling, device, scale)
    changes: dict[str, Any] = {"training.device": device.type, **(SMOKE if scale.smoke else LOOP)}
    config = load_config("default", environment={}, overrides=changes)
    rows.append(share_of_bare_step(config, "512 x 8, E16 k2 F1024, Muon", scale, goal=Goal(0.92, 0.97)))
    return [*rows, *writing_rows(device, scale), *reading_rows(device, scale)]


def product_speed(side: int, device: torch.device, rounds: int) -> float:
    """Operations a second of a square bfloat16 product: what a step's speed is held against."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(left, right)
    return 2.0 * side**3 / median(timed(lambda: torch.mm(left, right), device) for _ in range(rounds))


def step_rows(shape: Shape, ceiling: float, device: torch.device, scale: Scale) -> list[Result]:
    """MFU of one shape, its ratio to Mixtral, and its memory."""
    torch.manual_seed(0)
    model = MoETransformer(shape.config.model)
    flops = 3.0 * shape.batch[0] * shape.batch[1] * model.flops_per_token(shape.batch[1] // 2)
    drawn = torch.from_numpy(np.random.default_rng(0).integers(shape.vocabulary, size=(2, *shape.batch)))
    batch = TensorBatch(*(column.to(device) for column in drawn))
    theirs = mixtral(model, "grouped_mm").train() if shape.beside_mixtral and HAS_TRANSFORMERS else None
    ours = TimedSide.of(our_step(model.to(device).train(), shape, batch), device, scale.rounds)
    del model
    give_memory_back()
    case = f"training step, {shape.name}, {shape.batch[0]} x {shape.batch[1]}"
    case += "" if shape.optimizer else ", forward and backward"
    goal, memory = (None, None) if scale.smoke else (shape.mfu, shape.memory)
    seconds = median(ours.seconds)
    note = f"{1000 * seconds:.4g} ms, {shape.batch[0] * shape.batch[1] / seconds:,.0f} tokens/s"
    rows = [Result(f"MFU, {case}", flops / seconds / ceiling, "", goal=goal, note=note)]
    if shape.memory is not None:
        rows.append(Result(f"peak memory, {case}", ours.peak_gib, "GiB", goal=memory))
    if theirs is not None:
        other = TimedSide.of(their_step(theirs.to(device), shape, batch), device, scale.rounds)
        assert abs(other.loss - ours.loss) < 0.02 * ours.loss, f"{THEIRS} has a loss of {other.loss}, ours {ours.loss}"
        timings = Timings(pd.DataFrame({OURS: ours.seconds, THEIRS: other.seconds}))
        rows.append(compared(case, timings, OURS, THEIRS, goal=None if scale.smoke else Goal(2.2, 3.0)))
        del theirs
        give_memory_back()
    return rows


@dataclass(frozen=True)
class TimedSide:
    """One model's steps, timed while no other model is on the device: two of the largest would not fit."""

    loss: float
    """Of the first step."""
    seconds: list[float]
    peak_gib: float
    """NaN where the device does not count."""

    @classmethod
    def of(cls, step: Callable[[], Tensor], device: torch.device, rounds: int) -> TimedSide:
        """Three steps to warm up (the first compiles), then `rounds`."""
        loss = float(step())
        for _ in range(2):
            step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [timed(step, device) for _ in range(rounds)]
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
        return cls(loss, seconds, peak)


def give_memory_back() -> None:
    """Let the next model have the memory of one that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def our_step(model: MoETransformer, shape: Shape, batch: TensorBatch) -> Callable[[], Tensor]:
    """A step as the trainer of a long run takes it, compiled where it can be, at a learning rate of 0; the loss."""
    config, optimizers = shape.config, []
    if can_compile(config, batch.token_ids.device, autocast=True):
        compile_blocks(model)
    if shape.optimizer is not None:
        optimizers = build_optimizers(model, config.training)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0

    def step() -> Tensor:
        losses, routed = accumulate_gradient(model, batch, config, autocast=True)
        if optimizers:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.gradient_clip)
            skipped = is_not_finite(losses.total, norm)
            step_optimizers(optimizers, skipped)
            model.after_step(routed, skipped)
        model.zero_grad(set_to_none=True)
        return losses.language_model

    return step


def their_step(model: Any, shape: Shape, batch: TensorBatch) -> Callable[[], Tensor]:
    """The same of a model of the transformers library, with torch's own cross-entropy."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True) if shape.optimizer else None

    def step() -> Tensor:
        with torch.autocast(batch.token_ids.device.type, torch.bfloat16):
            logits_BSV = model(batch.token_ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1).float(), batch.targets.flatten())
        torch.autograd.backward(loss)
        if optimizer is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), shape.config.training.gradient_clip)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step
