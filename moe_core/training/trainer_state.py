"""The plain values that a trainer must remember to continue to the bit, and what a resumed run may not change."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from moe_core.config import Config, TrainingConfig
from moe_core.data.shuffled_order import windows_per_epoch
from moe_core.errors import RunError
from moe_core.runs.folder import RunFolder, RunStatus, State
from moe_core.training.clock import Clock
from moe_core.training.early_stopping import BestEvaluation
from moe_core.training.probe import DomainExpert

# These decide which numbers the next step sees, or which tokens measure the run; with another value it would be another
# run, or its curves would break at the step where it was resumed.
FIXED_TRAINING_KEYS = (
    "optimizer", "batch_size", "gradient_accumulation", "seq_len", "seed", "autocast", "evaluation_tokens",
    "probe_tokens", "init_from", "contrastive",
)  # fmt: skip


@dataclass
class TrainerState:
    """The plain values. Optimizers and random number generators are tensors, in a file of their own."""

    steps: int
    """Steps to do in all; lower than asked for when the time budget did not reach."""
    asked_steps: int
    """training.steps when `steps` was set."""
    fingerprint: str
    """PreparedData.fingerprint of the data."""
    autocast: bool
    """Autocast to repeatability.autocast_dtype, decided once."""
    started_at: float
    """Seconds since 1970."""
    parts: int = 0
    """Parts in which a batch passes, one after another; 0 = as training.gradient_accumulation says."""
    step: int = 0
    """Steps done; also the data position."""
    evaluated_step: int = -1
    """Step of the last evaluation."""
    saved_step: int = -1
    """Step of the last checkpoint."""
    bad_steps: int = 0
    """Steps in a row that were skipped for a loss or gradient that is not finite."""
    clock: Clock = field(default_factory=Clock)
    owned_experts: list[DomainExpert] = field(default_factory=list)
    """Experts already announced as a domain's own."""
    best: BestEvaluation = field(default_factory=BestEvaluation)
    nats: dict[str, float] = field(default_factory=dict)
    """Nats per token of each split at the last evaluation."""

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> TrainerState:
        """Undo `to_meta`. Raises RunError for the values of another version."""
        try:
            owned = [(int(layer), int(expert), str(domain)) for layer, expert, domain in meta["owned_experts"]]
            best = BestEvaluation(**meta.get("best", {}))
            return cls(**{**meta, "clock": Clock(**meta["clock"]), "owned_experts": owned, "best": best})
        except (KeyError, TypeError, ValueError):
            raise RunError(
                "trainer.json was written by another version of Moescope and cannot be continued; start a new run"
            ) from None

    def status(self, state: State, config: Config, message: str = "") -> RunStatus:
        """What the run folder tells the world now."""
        training = config.training
        tokens_per_step = training.batch_size * training.seq_len
        running = state == "running"
        speed = tokens_per_step / self.clock.seconds_per_step if self.clock.steps else None
        left = self.clock.seconds_left(self.step, self.steps, training.evaluation_interval)
        return RunStatus(
            state=state,
            step=self.step,
            steps=self.steps,
            tokens=self.step * tokens_per_step,
            tokens_per_second=speed,
            seconds_left=left if running else None,
            elapsed_seconds=self.clock.elapsed,
            started_at=self.started_at,
            updated_at=time.time(),
            pid=os.getpid(),
            message=message,
        )


def with_vocabulary(config: Config, size: int) -> Config:
    """The configuration with the number of entries the tokenizer really has."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})


def with_steps(config: Config, tokens: int) -> Config:
    """The configuration with the steps that training.epochs make of a text of so many tokens, where it is set.

    A step visits batch_size windows of the text; the last one may begin the next epoch.
    """
    training = config.training
    if training.epochs is None:
        return config
    windows = training.epochs * windows_per_epoch(tokens, training.seq_len)
    steps = max(1, math.ceil(windows / training.batch_size))
    return config.model_copy(update={"training": training.model_copy(update={"steps": steps})})


def check_same_run(run: RunFolder, config: Config) -> None:
    """Raise RunError unless `config` may continue `run`: same model, data, and FIXED_TRAINING_KEYS."""
    stored = run.config()
    pairs = {
        **{f"model.{key}": key for key in type(config.model).model_fields if key != "vocab_size"},
        **{f"data.{key}": key for key in type(config.data).model_fields},
        **{f"training.{key}": key for key in FIXED_TRAINING_KEYS},
    }
    for name, key in pairs.items():
        section = name.partition(".")[0]
        was, now = (getattr(getattr(tree, section), key) for tree in (stored, config))
        if was != now:
            raise RunError(
                f"run {run.name!r} was started with {name} = {_as_plain_value(was)!r} and cannot continue with "
                f"{_as_plain_value(now)!r}; resume it without that change, or start a new --run NAME"
            )


def _as_plain_value(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def has_more_time(now: TrainingConfig, before: TrainingConfig) -> bool:
    """Whether the time budget grew, so that steps it has cost may be trained after all."""
    budget, was = now.time_budget_seconds, before.time_budget_seconds
    return was is not None and (budget is None or budget > was)
