"""The training loop, top to bottom: evaluate, probe, sample, checkpoint, step, log."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from moe_core.config import Config
from moe_core.config.router import RouterConfig
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.data.tokens import TokenBatch, training_batch
from moe_core.errors import MoescopeError, RunError
from moe_core.inference.device import resolve_device
from moe_core.model.losses import StepLoad, routing_losses
from moe_core.model.routers import RouterOutput
from moe_core.model.size import SMALLEST_VOCABULARY, check_fits_training
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress, silent
from moe_core.runs.checkpoint import checkpoint_steps
from moe_core.runs.folder import RunFolder, RunStatus
from moe_core.training.device import repeatable, resolve_autocast
from moe_core.training.observe import (
    evaluate_splits,
    held_out_sets,
    log_baselines,
    log_event,
    observe_routing,
    write_sample,
)
from moe_core.training.optimizers import set_learning_rates
from moe_core.training.origin import origin_of, tokenizer_of
from moe_core.training.schedule import learning_rate_multiplier
from moe_core.training.state import TrainerState, begin, check_same_run, restore, save, with_vocabulary
from moe_core.training.stopping import PreparationStopped, Stopper

# This many steps in a row without a finite loss and gradient: the run does not come back by itself.
MAX_BAD_STEPS = 3
# A run logs about this many training lines, however long it is.
LOGGED_STEPS = 1000
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


class StepLosses(NamedTuple):
    """Scalars of one training batch."""

    total: Tensor
    """What is minimised: the loss below and the auxiliary ones that model.router asks for, weighted."""
    language_model: Tensor
    """Nats per token."""
    load_balancing: Tensor
    """Mean over MoE layers; 1 = perfect balance."""
    router_z: Tensor
    """Mean over MoE layers."""
    dropped_fraction: Tensor
    """Slots without an expert: it was full, or the router wanted fewer."""


def train(
    run: RunFolder,
    config: Config,
    *,
    resume: bool = False,
    data: PreparedData | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train `run` until its steps are done or someone asks to stop; then it is saved and can be resumed to the bit.

    `data`: what prepare_data(config) gives, at hand from a run with the same configuration of data and vocabulary.
    Asked to stop by: SIGINT, SIGTERM, run.request_stop() from anywhere, or `stop()` returning True. Raises UsageError
    for a name that is taken or a step that does not fit into memory, RunBusyError when another process trains it,
    DataError for the text, RunError for a run that cannot continue, a full disk, or a loss that stays NaN; the reason
    is also in the run's status.
    """
    stopper = Stopper(run, stop)
    if resume and not run.exists():
        run.config()  # raises "no run ..."
    device = resolve_device(config.training.device, "training.device")
    # Before a file is written or the text is read, which decides how large the vocabulary will be.
    _check_memory(with_vocabulary(config, SMALLEST_VOCABULARY), device)
    with run.lock(), stopper.catching_signals(), repeatable(config.training.threads, device):
        # A run that died before its first checkpoint has nothing to continue: it starts anew.
        resuming = resume and bool(checkpoint_steps(run))
        before = run.status() or RunStatus("stopped") if resuming else None
        if resuming:
            check_same_run(run, config)
        else:
            run.create(config)
        run.clear_stop()
        try:
            return _train(run, config, device, before, data, progress or silent, stopper)
        except PreparationStopped:
            status = replace(before or _preparing(config, None), state="stopped", message="stopped while preparing")
            run.write_status(status)
            return TrainingResult(
                "stopped", status.step, status.steps, None, None, status.elapsed_seconds, stopper.signal
            )
        except Exception as error:
            _record_failure(run, error, before)
            raise
        finally:
            run.clear_stop()


def _train(
    run: RunFolder,
    config: Config,
    device: torch.device,
    before: RunStatus | None,
    prepared: PreparedData | None,
    progress: Progress,
    stopper: Stopper,
) -> TrainingResult:
    """`before`: the status of the run to continue; None = a new one."""
    # Prepare: text to tokens, then the model as new or as it was left.
    run.write_status(_preparing(config, before))
    origin = None if before else origin_of(run, config, device)
    tokenizer = tokenizer_of(run, config, origin)
    data = prepared or prepare_data(config, progress=stopper.interrupting(progress), tokenizer=tokenizer)
    config = with_vocabulary(config, data.tokenizer.vocab_size)
    _check_memory(config, device)
    model, optimizers, state = restore(run, config, data, device) if before else begin(config, data, device, origin)
    run.write_config(config)
    training = config.training
    held_out, probe = held_out_sets(data, training)
    vocabulary = data.tokenizer.vocabulary()
    if not before:
        run.write_held_out(data.validation, data.unseen, data.token_counts, data.domains)
        log_baselines(run, data, held_out)
        if origin is not None:
            log_event(run, 0, f"starts from the weights and the tokenizer of run {origin.run.name}, step {origin.step}")
    log_interval = max(1, training.steps // LOGGED_STEPS)
    status_at = 0.0
    run.write_status(state.status("running", config))
    model.train()

    while True:
        # Evaluate: loss on both held-out splits, routing of the probe set, a sample.
        is_last = state.step >= state.steps
        is_due = is_last or state.step % training.evaluation_interval == 0
        if is_due and state.evaluated_step != state.step:
            began = time.perf_counter()
            evaluate_splits(
                run, model, held_out, state, seq_len=training.seq_len, progress=progress if is_last else None
            )
            observe_routing(
                run,
                model,
                probe,
                state,
                seq_len=training.seq_len,
                vocabulary=vocabulary,
                fine_tuning=bool(training.init_from),
            )
            write_sample(run, model, data, config, state)
            state.evaluated_step = state.step
            state.clock.add_evaluation(time.perf_counter() - began)
            _fit_time_budget(run, state, config)

        # Checkpoint: with every evaluation, and when asked to stop.
        stopping = stopper.requested()
        if (is_due or stopping) and state.saved_step != state.step:
            began = time.perf_counter()
            save(run, config, data, model, optimizers, state)
            state.clock.evaluation_seconds += time.perf_counter() - began
        if is_last or stopping:
            break

        # Step: the data position is the step, so a resumed run sees what it would have seen.
        began = time.perf_counter()
        batch = training_batch(
            data.train, state.step, batch_size=training.batch_size, seq_len=training.seq_len, seed=training.seed
        )
        losses, router_outputs = accumulate_gradient(model, batch, config, device, autocast=state.autocast)
        multiplier = learning_rate_multiplier(
            state.step,
            state.steps,
            warmup_fraction=training.warmup_fraction,
            final_lr_fraction=training.final_lr_fraction,
        )
        set_learning_rates(optimizers, multiplier)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip))
        state.step += 1
        if math.isfinite(float(losses.total)) and math.isfinite(norm):
            state.bad_steps = 0
            for optimizer in optimizers:
                optimizer.step()
            model.after_step(router_outputs)
        else:
            _skip_step(run, state, float(losses.total), norm)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        state.clock.add_step(time.perf_counter() - began)
        _fit_time_budget(run, state, config, tolerance=state.clock.tolerance)

        # Log: a line now and then, the status every second.
        status = state.status("running", config)
        if state.step % log_interval == 0 and state.bad_steps == 0:
            run.append_metrics(
                {
                    "kind": "train",
                    "step": state.step,
                    "loss": float(losses.language_model),
                    "load_balancing_loss": float(losses.load_balancing),
                    "router_z_loss": float(losses.router_z),
                    "gradient_norm": norm,
                    "learning_rate": training.learning_rate * multiplier,
                    "tokens_per_second": status.tokens_per_second,
                    "tokens": status.tokens,
                    "elapsed_seconds": status.elapsed_seconds,
                    "dropped_fraction": float(losses.dropped_fraction),
                }
            )
        if time.monotonic() - status_at >= STATUS_SECONDS:
            status_at = time.monotonic()
            run.write_status(status)
        progress("training", state.step, state.steps)

    ended: Literal["finished", "stopped"] = "finished" if is_last else "stopped"
    run.write_status(state.status(ended, config))
    return TrainingResult(
        state=ended,
        step=state.step,
        steps=state.steps,
        validation_nats=state.nats.get("validation"),
        unseen_nats=state.nats.get("unseen"),
        seconds=state.clock.elapsed,
        signal=stopper.signal if ended == "stopped" else None,
    )


def accumulate_gradient(
    model: MoETransformer, batch: TokenBatch, config: Config, device: torch.device, *, autocast: bool
) -> tuple[StepLosses, tuple[RouterOutput, ...]]:
    """Add the gradient of one step to the parameters', in training.gradient_accumulation equal parts of its batch.

    Returns the losses, means over the parts, and what the routers chose for the tokens of all parts, both detached.
    Parts are as good as the whole but for what a router does with a whole batch: the load-balancing loss asks for
    balance within each part (E * sum f_e * P_e of a part), unless model.router.balancing = global_batch, and an
    expert's capacity is that of a part.
    """
    parts = config.training.gradient_accumulation
    load = StepLoad()
    losses: list[StepLosses] = []
    routed: list[tuple[RouterOutput, ...]] = []
    for part in batch.split(parts):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            part_losses, router_outputs = batch_losses(model, part, config.model.router, device, load)
        (part_losses.total / parts).backward()  # type: ignore[no-untyped-call]
        losses.append(StepLosses(*(loss.detach() for loss in part_losses)))
        routed.append(tuple(RouterOutput(*(tensor.detach() for tensor in output)) for output in router_outputs))
    if parts == 1:
        return losses[0], routed[0]
    return (
        StepLosses(*(torch.stack(values).mean() for values in zip(*losses, strict=True))),
        tuple(RouterOutput(*map(torch.cat, zip(*layer, strict=True))) for layer in zip(*routed, strict=True)),
    )


def batch_losses(
    model: MoETransformer,
    batch: TokenBatch,
    router: RouterConfig,
    device: torch.device,
    load: StepLoad | None = None,
) -> tuple[StepLosses, tuple[RouterOutput, ...]]:
    """Forward pass of one training batch: what is minimised, and what the routers chose. `load`: see routing_losses."""
    logits_BSV, router_outputs = model(torch.from_numpy(batch.token_ids).to(device))
    targets_BS = torch.from_numpy(batch.targets).to(device)
    nats = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1).float(), targets_BS.flatten(), ignore_index=-1)
    if not router_outputs:  # a dense model has nothing to balance
        nothing = nats.new_zeros(())
        return StepLosses(nats, nats, nothing, nothing, nothing), ()
    routing = routing_losses(router_outputs, router, load)
    dropped = torch.stack([(routed.router_indices < 0).float().mean() for routed in router_outputs]).mean()
    losses = StepLosses(nats + routing.total, nats, routing.load_balancing, routing.router_z, dropped)
    return losses, router_outputs


def _check_memory(config: Config, device: torch.device) -> None:
    check_fits_training(config, device.type, autocast=resolve_autocast(config, device))


def _skip_step(run: RunFolder, state: TrainerState, loss: float, norm: float) -> None:
    """Leave the weights as they are; give up after MAX_BAD_STEPS in a row."""
    state.bad_steps += 1
    log_event(run, state.step, f"step {state.step} skipped: loss {loss:.4g}, gradient norm {norm:.4g}")
    if state.bad_steps >= MAX_BAD_STEPS:
        raise RunError(
            f"training stopped at step {state.step}: loss {loss:.4g} and gradient norm {norm:.4g} were not finite "
            f"{MAX_BAD_STEPS} times in a row; the checkpoint of step {state.saved_step} is intact: start a new run "
            "with a lower training.learning_rate or training.muon_learning_rate"
        )


def _fit_time_budget(run: RunFolder, state: TrainerState, config: Config, *, tolerance: float = 1.0) -> None:
    """Lower the steps, and with them the schedule, where they would take longer than training.time_budget_seconds."""
    steps = state.clock.fit(state.step, state.steps, config.training, tolerance=tolerance)
    if steps < state.steps:
        budget = config.training.time_budget_seconds
        log_event(
            run, state.step, f"steps lowered from {state.steps} to {steps} to fit the time budget of {budget:g} s"
        )
        state.steps = steps


def _preparing(config: Config, before: RunStatus | None) -> RunStatus:
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
