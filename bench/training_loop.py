"""What part of a training is training: a whole run against its bare steps.

The run is `moescope train`: batches, a log, a status each second, and at every interval an evaluation of both held-out
splits, the routing of the probe set, a sample and a checkpoint. Its time is that of one interval, from the end of the
first step to the end of the one behind the next evaluation. The bare step is forward, backward, clipping and
optimizers on one batch; it is taken between the steps of the run, now and then, and its time is left out of the run's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from bench.results import Goal, Result
from bench.suite import Scale
from moe_core.config import Config, load_config
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.inference.device import resolve_device
from moe_core.runs.folder import RunFolder
from moe_core.training.batches import Batches
from moe_core.training.gradient import accumulate_gradient
from moe_core.training.loop import train
from moe_core.training.optimizers import set_learning_rates, step_optimizers
from moe_core.training.step_report import is_not_finite
from moe_core.training.trainer import Trainer
from moe_core.training.trainer_state import with_vocabulary

SMOKE = {
    "data.documents": 20, "model.vocab_size": 1024, "model.dim": 32, "model.head_dim": 8, "model.num_layers": 1,
    "training.batch_size": 2, "training.evaluation_tokens": 64, "training.probe_tokens": 32,
    "training.evaluation_interval": 2,
}  # fmt: skip


def run(scale: Scale) -> list[Result]:
    """The quick preset on this machine's processor."""
    config = load_config(
        "quick", environment={}, overrides={"training.device": "cpu", **(SMOKE if scale.smoke else {})}
    )
    return [share_of_bare_step(config, "quick preset", scale)]


def share_of_bare_step(config: Config, name: str, scale: Scale, goal: Goal | None = None) -> Result:
    """The row for one configuration."""
    interval = config.training.evaluation_interval
    changes = {"steps": interval + 1, "time_budget_seconds": None, "threads": torch.get_num_threads()}
    config = config.model_copy(update={"training": config.training.model_copy(update=changes)})
    data = prepare_data(config, progress=scale.progress)
    with tempfile.TemporaryDirectory() as folder:
        bare = BareSteps(config, data, Path(folder))
        step, whole = _seconds_of_an_interval(config, data, bare, Path(folder), scale)
    return Result(
        f"share of the bare step in the whole loop, {name}",
        step * interval / whole,
        "",
        goal=None if scale.smoke else goal,
        note=f"{1000 * step:.4g} ms a bare step, {1000 * whole / interval:.4g} ms in the loop, an evaluation every "
        f"{interval} steps",
    )


class BareSteps:
    """The model and the optimizers of a trainer, stepped on one batch, at a learning rate of nothing: as much work, and
    the same weights every time."""

    def __init__(self, config: Config, data: PreparedData, root: Path) -> None:
        config = with_vocabulary(config, data.tokenizer.vocab_size)
        run = RunFolder("bare", root)
        run.create(config)
        self.device = resolve_device(config.training.device)
        self._trainer = Trainer.begin(run, config, data, self.device)
        self._batch = Batches(data.train, config.training, self.device).of(0)
        set_learning_rates(self._trainer.optimizers, 0.0)
        self()

    def __call__(self) -> None:
        """One step, as Trainer.step takes it."""
        model, optimizers, training = self._trainer.model, self._trainer.optimizers, self._trainer.config.training
        losses, routed = accumulate_gradient(
            model, self._batch, self._trainer.config, autocast=self._trainer.state.autocast
        )
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
        skipped = is_not_finite(losses.total, norm) if self.device.type == "cuda" else None
        step_optimizers(optimizers, skipped)
        model.after_step(routed, skipped)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds until `device` is done with it."""
    settle(device)
    start = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds_of_an_interval(
    config: Config, data: PreparedData, bare: BareSteps, root: Path, scale: Scale
) -> tuple[float, float]:
    """The median of the bare steps in between; and from the end of step 1 to that of the last one, without them."""
    interval, found = config.training.evaluation_interval, []
    every = max(1, interval // (2 * scale.rounds))
    ends: dict[int, float] = {}

    def note(stage: str, done: int, total: int) -> None:
        scale.progress(stage, done, total)
        if stage != "training":
            return
        if done > 1 and done % every == 0:
            settle(bare.device)
            before = time.perf_counter()
            found.append(timed(bare, bare.device))
            ends[1] += time.perf_counter() - before
        ends[done] = time.perf_counter()

    train(RunFolder("whole", root), config, data=data, progress=note)
    return median(found), ends[interval + 1] - ends[1]
