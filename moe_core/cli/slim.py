"""`moescope slim`: a run small enough to ship."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, existing_run, finish, whole
from moe_core.cli.output import Output

if TYPE_CHECKING:
    pass


def parser() -> Parser:
    """Its options."""
    parser = command(
        "slim",
        "Make a run small enough to ship: bfloat16 weights, no optimizer state. It can then no longer be resumed.",
        "slim --run demo",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run to change")
    parser.add_argument(
        "--max-mib", metavar="M", type=whole(1, 1_000_000), default=10, help="refuse, changing nothing, if the run "
        "would still take more (default 10)",
    )  # fmt: skip
    return finish(parser, slim)


def slim(arguments: argparse.Namespace, output: Output) -> int:
    """Reduce a run to what is needed to look at it and use it."""
    run = existing_run(arguments.run)
    from moe_core.runs.checkpoint import slim_run

    size = slim_run(run, max_bytes=arguments.max_mib * 2**20)
    output.say(f"Run {run.name} now takes {size:,} bytes: bfloat16 weights, no optimizer state. It cannot be resumed.")
    output.figures({"run": run.name, "bytes": size})
    return 0
