"""Watch the experts of a model that someone else's loop trains, into a run folder that the dashboard shows live.

    with watch(model, run="mine"):
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

Nothing is to be called. A step ends when a torch optimizer that holds parameters of the model has stepped, so micro-
batches of one step count as one, and neither a forgotten call nor one too many can make the steps wrong.

What is counted, and how without waiting for the device: routing/instruments/expert_counter.py. It is read every so many
steps, more seldom where that would take over READ_SHARE of the time. In torch.distributed each process counts, the
counts are added up when they are read, and rank 0 writes. An error while watching is told once and ends the watching,
never the training; only a wrong argument at the start raises.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from moe_core.errors import MoescopeError, TraceError, UsageError
from moe_core.routing.instruments.contract import never_compiled
from moe_core.routing.instruments.expert_counter import ExpertCounter, Tally
from moe_core.runs.folder import RunFolder
from moe_core.runs.status import State
from moe_core.runs.watched import WatchedModel
from moe_core.training.ranks import Ranks
from moe_core.training.trackers import Tracker
from moe_core.training.watch_log import WatchLog, Window
from moe_core.training.watch_probe import Probe, ProbeText

EVERY, PROBE_EVERY = 10, 200
READ_SHARE = 0.004
"""Of the time that the steps take: reading and writing takes no more."""
FINE_WINDOWS = 500
"""So many readings are kept as fine as they come, as many again at half of that, and so on; fewer of large models."""
FINE_NUMBERS = 250_000
"""So many counts of experts at most, for the same end."""

_log = logging.getLogger(__name__)


class Watch:
    """A training that is watched, from when this is made until `close` or the end of its `with` block.

    `watch` is another name of this class, as it reads better: `with watch(model, run="mine") as log:`.
    """

    def __init__(
        self,
        model: nn.Module,
        run: str,
        *,
        every: int = EVERY,
        steps: int = 0,
        resume: bool = False,
        step: int | None = None,
        by_hand: bool = False,
        probe: Probe | None = None,
        probe_every: int = PROBE_EVERY,
        tokenizer: Any = None,
        log_to: Sequence[Tracker] = (),
        root: str | Path | None = None,
        group: Any = None,
    ) -> None:
        """Begin to watch what the routers of `model` choose while it is trained.

        `run`: name of the run folder, under `root` or where runs are. `every`: steps between two readings. `steps`: how
        many there will be, for the time left; 0 = unknown. `resume`: go on with the run of that name, if there is one,
        from its last step or from `step`; what was written after it is dropped. `by_hand`: the loop calls `step()`
        after each update, for optimizers that are not torch's. `probe`: texts by domain, {"legal": ["The tenant"]}, or
        token ids in the place of texts, which the model reads at first, in the end and about every `probe_every` steps:
        the pages then show where their tokens go; `tokenizer` reads the texts and gives the tokens theirs. `log_to`:
        what else gets the figures of each reading, see trackers.py. `group`: the torch.distributed processes whose
        tokens are added up, None = all.
        Raises UsageError for a name that is taken or an argument that will not do, TraceError for a model that cannot
        be watched, RunBusyError while another process watches under this name.
        """
        _check_kinds(model, run)
        numbers = (("every", every, 1), ("steps", steps, 0), ("step", step or 0, 0), ("probe_every", probe_every, 1))
        for name, value, least in numbers:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} = {value!r} is not allowed; expected a whole number from {least} on")
        if isinstance(model, nn.DataParallel):
            raise UsageError(
                "nn.DataParallel runs copies of the model in threads, which cannot be counted exactly; train with one "
                "process a device (torchrun), or on one device"
            )
        self._name, self._model, self._every, self._by_hand = run, model, every, by_hand
        self._ranks = Ranks(group)
        self._counter = ExpertCounter(model)
        self._probe = None if probe is None else ProbeText.of(probe, tokenizer)
        self._probe_every = probe_every
        self._trackers = list(log_to)
        self._output: WatchLog | None = None
        with ExitStack() as stack:
            with self._ranks.together():
                # Before a file is written: what cannot be read is found out here.
                first = None if self._probe is None else self._probe.read(model, f"run {run}, probe text")
                if self._ranks.is_first:
                    folder = RunFolder(run, root)
                    self._output = WatchLog(folder, self._describe(), resume=resume, step=step, steps=steps)
                    stack.callback(self._output.let_go)
                    if first is not None:
                        self._output.probe(first)
            stack.enter_context(self._counter.attached())
            if not by_hand:
                hook = never_compiled(self._after_optimizer)
                stack.callback(register_optimizer_step_post_hook(hook).remove)
            self._hooks = stack.pop_all()
        started = self._output.status.step if self._output is not None else 0
        self._first_step = self._step = self._read_at = self._probed_at = int(self._ranks.of_first(started))
        self._optimizers: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()
        """Whether each holds parameters of the model."""
        self._stepped: WeakSet[Optimizer] = WeakSet()
        """Those that stepped since the last step began."""
        self._scalars: dict[str, tuple[float | Tensor, int]] = {}
        self._windows, self._stride, self._read_seconds = 0, 1, 0.0
        self._fault: Exception | None = None
        self._is_closed = False
        self._told: set[str] = set()
        self._due = self._step + every
        self._counter.measures_entropy = every == 1
        self._window_began = time.perf_counter()

    @property
    def steps_done(self) -> int:
        """Updates of the weights, those before a resumed run included."""
        return self._step

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def record(
        self,
        *,
        loss: float | Tensor | None = None,
        learning_rate: float | Tensor | None = None,
        gradient_norm: float | Tensor | None = None,
        load_balancing_loss: float | Tensor | None = None,
        router_z_loss: float | Tensor | None = None,
    ) -> None:
        """Figures of the loop's own for the page; means over what is recorded between two readings are kept.

        A tensor of one number is not waited for. Of several ranks those of the first are kept.
        """
        given = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "load_balancing_loss": load_balancing_loss,
            "router_z_loss": router_z_loss,
        }
        if self._is_closed:
            return
        for name, value in given.items():
            if value is not None:
                total, count = self._scalars.get(name, (0.0, 0))
                value = value.detach() if isinstance(value, Tensor) else value
                self._scalars[name] = (total + value, count + 1)

    def step(self) -> None:
        """One update of the weights is done. Only for `by_hand`: otherwise the optimizer itself tells."""
        if self._by_hand:
            self._end_step()
        else:
            self._tell_once("step() changes nothing: the optimizer tells its steps itself (by_hand=True: step() does)")

    def close(self, error: BaseException | None = None) -> None:
        """Write what is left, and let go: the hooks come off. `error`: what ended the training, if anything did."""
        if self._is_closed:
            return
        try:
            if error is None and self._step > self._read_at:
                self._read()
            if error is None and self._step > self._probed_at:
                self._take_probe()
            if error is None and self._fault is None and self._step == self._first_step:
                self._tell_once(
                    "no step was seen: no torch optimizer that holds parameters of the model has stepped; where it is "
                    "another optimizer, watch with by_hand=True and call step() after each update"
                )
            if self._output is not None and self._fault is None:
                state, message = _ending(error)
                self._attempt(lambda output: output.end(state, message))
        finally:
            self._let_go()

    def _after_optimizer(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002
        """A torch optimizer has stepped, this training's or another one's."""
        if optimizer not in self._optimizers:
            own = {id(parameter) for parameter in self._model.parameters()}
            self._optimizers[optimizer] = any(id(p) in own for group in optimizer.param_groups for p in group["params"])
        if not self._optimizers[optimizer]:
            return
        # Two optimizers may share the parameters; each steps once.
        is_new = not self._stepped or optimizer in self._stepped
        if is_new:
            self._stepped.clear()
        self._stepped.add(optimizer)
        if is_new:
            self._end_step()

    def _end_step(self) -> None:
        if self._is_closed:
            return
        self._step += 1
        if self._step >= self._due:
            self._read()
        self._counter.measures_entropy = self._step + 1 >= self._due

    def _read(self) -> None:
        """Take what was counted since the last time, add it up over the ranks, write it, and plan the next time."""
        began = time.perf_counter()
        steps, seconds = self._step - self._read_at, began - self._window_began
        self._read_at = self._step
        try:
            tally = self._counter.take()
            self._fault = self._fault or self._counter.fault
        except Exception as error:
            self._fault = self._fault or error
            tally = Tally.nothing(len(self._counter.layers), self._counter.num_experts)
        # A rank that cannot go on still takes part once more, or the others would wait for it.
        mine = np.array([float(self._fault is not None), self._read_seconds, seconds])
        try:
            faults, took, passed, *counts = self._ranks.add_up(np.concatenate([mine, tally.flat()]))
        except Exception as error:
            self._stop(error)
            return
        if faults:
            self._stop(self._fault or TraceError("another process of this training could not go on counting"))
            return
        total = tally.like(np.array(counts))
        self._attempt(lambda output: self._write(output, Window(self._step, steps, seconds, total, self._means())))
        self._plan(took, passed / max(steps, 1) * self._every)
        self._read_seconds = time.perf_counter() - began
        if self._step - self._probed_at >= self._probe_every:
            self._take_probe()
        self._window_began = time.perf_counter()

    def _take_probe(self) -> None:
        """Let the model read the probe text. Every process does, as a sharded model needs all of them."""
        if self._probe is None or self._fault is not None:
            return
        self._probed_at = self._step
        try:
            trace = self._probe.read(self._model, f"run {self._name}, step {self._step}, probe text")
        except Exception as error:
            self._go_wrong(error)
        else:
            self._attempt(lambda output: output.probe(trace))

    def _write(self, output: WatchLog, window: Window) -> None:
        figures = output.window(window)
        for tracker in list(self._trackers):
            try:
                tracker(window.step, figures)
            except Exception as error:
                self._trackers.remove(tracker)
                self._tell_once(f"a tracker of log_to failed and gets nothing more: {one_line(error)}")
        both = zip(self._counter.routers, window.tally.slots(), strict=True)
        silent = [router.described for router, slots in both if not slots]
        if silent:
            message = (
                f"{silent[0]} stayed silent up to step {window.step} ({len(silent)} of {len(self._counter.routers)} "
                "did): nothing passed it in training mode with gradients, or it was compiled before; watch the model "
                "before its first compiled step, or call torch.compiler.reset() first"
            )
            if message not in self._told:
                output.event(message)
            self._tell_once(message)

    def _plan(self, took: float, seconds: float) -> None:
        """When to read next: `took` is how long reading took, `seconds` how long `every` steps take. The same in every
        process, as both are sums over them."""
        numbers = len(self._counter.layers) * self._counter.num_experts
        fine = max(64, min(FINE_WINDOWS, FINE_NUMBERS // numbers))
        self._windows += 1
        affordable = math.ceil(took / max(READ_SHARE * seconds, 1e-9))
        # One slow reading alone, such as the first, changes little.
        self._stride = min(max(2 ** (self._windows // fine), affordable), 4 * self._stride)
        self._due = self._step + self._every * self._stride

    def _means(self) -> dict[str, float]:
        means = {name: float(total) / count for name, (total, count) in self._scalars.items()}
        self._scalars.clear()
        return means

    def _attempt(self, act: Callable[[WatchLog], None]) -> None:
        """Do something with the run folder, where this process has it; what goes wrong is told at the next reading."""
        if self._output is None:
            return
        try:
            act(self._output)
        except Exception as error:
            self._go_wrong(error)

    def _go_wrong(self, error: Exception) -> None:
        """Stop; of several processes at the next reading, as the others would wait for this one."""
        if self._ranks.are_several:
            self._fault = self._fault or error
        else:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Watch no more; the training goes on."""
        self._fault = error
        self._tell_once(f"stopped at step {self._step}: {one_line(error)}; the training goes on unwatched")
        if self._output is not None:
            with suppress(Exception):
                self._output.end("failed", f"watching stopped: {one_line(error)}")
        self._let_go()

    def _let_go(self) -> None:
        self._is_closed = True
        self._hooks.close()

    def _tell_once(self, message: str) -> None:
        """In the log of the program, not as a warning: those can be set to end it."""
        if message not in self._told:
            self._told.add(message)
            _log.warning("watch of run %r: %s", self._name, message)

    def _describe(self) -> WatchedModel:
        parameters = list(self._model.parameters())
        return WatchedModel(
            model=type(self._model).__name__,
            layers=self._counter.layers,
            num_experts=self._counter.num_experts,
            top_k=self._counter.top_k,
            varying_experts=any(router.varying_experts for router in self._counter.routers),
            parameters=sum(p.numel() for p in parameters),
            trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            ranks=self._ranks.size,
            probe_tokens=0 if self._probe is None else self._probe.num_tokens,
        )


watch = Watch


def one_line(error: BaseException) -> str:
    """What went wrong, for people."""
    text = str(error) if isinstance(error, MoescopeError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def _check_kinds(model: object, run: object) -> None:
    """Callers from a notebook have no types."""
    if not isinstance(model, nn.Module) or not isinstance(run, str):
        given = run if isinstance(model, nn.Module) else model
        raise UsageError(f"watch was given a {type(given).__name__}; expected a torch module, and run=... as text")


def _ending(error: BaseException | None) -> tuple[State, str]:
    """How a training ended, for its status."""
    if error is None:
        return "finished", ""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return "stopped", f"ended by {type(error).__name__}"
    return "failed", one_line(error)
