"""A command in a process of its own, with the time and the memory it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_core.errors import MoescopeError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Took:
    """Cost of a process from its start to its end, the imports of its libraries included."""

    seconds: float
    peak_mib: float
    """Most memory (resident set) it ever held."""
    output: str
    """The text that it printed."""
    processor_seconds: float = float("nan")
    """Processor time, of all its threads: what others do on the machine hardly changes it."""


def run_python(arguments: Sequence[str]) -> Took:
    """Run `python ARGUMENTS` in the repository's root. Raises MoescopeError with its last line when it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        # A process begins with the peak memory of the one that started it, which may be large: a small one stands
        # between, this module.
        between = subprocess.run(
            [sys.executable, "-m", __name__, str(output.fileno()), *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=[output.fileno()],
        )
        errors.seek(0)
        took = json.loads(between.stdout or "null")
        if took is None or took["code"]:
            said = errors.read().decode(errors="replace").strip().splitlines()
            code = between.returncode if took is None else took["code"]
            raise MoescopeError(f"{' '.join(arguments)} ended with exit code {code}: {said[-1:]}")
        output.seek(0)
        printed = output.read().decode(errors="replace")
        return Took(took["seconds"], took["peak_mib"], printed, took["processor_seconds"])


def _print_usage(output: int, arguments: Sequence[str]) -> None:
    """Print as JSON what a process takes whose output goes to this descriptor."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=output)
    # wait4 tells the memory of this very process; the standard library only that of the largest child ever.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    used = usage.ru_utime + usage.ru_stime
    found = {"seconds": seconds, "peak_mib": usage.ru_maxrss / unit, "code": code, "processor_seconds": used}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _print_usage(int(sys.argv[1]), sys.argv[2:])
