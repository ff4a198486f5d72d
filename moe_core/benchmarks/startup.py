"""How soon `main.py --help` answers: what needs no torch must not import it."""

from __future__ import annotations

from functools import partial

from moe_core.benchmarks.processes import run_python
from moe_core.benchmarks.results import Goal, Result
from moe_core.benchmarks.suite import Scale
from moe_core.benchmarks.timing import interleave

BARE = "Python alone"
COMMANDS = ("main.py --help", "main.py trace --help", "main.py runs --json")


def run(scale: Scale) -> list[Result]:
    """A row for each command that needs no model, beside an interpreter that does nothing."""
    commands = COMMANDS[:1] if scale.smoke else COMMANDS
    sides = {command: partial(run_python, command.split()) for command in commands}
    timings = interleave(
        {**sides, BARE: partial(run_python, ["-c", "pass"])},
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
