"""A profile of some steps: where their time goes, and a timeline that Perfetto and Chrome open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.profiler import ProfilerActivity, profile

from moe_core.runs.files import translate_os_errors
from moe_core.training.phases import PREFIX, phase
from moe_core.training.trainer import Trainer

WARM_UP = 2
"""Steps of a session that are not like those to come: memory is taken, kernels are chosen."""
OPERATIONS = 10


@dataclass(frozen=True)
class Profiled:
    """Milliseconds of the host; on a GPU, which works beside it, the timeline tells the device's."""

    steps: int
    step: float
    """Of one step."""
    phases: dict[str, float]
    """Of one step in each phase but "step". "routers" is within others: their part of the forward pass, of what is
    computed again in a backward pass, and of the optimizer's, where biases and thresholds move."""
    operations: list[tuple[str, float, float]]
    """The operations that took longest by themselves: name, calls a step, milliseconds a step."""

    @property
    def waiting_share(self) -> float:
        """Share of the time of a step in which it waits for its batch."""
        return self.phases["data"] / self.step


class StepProfile:
    """Takes the steps of a training, as Trainer.step does, and profiles some of them: give it to loop.train."""

    def __init__(self, steps: int, step: Callable[[Trainer], object] = Trainer.step) -> None:
        self._steps, self._step = steps, step
        self._seen = 0
        self._profiler: profile | None = None
        self._ranges = ExitStack()
        self.found: Profiled | None = None
        """None before the profiled steps are done."""

    def __call__(self, trainer: Trainer) -> None:
        """One step."""
        self._seen += 1
        if self._seen <= WARM_UP or self.found is not None:
            self._step(trainer)
            return
        if self._profiler is None:
            self._profiler = self._start(trainer)
        with phase("step"):
            self._step(trainer)
        if self._seen == WARM_UP + self._steps:
            self.finish()

    def finish(self) -> None:
        """End the profile, also where the run had fewer steps; nothing happens if there was none."""
        if self._profiler is None or self.found is not None:
            return
        self._profiler.stop()
        self._ranges.close()
        self.found = _profiled(self._profiler)

    def export(self, path: Path) -> None:
        """Write the timeline as a Chrome trace. Raises RunError when the disk refuses."""
        assert self._profiler is not None
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()  # the library that writes it does not say why it cannot
            self._profiler.export_chrome_trace(str(path))

    def _start(self, trainer: Trainer) -> profile:
        for router in trainer.model.routers:
            self._ranges.enter_context(_range_around(router))
        on_gpu = [ProfilerActivity.CUDA] if trainer.device.type == "cuda" else []
        profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        profiler.start()
        return profiler


def _range_around(router: nn.Module) -> ExitStack:
    """Every call of the router is the phase "routers", until the stack is closed."""
    calls = ExitStack()
    hooks = ExitStack()
    before = router.register_forward_pre_hook(lambda *_: void(calls.enter_context(phase("routers"))))
    after = router.register_forward_hook(lambda *_: calls.close(), always_call=True)
    hooks.callback(before.remove)
    hooks.callback(after.remove)
    return hooks


def void(_: object) -> None:
    """A hook that returns something replaces what it was given."""


def _profiled(profiler: profile) -> Profiled:
    averages = profiler.key_averages()
    ours = {one.key.removeprefix(PREFIX): one for one in averages if one.key.startswith(PREFIX)}
    steps = ours["step"].count
    others = (one for one in averages if not one.key.startswith(PREFIX))
    longest = sorted(others, key=lambda one: -one.self_cpu_time_total)[:OPERATIONS]
    return Profiled(
        steps=steps,
        step=ours["step"].cpu_time_total / steps / 1e3,
        phases={
            name: ours[name].cpu_time_total / steps / 1e3 if name in ours else 0.0
            for name in ("data", "forward", "routers", "backward", "optimizer")
        },
        operations=[(str(one.key), one.count / steps, one.self_cpu_time_total / steps / 1e3) for one in longest],
    )
