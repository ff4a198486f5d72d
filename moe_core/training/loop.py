"""The training loop, top to bottom: evaluate, save, step, log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

import torch

from moe_core.config import Config
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.errors import MoescopeError, NoSpaceError
from moe_core.inference.device import resolve_device
from moe_core.model.size import SMALLEST_VOCABULARY, check_fits_training
from moe_core.progress import Progress, silent
from moe_core.runs.checkpoint import checkpoint_steps
from moe_core.runs.compute import write_compute
from moe_core.runs.folder import RunFolder, RunStatus
from moe_core.runs.reader import ReadRun
from moe_core.training.observe import log_baselines, log_event
from moe_core.training.origin import origin_of, tokenizer_of
from moe_core.training.parallel.mesh import Mesh, started
from moe_core.training.ranks import Ranks
from moe_core.training.repeatability import repeatable, resolve_autocast
from moe_core.training.seen_compute import seen_compute
from moe_core.training.stopping import PreparationStopped, Stopper
from moe_core.training.trainer import Trainer
from moe_core.training.trainer_state import check_same_run, with_steps, with_vocabulary

STATUS_SECONDS = 1.0


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended. A failed one raises instead."""

    state: Literal["finished", "stopped"]
    step: int
    """Steps done."""
    steps: int
    """Steps to do in all."""
    validation_nats: float | None
    """Nats per token at the last evaluation, on its subset of the split; None if it stopped before the first."""
    unseen_nats: float | None
    seconds: float
    """Spent in the loop, all sessions of the run together."""
    signal: int | None = None
    """The signal that stopped it: the command line exits with 128 + this."""


def train(
    run: RunFolder,
    config: Config,
    *,
    resume: bool = False,
    data: PreparedData | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    step: Callable[[Trainer], object] = Trainer.step,
) -> TrainingResult:
    """Train `run` until its steps are done or someone asks to stop; then it is saved and can be resumed to the bit.

    `step` takes the steps: a profile takes them and looks on.
    `data`: what prepare_data(config) gives, at hand from a run with the same configuration of data and vocabulary.
    Asked to stop by: SIGINT, SIGTERM, run.request_stop() from anywhere, or `stop()` returning True. Raises UsageError
    for a name that is taken or a step that does not fit into memory, RunBusyError when another process trains it,
    DataError for the text, RunError for a run that cannot continue, a full disk, or a loss that stays NaN; the reason
    is also in the run's status.
    """
    if resume and not run.exists():
        run.config()  # raises "no run ..."
    device = resolve_device(config.training.device, "training.device")
    with started(config, device) as mesh:
        ranks = Ranks()
        run = run if ranks.is_first else ReadRun(run.name, run.root)
        stopper = Stopper(run, stop, ranks)
        report = progress if progress is not None and ranks.is_first else silent
        return _train(run, config, device, stopper, mesh, resume=resume, data=data, report=report, step=step)


def _train(
    run: RunFolder,
    config: Config,
    device: torch.device,
    stopper: Stopper,
    mesh: Mesh | None,
    *,
    resume: bool,
    data: PreparedData | None,
    report: Progress,
    step: Callable[[Trainer], object],
) -> TrainingResult:
    """`train`, in one of the processes that it has."""
    if mesh is None:
        # Before a file is written or the text is read, which decides how large the vocabulary will be.
        _check_memory(with_vocabulary(config, SMALLEST_VOCABULARY), device)
    with (
        _saying_what_is_saved(run),
        run.lock(),
        stopper.catching_signals(),
        repeatable(config.training.threads, device),
    ):
        # A run that died before its first checkpoint has nothing to continue: it starts anew.
        with stopper.ranks.together():
            resuming = resume and bool(checkpoint_steps(run))
            before = run.status() or RunStatus("stopped") if resuming else None
            if resuming:
                check_same_run(run, config)
            else:
                run.create(config)
        run.clear_stop()
        try:
            trainer = _prepare_trainer(run, config, device, before, data, report, stopper, mesh)
            return _run_loop(trainer, report, stopper, step)
        except PreparationStopped:
            status = replace(
                before or _preparing_status(config, None), state="stopped", message="stopped while preparing"
            )
            run.write_status(status)
            return TrainingResult(
                "stopped", status.step, status.steps, None, None, status.elapsed_seconds, stopper.signal
            )
        except Exception as error:
            _record_failure(run, error, before)
            raise
        finally:
            run.clear_stop()


@contextmanager
def _saying_what_is_saved(run: RunFolder) -> Iterator[None]:
    """Add to a full disk's error what is left of the run, and how it goes on from there."""
    try:
        yield
    except NoSpaceError as error:
        raise NoSpaceError(f"{error}; {_what_is_saved(run)}") from None


def _what_is_saved(run: RunFolder) -> str:
    if checkpoint_steps(run):
        return "what was saved before is intact: continue with --resume"
    return "nothing of this run was saved yet: start it again"


def _run_loop(
    trainer: Trainer, progress: Progress, stopper: Stopper, step: Callable[[Trainer], object]
) -> TrainingResult:
    """The loop itself, until the steps are done or someone asks to stop."""
    run, state, training = trainer.run, trainer.state, trainer.config.training
    status_at = 0.0
    run.write_status(state.status("running", trainer.config))
    if trainer.ranks.is_first:
        _write_compute(trainer)

    while True:
        # Evaluate: loss on both held-out splits, routing of the probe set, a sample.
        is_last = state.step >= state.steps
        is_due = is_last or state.step % training.evaluation_interval == 0
        if is_due and state.evaluated_step != state.step:
            trainer.evaluate(progress if is_last else None)
        if not is_last and state.best.is_long_ago(training):
            is_last = True
            if state.saved_step != state.step:  # else it was said before, and the run has been resumed
                log_event(run, state.step, state.best.sentence)

        # Save: with every evaluation, and when asked to stop.
        stopping = stopper.requested_anywhere()
        if (is_due or stopping) and state.saved_step != state.step:
            trainer.save()
        if is_last or stopping:
            break

        # Step, and a line in the log now and then.
        step(trainer)
        trainer.save_parts()

        # Status: every second.
        if time.monotonic() - status_at >= STATUS_SECONDS:
            trainer.read_steps()
            status_at = time.monotonic()
            run.write_status(state.status("running", trainer.config))
        progress("training", state.step, state.steps)

    ended: Literal["finished", "stopped"] = "finished" if is_last else "stopped"
    run.write_status(state.status(ended, trainer.config))
    return TrainingResult(
        state=ended,
        step=state.step,
        steps=state.steps,
        validation_nats=state.nats.get("validation"),
        unseen_nats=state.nats.get("unseen"),
        seconds=state.clock.elapsed,
        signal=stopper.signal if ended == "stopped" else None,
    )


def _write_compute(trainer: Trainer) -> None:
    """How its steps compute, beside its status."""
    config, state = trainer.config, trainer.state
    rows = max(1, config.training.batch_size // max(1, state.parts))
    weights = next(trainer.model.parameters()).dtype
    found = seen_compute(config, trainer.device, autocast=state.autocast, rows=rows, weights=weights)
    write_compute(trainer.run, found)


def _prepare_trainer(
    run: RunFolder,
    config: Config,
    device: torch.device,
    before: RunStatus | None,
    prepared: PreparedData | None,
    progress: Progress,
    stopper: Stopper,
    mesh: Mesh | None,
) -> Trainer:
    """Text to tokens, then the trainer as new or as it was left. `before`: the status of a run to continue."""
    run.write_status(_preparing_status(config, before))
    origin = None if before else origin_of(run, config, device)
    tokenizer = tokenizer_of(run, config, origin)
    with stopper.stopping_together():
        data = prepared or prepare_data(config, progress=stopper.interrupting(progress), tokenizer=tokenizer)
    stopper.ranks.check_equal(data.fingerprint, "the text that they read")
    config = with_steps(with_vocabulary(config, data.tokenizer.vocab_size), len(data.train))
    if mesh is None:
        _check_memory(config, device)
    if before:
        trainer = Trainer.restore(run, config, data, device, mesh)
    else:
        trainer = Trainer.begin(run, config, data, device, origin, mesh)
    run.write_config(config)
    if not before:
        run.write_held_out(data.validation, data.unseen, data.token_counts, data.domains)
        log_baselines(run, data, trainer.held_out)
        if origin is not None:
            log_event(run, 0, f"starts from the weights and the tokenizer of run {origin.run.name}, step {origin.step}")
    return trainer


def _check_memory(config: Config, device: torch.device) -> None:
    check_fits_training(config, device.type, autocast=resolve_autocast(config, device))


def _preparing_status(config: Config, before: RunStatus | None) -> RunStatus:
    now = time.time()
    status = before or RunStatus("preparing", steps=config.training.steps, started_at=now)
    return replace(status, state="preparing", updated_at=now, pid=os.getpid(), message="preparing the data")


def _record_failure(run: RunFolder, error: Exception, before: RunStatus | None) -> None:
    """Put the reason into the status; a run that could not be continued keeps the status it had."""
    reason = str(error) if isinstance(error, MoescopeError) else f"{type(error).__name__}: {error}"
    with suppress(MoescopeError):  # on a full disk the status cannot be written either
        status = run.status()
        if status is None or (before is not None and status.state == "preparing"):
            status = before
        else:
            status = replace(status, state="failed", seconds_left=None, message=reason, updated_at=time.time())
        if status is not None:
            run.write_status(status)
