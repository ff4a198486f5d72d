"""Everything a trainer must remember to continue to the bit, and how it goes into a checkpoint and back."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from moe_core.config import Config
from moe_core.data.prepare import PreparedData
from moe_core.errors import RunError
from moe_core.model.transformer import MoETransformer
from moe_core.runs.checkpoint import LoadedRun, load_run, load_trainer_state, save_checkpoint
from moe_core.runs.folder import RunFolder, RunStatus, State
from moe_core.training.clock import Clock
from moe_core.training.device import resolve_autocast
from moe_core.training.optimizers import build_optimizers, optimizer_tensors, restore_optimizers
from moe_core.training.probe import DomainExpert

# These decide which numbers the next step sees, or which tokens measure the run; with another value it would be another
# run, or its curves would break at the step where it was resumed.
FIXED_TRAINING_KEYS = (
    "optimizer", "batch_size", "gradient_accumulation", "seq_len", "seed", "autocast", "evaluation_tokens",
    "probe_tokens", "init_from",
)  # fmt: skip


@dataclass
class TrainerState:
    """The plain values (optimizer and RNG are tensors and live in their own file)."""

    steps: int
    """Steps to do in all; lower than asked for when the time budget did not reach."""
    asked_steps: int
    """training.steps when `steps` was set."""
    fingerprint: str
    """Of the data."""
    autocast: bool
    """bfloat16 autocast, decided once."""
    started_at: float
    """Seconds since 1970."""
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
            return cls(**{**meta, "clock": Clock(**meta["clock"]), "owned_experts": owned})
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


def begin(
    config: Config, data: PreparedData, device: torch.device, origin: LoadedRun | None = None
) -> tuple[MoETransformer, list[Optimizer], TrainerState]:
    """A new model with seeded weights, or those of `origin`, its optimizers, and a state at step 0."""
    torch.manual_seed(config.training.seed)
    model = MoETransformer(config.model).to(device)
    model.prepare_routers(torch.from_numpy(data.token_counts), data.tokenizer.end_of_text)
    if origin is not None:
        model.load_state_dict(origin.model.state_dict())
    state = TrainerState(
        steps=config.training.steps,
        asked_steps=config.training.steps,
        fingerprint=data.fingerprint,
        autocast=resolve_autocast(config, device),
        started_at=time.time(),
    )
    return model, build_optimizers(model, config.training), state


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
                f"run {run.name!r} was started with {name} = {_plain(was)!r} and cannot continue with {_plain(now)!r}; "
                "resume it without that change, or start a new --run NAME"
            )


def restore(
    run: RunFolder, config: Config, data: PreparedData, device: torch.device
) -> tuple[MoETransformer, list[Optimizer], TrainerState]:
    """Model, optimizers and state of the newest checkpoint; RNG set and metrics rewound to it."""
    loaded = load_run(run.name, run.root, device=device)
    tensors, meta = load_trainer_state(run, loaded.step)
    state = TrainerState.from_meta(meta)
    if state.fingerprint != data.fingerprint:
        raise RunError(
            f"the data of run {run.name!r} has changed since it was started ({config.data.path or 'synthetic'}); "
            "put the old data back, or start a new --run NAME"
        )
    model = loaded.model.train().requires_grad_(True)
    optimizers = build_optimizers(model, config.training)
    restore_optimizers(model, optimizers, tensors)
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    if config.training.steps != state.asked_steps:
        state.steps = max(state.step, config.training.steps)
        state.asked_steps = config.training.steps
    state.saved_step = state.step
    run.rewind_metrics(state.step)
    return model, optimizers, state


def save(
    run: RunFolder,
    config: Config,
    data: PreparedData,
    model: MoETransformer,
    optimizers: Sequence[Optimizer],
    state: TrainerState,
) -> None:
    """Write a checkpoint of this moment."""
    tensors: dict[str, Tensor] = {**optimizer_tensors(model, optimizers), "rng.cpu": torch.get_rng_state()}
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    save_checkpoint(
        run,
        step=state.step,
        model=model,
        tokenizer=data.tokenizer,
        config=config,
        trainer_state=tensors,
        trainer_meta=state.to_meta(),
    )
    state.saved_step = state.step


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value
