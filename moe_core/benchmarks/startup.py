"""How soon `main.py --help` answers: what needs no torch must not import it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from moe_core.benchmarks.results import Goal, Result
from moe_core.benchmarks.suite import Scale
from moe_core.benchmarks.timing import interleave
from moe_core.errors import MoescopeError

ROOT = Path(__file__).resolve().parents[2]
BARE = "Python alone"
COMMANDS = ("main.py --help", "main.py trace --help", "main.py runs --json")


def run(scale: Scale) -> list[Result]:
    """A row for each command that needs no model, beside an interpreter that does nothing."""
    commands = COMMANDS[:1] if scale.smoke else COMMANDS
    sides = {command: partial(_run, command.split()) for command in commands}
    timings = interleave(
        {**sides, BARE: partial(_run, ["-c", "pass"])},
        rounds=scale.rounds,
        on_round=lambda number: scale.progress("starting", number, scale.rounds),
    )
    rows = []
    for command in commands:
        spread = timings.spread(command)
        goal = Goal(0.3, at_most=True) if command == COMMANDS[0] else None
        note = f"middle 80 %: {spread.low:.2f} to {spread.high:.2f} s; Python alone {timings.median(BARE):.2f} s"
        rows.append(Result(command, spread.median, "s", goal=goal, note=note))
    return rows


def _run(arguments: list[str]) -> None:
    found = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL)
    if found.returncode:
        raise MoescopeError(f"{' '.join(arguments)} ended with exit code {found.returncode}")
