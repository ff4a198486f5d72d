"""The command line itself, as `python main.py`, `moescope` and `python -m moe_core` all call it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moe_core.cli.exits import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl+C, 143 SIGTERM."""
    return guarded(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    from moe_core.cli.output import Output
    from moe_core.cli.parser import parse

    parsed = parse(arguments)
    with Output(parsed.json) as output:
        code: int = parsed.handler(parsed, output)
        return code
