"""Which names a run may have, and where runs live."""

from __future__ import annotations

import os
import re
from pathlib import Path

from moe_core.errors import UsageError
from moe_core.files import user_path

MAX_NAME_LENGTH = 64
_ALLOWED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# Windows keeps these for devices, whatever follows the first dot.
_WINDOWS_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))]
)


def checkpoints_root(root: str | Path | None = None) -> Path:
    """The folder of all runs: `root`, else $MOESCOPE_CHECKPOINTS, else ./checkpoints."""
    return Path(root if root is not None else os.environ.get("MOESCOPE_CHECKPOINTS") or "checkpoints")


def is_run_name(name: str) -> bool:
    """True for 1 to 64 characters of A-Z a-z 0-9 . _ - that name a plain folder on every system."""
    return (
        len(name) <= MAX_NAME_LENGTH
        and _ALLOWED.fullmatch(name) is not None
        and not name.endswith(".")
        and name.split(".")[0].lower() not in _WINDOWS_DEVICES
    )


def validate_run_name(name: str) -> str:
    """Return `name`, or raise UsageError with the rule it breaks."""
    if not is_run_name(name):
        shown = repr(name if len(name) <= MAX_NAME_LENGTH else name[:MAX_NAME_LENGTH] + "...")
        raise UsageError(
            f"run name {shown} is not allowed; use 1 to {MAX_NAME_LENGTH} letters, digits, dots, dashes and "
            "underscores, starting with a letter or digit, e.g. my-run-1"
        )
    return name


def run_path(name: str, root: str | Path | None = None) -> Path:
    """The folder of the run called `name`. Raises UsageError for a bad name or a link that leads out of the root."""
    base = checkpoints_root(root)
    path = base / validate_run_name(name)
    user_path(path)  # raises for a circle of links
    if not path.resolve().is_relative_to(base.resolve()):
        raise UsageError(
            f"run {name!r} is a link to {str(path.resolve())!r}, outside {str(base)!r}; "
            "set MOESCOPE_CHECKPOINTS to the folder that really holds it"
        )
    return path
