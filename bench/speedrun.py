"""The best loss that three minutes on two cores can buy: the quick preset, start to scored, seed by seed.

`--quick` itself stops after its 350 steps, however fast the machine. Here a short run is timed first, and the steps,
with them the fall of the learning rate, are laid over what three minutes hold at that speed.

The text is $MOESCOPE_SPEEDRUN_TEXT, else ../shared/data/real_domains.jsonl beside the repository, else the synthetic
one; goals hold for the real text alone. Loss is on held-out sources, bits per UTF-8 byte, so that tokenizers compare.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.results import Goal, Result
from bench.suite import Scale
from moe_core.config import Config, load_config
from moe_core.data.prepare import prepare_data
from moe_core.data.token_stream import training_batch
from moe_core.evaluation.evaluate import evaluate_run
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train
from moe_core.training.schedule import steps_within_budget

SEEDS = (0, 1, 2)
WHOLE_SECONDS = 180.0
"""From nothing to scored."""
RESERVE_SECONDS = 6.0
"""Left over by the plan: a run's own clock lowers its steps only when the machine slows down by more than a little."""
TRIAL_STEPS, MOST_STEPS = 40, 100_000
TEXT_VARIABLE = "MOESCOPE_SPEEDRUN_TEXT"
REAL_TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_domains.jsonl"
BATCHES_TIMED = 50
SMOKE = {
    "data.documents": 20, "model.vocab_size": 1024, "model.dim": 32, "model.head_dim": 8, "model.num_layers": 1,
    "training.steps": 3, "training.batch_size": 2, "training.evaluation_tokens": 64, "training.probe_tokens": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Sprint:
    """One run from nothing to its score."""

    seed: int
    bits_per_byte: float
    """On unseen text."""
    nats_under_unigram: float
    seconds: float
    """Preparing, training and scoring."""
    loop_seconds: float
    """Of them in the training loop: steps, evaluations, checkpoints."""
    steps: int
    """Done; fewer than planned where the machine slowed down."""
    seconds_per_step: float
    load_imbalance: float
    """Value of the worst layer."""
    dead_experts: int
    nmi_above_null: bool
    """Whether it holds in every layer."""


def run(scale: Scale) -> list[Result]:
    """Loss, time and health over the seeds, and what part of a step goes into fetching its batch."""
    path = None if scale.smoke else _text()
    overrides = {"data.path": path, **(SMOKE if scale.smoke else {})}
    config = load_config("quick", environment={}, overrides=overrides)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if not scale.smoke:
            config = over_three_minutes(config, sprint(trial(config), SEEDS[0], root / "trial", scale))
        sprints = [sprint(config, seed, root, scale) for seed in SEEDS[: 1 if scale.smoke else None]]
    real = path == str(REAL_TEXT)
    text = "synthetic text" if path is None else "real text" if real else Path(path).name
    return [*results(sprints, text, goals=real), _loading(config, sprints)]


def trial(config: Config) -> Config:
    """The same, so short that it only tells the speed of this machine; evaluated before and after."""
    return _with_training(config, steps=TRIAL_STEPS, evaluation_interval=TRIAL_STEPS)


def over_three_minutes(config: Config, tried: Sprint) -> Config:
    """`config` with as many steps as WHOLE_SECONDS hold at the speed of its trial, and a time budget to match."""
    evaluation = max(0.0, tried.loop_seconds - tried.steps * tried.seconds_per_step) / 2
    seconds = WHOLE_SECONDS - RESERVE_SECONDS - (tried.seconds - tried.loop_seconds)
    steps = steps_within_budget(
        0,
        MOST_STEPS,
        seconds_left=seconds,
        seconds_per_step=tried.seconds_per_step,
        seconds_per_evaluation=evaluation,
        interval=config.training.evaluation_interval,
    )
    return _with_training(config, steps=steps, time_budget_seconds=max(1.0, seconds))


def _with_training(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def sprint(config: Config, seed: int, root: Path, scale: Scale) -> Sprint:
    """Train and score one run below `root`; the split of the text stays the same, weights and order do not."""
    config = _with_training(config, seed=seed)
    started = time.perf_counter()
    folder = RunFolder(f"seed-{seed}", root)
    result = train(folder, config, progress=scale.progress)
    evaluation = evaluate_run(load_run(folder.name, root), progress=scale.progress)
    seconds = time.perf_counter() - started
    lines = folder.metrics("train")
    return Sprint(
        seed,
        known(evaluation.unseen.bits_per_byte),
        evaluation.baselines.unigram_nats - known(evaluation.unseen.nats_per_token),
        seconds,
        result.seconds,
        result.step,
        config.training.batch_size * config.training.seq_len / float(lines["tokens_per_second"].iloc[-1]),
        max(known(layer.load_imbalance) for layer in evaluation.routing),
        sum(layer.dead_experts for layer in evaluation.routing),
        all(_above_null(layer.domain_nmi, layer.domain_nmi_null_p99) for layer in evaluation.routing),
    )


def known(value: float | None) -> float:
    """NaN where a figure is not finite."""
    return math.nan if value is None else value


def results(sprints: list[Sprint], text: str, *, goals: bool) -> list[Result]:
    """Medians over the seeds, every seed in the note; a goal for the worst of them where one bad seed is too many."""

    def told(figure: Callable[[Sprint], float], digits: int) -> str:
        return "seeds " + ", ".join(f"{one.seed}: {figure(one):.{digits}f}" for one in sprints)

    worst, slowest = (max(values) for values in ([s.load_imbalance for s in sprints], [s.seconds for s in sprints]))
    *fewer, most = sorted({one.steps for one in sprints})
    steps = f"{', '.join(map(str, fewer))} and {most}" if fewer else str(most)
    routed = all(one.nmi_above_null and not one.dead_experts for one in sprints)
    return [
        Result(
            f"loss on unseen {text} after three minutes",
            median(one.bits_per_byte for one in sprints),
            "bits/byte",
            goal=Goal(2.15, 1.80, at_most=True) if goals else None,
            note=told(lambda one: one.bits_per_byte, 3),
        ),
        Result(
            f"nats a token under unigram, {text}",
            median(one.nats_under_unigram for one in sprints),
            "nats",
            goal=Goal(1.5) if goals else None,
            note=told(lambda one: one.nats_under_unigram, 2),
        ),
        Result(
            f"wall clock from nothing to scored, {text}, slowest seed",
            slowest,
            "s",
            goal=Goal(180.0, at_most=True) if goals else None,
            note=f"{steps} steps; {told(lambda one: one.seconds, 0)}",
        ),
        Result(
            f"busiest expert, times the mean, {text}, worst layer and seed",
            worst,
            "x",
            goal=Goal(2.0, at_most=True) if goals else None,
            note="no dead expert, domain NMI above its null in every layer"
            if routed
            else "an expert is dead, or the domain NMI of a layer is within its null",
        ),
    ]


def _loading(config: Config, sprints: list[Sprint]) -> Result:
    """Seconds to cut a batch from the tokens, as a part of a step."""
    data, training = prepare_data(config), config.training
    started = time.perf_counter()
    for step in range(BATCHES_TIMED):
        training_batch(data.train, step, batch_size=training.batch_size, seq_len=training.seq_len, seed=training.seed)
    share = (time.perf_counter() - started) / BATCHES_TIMED / median(one.seconds_per_step for one in sprints)
    return Result("part of a training step that waits for data", 100 * share, "%", goal=Goal(1.0, at_most=True))


def _above_null(nmi: float | None, null_p99: float | None) -> bool:
    """False where a text of one domain, or of few sources, leaves nothing to compare."""
    return nmi is not None and null_p99 is not None and nmi > null_p99


def _text() -> str | None:
    given = os.environ.get(TEXT_VARIABLE)
    return given or (str(REAL_TEXT) if REAL_TEXT.is_file() else None)
