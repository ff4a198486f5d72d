"""Start a training as a process of its own, which outlives the page, the browser and the server that asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Sequence
from pathlib import Path

from moe_core.errors import RunBusyError, RunError, UsageError
from moe_core.runs.files import translate_os_errors
from moe_core.runs.folder import RunFolder

# -P: a file of the working folder that has the name of a library must not be taken for it.
COMMAND = (sys.executable, "-P", "-m", "moe_core")
_PACKAGES = str(Path(__file__).resolve().parents[2])
"""The folder that holds moe_core: a checkout, or where packages are installed."""


def start_training(arguments: Sequence[str], root: str | Path | None = None) -> int:
    """Run the command line with these arguments in its own session; returns its process id at once.

    `arguments` are those of the command line and must hold --run NAME; everything the process prints goes to
    <run>/train.log. Raises RunBusyError when the run is being trained already.
    """
    run = RunFolder(_run_name(arguments), root)
    if run.is_locked():
        raise RunBusyError(f"run {run.name!r} is being trained already; stop it first, or choose another name")
    with translate_os_errors(run.log_path):
        run.path.mkdir(parents=True, exist_ok=True)
        log = run.log_path.open("wb")
    with log:
        try:
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(run),
            )
        except OSError as error:
            raise RunError(f"cannot start a training process: {error.strerror or error}") from None
    # Nobody waits for it otherwise, and an ended child that nobody waited for stays in the process table.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


def _environment(run: RunFolder) -> dict[str, str]:
    """Ours, with the root of the runs, and with the folder of a checkout where Python does not look by itself."""
    environment = {**os.environ, "MOESCOPE_CHECKPOINTS": str(run.root.resolve())}
    if environment.get("OMP_WAIT_POLICY") == "PASSIVE":  # the dashboard's own (inference/ahead.py)
        del environment["OMP_WAIT_POLICY"]
    if _PACKAGES not in sysconfig.get_paths().values():
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = _PACKAGES + (os.pathsep + known if known else "")
    return environment


def _run_name(arguments: Sequence[str]) -> str:
    for position, argument in enumerate(arguments):
        if argument.startswith("--run="):
            return argument.removeprefix("--run=")
        if argument == "--run" and position + 1 < len(arguments):
            return arguments[position + 1]
    raise UsageError(f"the arguments {list(arguments)!r} name no run; add --run NAME")
