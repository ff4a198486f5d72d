"""What a watched training writes into its run folder: the load of every layer, a line of training, the status."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moe_core.errors import UsageError
from moe_core.routing import RoutingTrace
from moe_core.routing.instruments.expert_counter import Tally
from moe_core.runs.folder import RunFolder
from moe_core.runs.metric_log import TrainLine
from moe_core.runs.status import RunStatus, State
from moe_core.runs.watched import WatchedModel
from moe_core.training.probe import DomainExpert, domain_experts, ownership_events
from moe_core.training.trackers import tracked_figures

STATUS_SECONDS = 3.0
"""Between two writings of the status: the disk takes some ms to confirm each."""


@dataclass(frozen=True)
class Window:
    """Some steps in a row, as they were read together."""

    step: int
    """The last of them."""
    steps: int
    """How many."""
    seconds: float
    tally: Tally
    scalars: Mapping[str, float] = field(default_factory=dict)
    """What the loop recorded itself, means over the steps: loss, learning_rate ..."""


class WatchLog:
    """The run folder of one watched training, held until `let_go`. Methods raise RunError when the disk refuses."""

    def __init__(self, run: RunFolder, model: WatchedModel, *, resume: bool, step: int | None, steps: int) -> None:
        """A new run, or one to go on with from `step` (None: from its last). Raises UsageError, RunBusyError."""
        self.run = run
        self.model = model
        self._stack = ExitStack()
        self._owned: list[DomainExpert] = []
        self._has_probe = False
        with ExitStack() as stack:
            known = run.watched() if resume and run.exists() else None
            if resume and run.exists():
                _check_same_model(run, known, model)
            stack.enter_context(run.lock())
            now = time.time()
            self.status = RunStatus("running", steps=steps, started_at=now, updated_at=now, pid=os.getpid())
            if known is None:
                run.create_watched(model)
                self.status = replace(self.status, step=step or 0)
            else:
                self._go_on(step)
            run.write_status(self.status)
            self._stack = stack.pop_all()
        self._written_at = time.monotonic()

    def window(self, window: Window) -> dict[str, float]:
        """Write what was counted: a "load" line for each layer, and a "train" line. Returns it as trackers get it."""
        tally, before = window.tally, self.status
        tokens = tally.slots() // self.model.top_k
        status = replace(
            before,
            step=window.step,
            tokens=before.tokens + int(tokens.max(initial=0)),
            elapsed_seconds=before.elapsed_seconds + window.seconds,
            tokens_per_second=float(tokens.max(initial=0)) / window.seconds if window.seconds > 0 else None,
            seconds_left=_seconds_left(before.steps, window),
            updated_at=time.time(),
        )
        loads = self._load_lines(window)
        self.run.append_metrics(*loads, train_line(window, status))
        self.status = status
        if time.monotonic() - self._written_at >= STATUS_SECONDS:
            self.write_status()
        return tracked_figures(loads, window.scalars)

    def write_status(self) -> None:
        """Tell the world how far the training is."""
        self._written_at = time.monotonic()
        self.run.write_status(self.status)

    def probe(self, trace: RoutingTrace) -> None:
        """Keep the routing of the probe text, and say which experts a domain has come to own since the last time."""
        self.run.write_probe(self.status.step, trace)
        found = domain_experts(trace, self._owned) if len(trace.domains) > 1 else []
        self._owned += [owner for owner, _ in found]
        if self._has_probe:  # what it prefers at first is not news
            for message in ownership_events(found):
                self.event(message)
        self._has_probe = True

    def event(self, message: str) -> None:
        """One sentence about something that happened."""
        self.run.append_metrics({"kind": "event", "step": self.status.step, "message": message})

    def end(self, state: State, message: str = "") -> None:
        """The last status."""
        steps = self.status.step if state == "finished" else self.status.steps
        self.status = replace(
            self.status, state=state, steps=steps, seconds_left=None, updated_at=time.time(), message=message
        )
        self.run.write_status(self.status)

    def let_go(self) -> None:
        """Nothing more is written; another may watch under this name."""
        self._stack.close()

    def _load_lines(self, window: Window) -> list[dict[str, Any]]:
        tally = window.tally
        totals = tally.tokens_per_expert.sum(axis=1)
        slots = tally.slots()
        lines = []
        for row, layer in enumerate(self.model.layers):
            if not slots[row]:
                continue  # silent: nothing is known
            counts, (entropy, measured) = tally.tokens_per_expert[row], tally.entropy[row]
            lines.append(
                {
                    "kind": "load",
                    "step": window.step,
                    "layer": layer,
                    "tokens_per_expert": counts.tolist(),
                    "tokens": int(slots[row]) // self.model.top_k,
                    "load_imbalance": float(counts.max() / counts.mean()) if totals[row] else None,
                    "dead_experts": int((counts == 0).sum()),
                    "router_entropy": float(entropy / measured) if measured else None,
                    "dropped_fraction": None if self.model.varying_experts else 1 - float(totals[row] / slots[row]),
                }
            )
        return lines

    def _go_on(self, step: int | None) -> None:
        """The status where the run was left, or at an earlier step: what was written after it is dropped."""
        before = self.run.status() or self.status
        step = before.step if step is None else step
        self.run.rewind_metrics(step)
        lines = [line for line in self.run.metric_log().lines if isinstance(line, TrainLine)]
        self.status = replace(
            self.status,
            step=step,
            tokens=(lines[-1].tokens or 0) if lines else 0,
            elapsed_seconds=(lines[-1].elapsed_seconds or 0.0) if lines else 0.0,
            started_at=before.started_at,
        )


def train_line(window: Window, status: RunStatus) -> dict[str, Any]:
    """The "train" line of some steps."""
    slots = int(window.tally.slots().sum())
    line = {
        "kind": "train",
        "step": status.step,
        "tokens_per_second": status.tokens_per_second,
        "tokens": status.tokens,
        "elapsed_seconds": status.elapsed_seconds,
        "dropped_fraction": float(window.tally.unused.sum() / slots) if slots else None,
    }
    return line | dict(window.scalars)


def _seconds_left(steps: int, window: Window) -> float | None:
    if steps <= window.step or not window.steps:
        return None
    return (steps - window.step) * window.seconds / window.steps


def _check_same_model(run: RunFolder, known: WatchedModel | None, model: WatchedModel) -> None:
    """Raise UsageError unless the run was watched, and its model has the same layers and experts."""
    if known is None:
        raise UsageError(f"run {run.name!r} was trained with Moescope, not watched; choose another run=...")
    for name in ("layers", "num_experts", "top_k"):
        was, now = getattr(known, name), getattr(model, name)
        if not np.array_equal(was, now):
            raise UsageError(
                f"run {run.name!r} was watched with {name} = {was} and cannot go on with {now}; choose another run=..."
            )
