"""A command in a process of its own, with the time and the memory it took."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_core.errors import MoescopeError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Took:
    """What a process took from its start to its end, the imports of its libraries included."""

    seconds: float
    peak_mib: float
    """Most memory (resident set) it ever held."""
    output: str
    """What it printed."""


def run_python(arguments: Sequence[str]) -> Took:
    """Run `python ARGUMENTS` in the repository's root. Raises MoescopeError with its last line when it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )
        # wait4 tells the memory of this very process; the standard library only that of the largest child ever.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        if process.returncode:
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise MoescopeError(f"{' '.join(arguments)} ended with exit code {process.returncode}: {said[-1:]}")
        output.seek(0)
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return Took(seconds, usage.ru_maxrss / unit, output.read().decode(errors="replace"))
