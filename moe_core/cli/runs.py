"""`moescope runs`: the list of runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, finish
from moe_core.cli.output import Output, table
from moe_core.program import program

if TYPE_CHECKING:
    from moe_core.runs.listing import RunSummary


def parser() -> Parser:
    """Its options."""
    parser = command("runs", "List the runs, the last updated first, with their state and key figures.",
                      "runs --json runs.json")  # fmt: skip
    return finish(parser, runs)


def runs(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001 - every handler has this signature
    """List all runs; a broken one is listed with what is broken."""
    from moe_core.runs.listing import list_runs

    found = list_runs()
    if found:
        output.say(
            table(["run", "state", "steps", "unseen", "validation", "updated", ""], [_table_row(run) for run in found])
        )
        output.say(
            "unseen, validation: nats per token, of all held-out text once the run is scored, of a part until then"
        )
    else:
        output.say(f"No runs yet. Train one:  {program()} --quick")
    output.figures([asdict(run) for run in found])
    return 0


def _table_row(run: RunSummary) -> list[str]:
    updated = datetime.fromtimestamp(run.updated_at).strftime("%Y-%m-%d %H:%M") if run.updated_at else "-"
    return [
        run.name,
        run.state,
        f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}" if run.step else "-",
        "-" if run.unseen_nats is None else f"{run.unseen_nats:.3f}",
        "-" if run.validation_nats is None else f"{run.validation_nats:.3f}",
        updated,
        run.error or " ".join(_notes(run)),
    ]


def _notes(run: RunSummary) -> list[str]:
    watched = ["Watched: its model is elsewhere."] if run.is_watched else []
    lost = [f"Shortened from {run.lost.asked:,} steps to keep its time budget."] if run.lost is not None else []
    return [*watched, *lost, *run.notes]
