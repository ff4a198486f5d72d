"""Programs that a model wrote, each run in a process of its own with limits, and what became of them.

Executing them is dangerous. The process has limits of processor time and memory, an empty folder, no environment, and
writes no file. On Linux with x86-64 the kernel refuses it every call but those of reading and computing: no other
process, no network, no signal, no file opened for writing, none removed. Elsewhere there are the limits alone. It can
read what its user can read. The tests run in the process of what they test: a program that sets out to be called right
by looking into its own interpreter can be. So it is no place for a program that means harm.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moe_core.errors import UsageError

Verdict = Literal["passed", "failed", "error", "time", "memory"]
"""All tests hold; one does not; something else was raised, or the program ended before its tests did; too long; too
much memory."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
CLOCK_FACTOR, CLOCK_SECONDS = 20, 60
"""By the clock a program has so many times its processor seconds, and so many seconds more: it ends programs that wait,
and not those of a machine that has much else to do."""
_SCRIPT = Path(__file__).with_name("limited_program.py")


@dataclass(frozen=True)
class Limits:
    """Of one program."""

    cpu_seconds: int = 5
    memory_bytes: int = 512 * 2**20
    """Address space, the interpreter's own some 20 MiB included."""


@dataclass(frozen=True)
class Outcome:
    """What became of one program."""

    verdict: Verdict
    detail: str = ""
    """What was raised or done, for people."""


def check_platform() -> None:
    """Raises UsageError where there are no limits of processes."""
    if sys.platform == "win32":
        raise UsageError("programs are run with limits that Windows does not have; use Linux or macOS")


def run_program(program: str, limits: Limits, *, clock_seconds: float | None = None) -> Outcome:
    """Execute it as a Python module, with the standard library alone; passed if it comes to its end.

    `clock_seconds`: see CLOCK_FACTOR. Raises OSError where no process can be started.
    """
    word = secrets.token_hex(16)
    task = {
        "program": program,
        "word": word,
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
    }
    clock = CLOCK_FACTOR * limits.cpu_seconds + CLOCK_SECONDS if clock_seconds is None else clock_seconds
    with tempfile.TemporaryDirectory(prefix="moescope-") as folder, tempfile.TemporaryFile() as given:
        given.write(json.dumps(task).encode())
        given.seek(0)
        process = subprocess.Popen(
            # -P, -s, -S: no folder, no user's and no installed packages; the seed makes sets come in one order
            [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(_SCRIPT)],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, env={"PYTHONHASHSEED": "0"}, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        late = False
        try:
            process.wait(clock)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.set_blocking(process.stdout.fileno(), False)
            said = process.stdout.read(8192) or b""
            process.stdout.close()
    return _outcome(said, word, process.returncode, late, clock)


def _outcome(said: bytes, word: str, code: int, late: bool, clock: float) -> Outcome:
    """Nothing counts that does not begin with the word."""
    if late:
        return Outcome("time", f"not at its end after {clock:g} seconds by the clock")
    if -code in (signal.SIGXCPU, signal.SIGKILL):
        return Outcome("time", "its processor seconds are used up")
    with suppress(ValueError, TypeError):
        told, verdict, detail = json.loads(said)
        if told == word and verdict in VERDICTS:
            return Outcome(verdict, str(detail))
    ended = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return Outcome("error", f"{ended} before its tests were done")
