"""How soon `main.py --help` answers: what needs no torch must not import it."""

from __future__ import annotations

import pandas as pd

from bench.processes import run_python
from bench.results import Goal, Result
from bench.suite import Scale
from moe_core.experiments.timing import Timings

BARE = "Python alone"
COMMANDS = ("main.py --help", "main.py trace --help", "main.py runs --json")


def run(scale: Scale) -> list[Result]:
    """A row for each command that needs no model, beside an interpreter that does nothing."""
    commands = COMMANDS[:1] if scale.smoke else COMMANDS
    sides = {**{command: command.split() for command in commands}, BARE: ["-c", "pass"]}
    found = []
    for number in range(scale.rounds + 1):  # the first one warms up the files
        scale.progress("starting", number, scale.rounds + 1)
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        found.append({name: run_python(sides[name]).seconds for name in order})
    timings = Timings(pd.DataFrame(found[1:], columns=list(sides)))
    rows = []
    for command in commands:
        spread = timings.spread(command)
        goal = Goal(0.15, at_most=True) if command == COMMANDS[0] else None
        note = f"middle 80 %: {spread.low:.2f} to {spread.high:.2f} s; Python alone {timings.median(BARE):.2f} s"
        rows.append(Result(command, spread.median, "s", goal=goal, note=note))
    return rows
