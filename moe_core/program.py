"""How the user calls the command line, for every sentence that tells him what to type next."""

from __future__ import annotations

import sys
from pathlib import Path

FROM_A_CHECKOUT, INSTALLED = "python main.py", "moescope"
_CHECKOUT_SCRIPT = Path(__file__).resolve().parent.parent / "main.py"


def program() -> str:
    """ "moescope" or "python main.py": what was really called; for a dashboard or another program, what there is."""
    called = Path(sys.argv[0]).stem if sys.argv else ""
    if called == "moescope":
        return INSTALLED
    return FROM_A_CHECKOUT if called == "main" or _CHECKOUT_SCRIPT.is_file() else INSTALLED


def dashboard_command() -> str:
    """What opens the dashboard."""
    return "make dashboard" if program() == FROM_A_CHECKOUT else f"{INSTALLED} dashboard"
