"""--profile and --memory-profile of the training command: their options, and the tables they end with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.cli.options import Parser, whole
from moe_core.cli.output import Output, check_regular, table
from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.training.memory_now import MemoryNow
    from moe_core.training.memory_report import MemoryReport
    from moe_core.training.profiling import StepProfile
    from moe_core.training.trainer import Trainer

STEPS, INTERVAL = 10, 100


def add_profile(parser: Parser) -> None:
    """Their options."""
    parser.add_argument(
        "--profile", action="store_true", help="time some steps in detail: what waits for data, computes forward and "
        "backward, routes, updates, and the longest operations",
    )  # fmt: skip
    parser.add_argument(
        "--profile-steps", metavar="N", type=whole(1, 1000), help=f"with --profile: how many steps (default {STEPS}), "
        "after the first two",
    )  # fmt: skip
    parser.add_argument(
        "--trace-export", metavar="X.json", help="with --profile: write their timeline for Perfetto or chrome://tracing"
    )
    parser.add_argument(
        "--memory-profile", action="store_true", help="say how much memory training takes, step by step and by what "
        "it is for",
    )  # fmt: skip
    parser.add_argument(
        "--report-interval", metavar="N", type=whole(1, 10**9), help="with --memory-profile: steps between two lines "
        f"(default {INTERVAL})",
    )  # fmt: skip


def given_profile_options(arguments: argparse.Namespace) -> dict[str, bool]:
    """Which of them were given, by name. Raises UsageError for one without the one it goes with."""
    given = {
        "--profile": arguments.profile,
        "--profile-steps": arguments.profile_steps is not None,
        "--trace-export": arguments.trace_export is not None,
        "--memory-profile": arguments.memory_profile,
        "--report-interval": arguments.report_interval is not None,
    }
    for option, needs in (
        ("--profile-steps", "--profile"),
        ("--trace-export", "--profile"),
        ("--report-interval", "--memory-profile"),
    ):
        if given[option] and not given[needs]:
            raise UsageError(f"{option} goes with {needs}; give both, or neither")
    return given


class Profiles:
    """What was asked for, around the steps of one training."""

    def __init__(self, arguments: argparse.Namespace, output: Output) -> None:
        if arguments.trace_export is not None:
            check_regular(arguments.trace_export, "--trace-export")
        from moe_core.training.memory_report import MemoryReport
        from moe_core.training.parallel.mesh import is_first_process
        from moe_core.training.profiling import StepProfile
        from moe_core.training.trainer import Trainer

        self._output = output
        self._trace = arguments.trace_export
        self.step: Callable[[Trainer], object] = Trainer.step
        """For loop.train."""
        self._memory: MemoryReport | None = None
        self._profile: StepProfile | None = None
        if not is_first_process():
            return  # one of the processes that share a training is looked at, the one that prints
        if arguments.memory_profile:
            self.step = self._memory = MemoryReport(arguments.report_interval or INTERVAL, self._say_memory)
        if arguments.profile:
            self.step = self._profile = StepProfile(arguments.profile_steps or STEPS, self.step)

    def finish(self) -> dict[str, Any]:
        """Say what was found; returns it as JSON values."""
        figures: dict[str, Any] = {}
        if self._profile is not None:
            figures["profile"] = self._finish_profile(self._profile)
        if self._memory is not None:
            figures["memory"] = self._finish_memory(self._memory)
        return figures

    def _finish_profile(self, profile: StepProfile) -> dict[str, Any] | None:
        profile.finish()
        found, output = profile.found, self._output
        if found is None:
            output.say("No step was profiled: the run ended within its first two.")
            return None
        phases = {**found.phases, "the rest": found.step - sum(found.phases.values()) + found.phases["routers"]}
        names = {"data": "waits for its batch", "routers": "of these, routers"}
        rows = [(names.get(name, name), f"{ms:,.2f}", f"{ms / found.step:.1%}") for name, ms in phases.items()]
        output.say(f"\nProfile of {found.steps} steps, {found.step:,.2f} ms each:\n")
        output.say(table(("part", "ms a step", "share"), rows) + "\n")
        longest = [
            (name, f"{calls:,.0f}", f"{ms:,.2f}", f"{ms / found.step:.1%}") for name, calls, ms in found.operations
        ]
        output.say(table(("operation", "calls", "ms by itself", "share"), longest) + "\n")
        if self._trace is not None:
            profile.export(Path(self._trace))
            output.say(f"Timeline:  {self._trace} (open it at ui.perfetto.dev or chrome://tracing)\n")
        return asdict(found)

    def _finish_memory(self, memory: MemoryReport) -> dict[str, Any] | None:
        if memory.parts is None or memory.last is None:
            return None
        found, estimate = memory.parts, memory.estimate
        expected = ["-"] * 4
        if estimate is not None:
            sizes = estimate.weights, estimate.gradients, estimate.optimizer, estimate.activations
            expected = [_mib(size) for size in sizes]
        rows = [(name, _mib(size), mib) for (name, size), mib in zip(asdict(found).items(), expected, strict=True)]
        self._output.say("\n" + table(("memory of a step", "MiB", "estimate"), rows))
        if estimate is not None:
            self._output.say("The estimate of activations counts what comes and goes beside those that are kept.")
        self._output.say(f"At most {_mib(memory.last.peak)} MiB were taken in all.\n")
        return {**asdict(found), "peak": memory.last.peak}

    def _say_memory(self, step: int, found: MemoryNow) -> None:
        self._output.say(f"step {step:,}: {_mib(found.now)} MiB, {_mib(found.peak)} MiB at most so far")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
