"""The trainer of one run: what it holds while it trains, and the three things it does: step, evaluate, save."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from moe_core.config import Config
from moe_core.data.prepare import PreparedData
from moe_core.errors import RunError
from moe_core.model.routers import RouterOutput
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress
from moe_core.runs.checkpoint import LoadedRun, load_run, load_trainer_state, save_checkpoint
from moe_core.runs.folder import RunFolder
from moe_core.runs.sharded import newest_sharded, remove_sharded
from moe_core.training.batches import Batches
from moe_core.training.clipping import Clipping
from moe_core.training.compiling import BlockCompiler, can_compile, uncompiled
from moe_core.training.contrast import ContrastiveTerm
from moe_core.training.gradient import StepLosses, accumulate_gradient
from moe_core.training.loss_scaling import LEAST_SCALE, LossScaling
from moe_core.training.micro_batch import first_parts, in_parts_that_fit
from moe_core.training.observe import evaluate_splits, held_out_sets, log_event, observe_routing
from moe_core.training.optimizers import (
    build_optimizers,
    optimizer_tensors,
    restore_optimizers,
    set_learning_rates,
    step_optimizers,
)
from moe_core.training.parallel.mesh import Mesh
from moe_core.training.parallel.spread_over import spread_over
from moe_core.training.phases import phase
from moe_core.training.pruning_schedule import remove_experts
from moe_core.training.random_numbers import random_state, restore_random_state
from moe_core.training.ranks import Ranks
from moe_core.training.repeatability import resolve_autocast
from moe_core.training.schedule import learning_rate_multiplier
from moe_core.training.step_report import StepFigures, StepReport, is_not_finite
from moe_core.training.trainer_state import TrainerState, has_more_time
from moe_core.training.written_texts import write_texts

if TYPE_CHECKING:
    from moe_core.training.parallel.wrap import SpreadModel

# This many steps in a row without a finite loss and gradient: the run does not come back by itself.
MAX_BAD_STEPS = 3
# A run logs about this many training lines, however long it is.
LOGGED_STEPS = 1000
# Steps that an accelerator may be ahead of what the host has read of them: reading waits until the device is done.
READ_EVERY = 50


class Trainer:
    """Model, optimizers and state of one run. Whoever calls decides when it steps, evaluates and saves.

    `begin` makes one at step 0, `restore` one of the newest checkpoint. What follows from the same calls is the same to
    the bit: the data position is the step, and a checkpoint holds the state of every random number generator.

    The host does not wait for an accelerator within a step. It reads what came of the last steps (losses, norms, and
    whether they were steps at all) when it evaluates, saves or is asked to, and after `reads_every` of them.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        data: PreparedData,
        model: MoETransformer,
        optimizers: list[Optimizer],
        state: TrainerState,
        spread: SpreadModel | None = None,
    ) -> None:
        self.run = run
        self.config = config
        self.data = data
        self.model = model.train()
        self.model.recomputes_blocks = config.training.activation_checkpointing
        self.optimizers = optimizers
        self.state = state
        self.ranks = Ranks()
        self._spread = spread
        """The model among other processes; None = this one holds all of it and sees all rows."""
        self._saves = None if spread is None else spread.saves(run, config.parallel.save_interval)
        self.state.parts = state.parts or config.training.gradient_accumulation
        self.device = next(model.parameters()).device
        self.reads_every = READ_EVERY if self.device.type == "cuda" else 1
        """Steps after which their losses are read at the latest; 1 = after each, where that costs no waiting."""
        self._unread: list[StepReport] = []
        self._log_interval = max(1, config.training.steps // LOGGED_STEPS)
        self._compiler = BlockCompiler(
            model,
            allowed=spread is None and can_compile(config, self.device, autocast=state.autocast),
            log=lambda message: log_event(run, state.step, message),
        )
        self._batches = Batches(data.train, config.training, self.device)
        self._contrast = ContrastiveTerm(config, data, self.device) if config.training.contrastive.coef else None
        self._clipping = Clipping(config.training, self.device)
        self._scaling = LossScaling(self.device, optimizers, enabled=config.training.autocast == "float16")
        self.held_out, self._probe = held_out_sets(data, config.training)
        self._vocabulary = data.tokenizer.vocabulary()

    @classmethod
    def begin(
        cls,
        run: RunFolder,
        config: Config,
        data: PreparedData,
        device: torch.device,
        origin: LoadedRun | None = None,
        mesh: Mesh | None = None,
    ) -> Trainer:
        """A trainer at step 0, its weights seeded, or those of `origin`; one of those of a `mesh`."""
        torch.manual_seed(config.training.seed)
        model = MoETransformer(config.model).to(device)
        model.prepare_routers(torch.from_numpy(data.token_counts), data.tokenizer.end_of_text)
        if origin is not None:
            model.load_state_dict(origin.model.state_dict())
        spread = spread_over(mesh, model, config)
        autocast = resolve_autocast(config, device)
        state = TrainerState(
            steps=config.training.steps,
            asked_steps=config.training.steps,
            fingerprint=data.fingerprint,
            autocast=autocast,
            parts=first_parts(config, device, autocast=autocast),
            started_at=time.time(),
        )
        return cls(run, config, data, model, build_optimizers(model, config.training), state, spread)

    @classmethod
    def restore(
        cls, run: RunFolder, config: Config, data: PreparedData, device: torch.device, mesh: Mesh | None = None
    ) -> Trainer:
        """The trainer of the newest checkpoint; random number generators are set and metrics rewound to it.

        Raises RunError when the checkpoint is damaged or the data is not what the run was started with.
        """
        loaded = load_run(run.name, run.root, device=device)
        tensors, meta = load_trainer_state(run, loaded.step)
        state = TrainerState.from_meta(meta)
        if state.fingerprint != data.fingerprint:
            raise RunError(
                f"the data of run {run.name!r} has changed since it was started ({config.data.path or 'synthetic'}); "
                "put the old data back, or start a new --run NAME"
            )
        model = loaded.model.requires_grad_(True)
        spread = spread_over(mesh, model, config)
        optimizers = build_optimizers(model, config.training)
        restore_optimizers(model, optimizers, tensors)
        if (folder := newest_sharded(run, loaded.step)) is not None:
            from moe_core.training.parallel.sharded_checkpoint import load_sharded

            tensors, meta = load_sharded(folder, model, optimizers)
            state = TrainerState.from_meta(meta)
        restore_random_state(tensors, device, 0 if mesh is None else mesh.row)
        if config.training.steps != state.asked_steps or has_more_time(config.training, run.config().training):
            state.steps = max(state.step, config.training.steps)
            state.asked_steps = config.training.steps
        state.saved_step = loaded.step
        run.rewind_metrics(state.step)
        trainer = cls(run, config, data, model, optimizers, state, spread)
        trainer._clipping.restore(tensors)
        trainer._scaling.restore(tensors)
        return trainer

    def step(self) -> StepReport:
        """One update of the weights, skipped where loss or gradient are not finite; read_steps, where it is due."""
        state, training = self.state, self.config.training
        text = self.held_out["validation"]
        if said := remove_experts(self.model, self.data.tokenizer, text, self.config, state.step):
            log_event(self.run, state.step + 1, said)  # a resume behind `step` takes them away, and says so, again
        compiling = self._compiler.is_due(state.clock, state.steps - state.step, self.read_steps)
        began = time.perf_counter()
        losses, router_outputs = self._compiler.first_step(self._gradient) if compiling else self._gradient()
        multiplier = learning_rate_multiplier(
            state.step,
            state.steps,
            warmup_fraction=training.warmup_fraction,
            final_lr_fraction=training.final_lr_fraction,
        )
        set_learning_rates(self.optimizers, multiplier)
        with phase("optimizer"):
            scale = self._scaling.scale
            self._scaling.unscale()
            norm = self._clip(losses.total)
            self._update(is_not_finite(losses.total, norm), router_outputs)
            self._scaling.update()
        state.step += 1
        if self.reads_every > 1:
            self._batches.prepare(state.step)
        state.clock.add_step(time.perf_counter() - began, compiling=compiling)
        self._fit_time_budget(tolerance=state.clock.tolerance)
        rate = training.learning_rate * multiplier
        report = StepReport(losses, norm, scale, rate, state.status("running", self.config))
        self._unread.append(report)
        if len(self._unread) >= self.reads_every:
            self.read_steps()
        return report

    def _gradient(self) -> tuple[StepLosses, tuple[RouterOutput, ...]]:
        # The data position is the step, so a resumed run sees what it would have seen.
        batch = self._batches.of(self.state.step)
        losses, router_outputs = in_parts_that_fit(
            lambda parts: accumulate_gradient(
                self.model,
                batch,
                self.config,
                autocast=self.state.autocast,
                parts=parts,
                scaling=self._scaling,
                spread=self._spread,
            ),
            self.model,
            parts=self.state.parts,
            batch_size=self.config.training.batch_size // self.config.parallel.batch_ranks,
            smaller=self._go_on_with,
            alone=self._spread is None,
        )
        if self._contrast is not None:
            contrastive = self._contrast.add_gradient(
                self.model, self.state.step, autocast=self.state.autocast, scaling=self._scaling
            )
            losses = losses._replace(contrastive=contrastive)
        return losses, router_outputs

    def _go_on_with(self, parts: int) -> None:
        """Memory ended in this step, which is done again in so many parts, and so are those to come."""
        before, now = (self.config.training.batch_size // n for n in (self.state.parts, parts))
        message = f"step {self.state.step + 1}: out of memory with {before} sequences at a time; going on with {now}"
        log_event(self.run, self.state.step, message)
        self.state.parts = parts

    def _update(self, skipped: Tensor, router_outputs: tuple[RouterOutput, ...]) -> None:
        """Move weights, optimizer state and routers, unless `skipped`; the gradients are gone afterwards."""
        unread = skipped if self.reads_every > 1 else None  # None = it is known to be False
        if unread is not None or not skipped:
            step_optimizers(self.optimizers, unread)
            with phase("routers"):
                self.model.after_step(router_outputs, unread)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def read_steps(self) -> None:
        """Log the steps since the last reading, and the skipped ones among them; their seconds count as the steps'.

        Raises RunError after MAX_BAD_STEPS skipped steps in a row.
        """
        if not self._unread:
            return
        began = time.perf_counter()
        reports, self._unread = self._unread, []
        rows = torch.stack([report.figures() for report in reports]).tolist()
        self.state.clock.step_seconds += time.perf_counter() - began
        for report, row in zip(reports, rows, strict=True):
            figures = StepFigures(*row)
            if not figures.are_finite:
                self._count_bad_step(report.status.step, figures)
                continue
            self.state.bad_steps = 0
            if report.status.step % self._log_interval == 0:
                self.run.append_metrics(report.record(figures, contrastive=self._contrast is not None))

    @uncompiled()
    def evaluate(self, progress: Progress | None = None) -> None:
        """Log the loss of both held-out splits, the routing of the probe set, and a text that the model writes."""
        self.read_steps()
        began = time.perf_counter()
        state, seq_len = self.state, self.config.training.seq_len
        model = self._whole_model()
        if model is not None:
            evaluate_splits(self.run, model, self.held_out, state, seq_len=seq_len, progress=progress)
            observe_routing(
                self.run,
                model,
                self._probe,
                state,
                seq_len=seq_len,
                vocabulary=self._vocabulary,
                fine_tuning=bool(self.config.training.init_from),
            )
            write_texts(self.run, model, self.data, self.config, state)
        if self._spread is not None:
            state.nats = {split: self.ranks.of_first(state.nats.get(split, 0.0)) for split in self.held_out}
        state.evaluated_step = state.step
        state.best.add(state.step, state.nats["validation"])
        state.clock.add_evaluation(time.perf_counter() - began)
        self._fit_time_budget()

    def save(self) -> None:
        """Write a checkpoint of this moment; its seconds count as the evaluation's."""
        self.read_steps()
        began = time.perf_counter()
        model = self._whole_model()
        tensors = self._tensors() if self._spread is None else self._spread.gathered(self._tensors())
        if model is not None:
            save_checkpoint(
                self.run,
                step=self.state.step,
                model=model,
                tokenizer=self.data.tokenizer,
                config=self.config,
                trainer_state=tensors,
                trainer_meta=self.state.to_meta(),
                keep_step=self.state.best.step if self.config.training.keep_best else None,
            )
        if self._saves is not None:
            self._saves.finish()
        if model is not None:
            remove_sharded(self.run)
        self.state.saved_step = self.state.step
        self.state.clock.evaluation_seconds += time.perf_counter() - began

    def save_parts(self) -> None:
        """Every process begins to write its part of a checkpoint, where parallel.save_interval asks for one now."""
        if self._saves is not None and self._saves.is_due(self.state.step):
            self.read_steps()
            weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
            self._saves.begin(self.state.step, {**weights, **self._tensors()}, self.state.to_meta())

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the weights, as this process has it."""
        random = random_state(self.device) if self._spread is None else self._spread.random_states(self.device)
        optimizer_state = optimizer_tensors(self.model, self.optimizers)
        return {**optimizer_state, **self._clipping.tensors(), **self._scaling.tensors(), **random}

    def _clip(self, loss: Tensor) -> Tensor:
        """Clip the gradients; returns their global norm before."""
        if self._spread is None:
            return self._clipping.clip(self.model.parameters(), loss)
        return self._clipping.clip(self._spread.local_parameters(), loss, self._spread.gradient_norm())

    def _whole_model(self) -> MoETransformer | None:
        """The model with all its weights; None in the processes that do not write."""
        return self.model if self._spread is None else self._spread.whole()

    def _count_bad_step(self, step: int, figures: StepFigures) -> None:
        """Say that the step was skipped; give up after MAX_BAD_STEPS in a row."""
        state, loss, norm = self.state, figures.total, figures.gradient_norm
        if math.isfinite(loss) and figures.loss_scale > LEAST_SCALE:
            scales = f"the loss scale falls from {figures.loss_scale:g} to {figures.loss_scale / 2:g}"
            log_event(self.run, step, f"step {step} skipped: its gradient overflowed float16; {scales}")
            return
        state.bad_steps += 1
        log_event(self.run, step, f"step {step} skipped: loss {loss:.4g}, gradient norm {norm:.4g}")
        if state.bad_steps >= MAX_BAD_STEPS:
            raise RunError(
                f"training stopped at step {step}: loss {loss:.4g} and gradient norm {norm:.4g} were not finite "
                f"{MAX_BAD_STEPS} times in a row; the checkpoint of step {state.saved_step} is intact: start a new run "
                "with a lower training.learning_rate or training.muon_learning_rate"
            )

    def _fit_time_budget(self, *, tolerance: float = 1.0) -> None:
        """Lower the steps, and the schedule with them, where they would exceed training.time_budget_seconds."""
        state, training = self.state, self.config.training
        steps = state.clock.fit(state.step, state.steps, training, tolerance=tolerance)
        if training.time_budget_seconds is not None:
            steps = int(self.ranks.of_first(steps))
        if steps < state.steps:
            message = (
                f"steps lowered from {state.steps} to {steps} to fit the time budget of "
                f"{training.time_budget_seconds:g} s"
            )
            log_event(self.run, state.step, message)
            state.steps = steps
