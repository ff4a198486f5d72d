"""Which hosts the dashboard answers to, and how it starts; tests/browser/test_server.py asks a running one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_core.server.guarded_answers import is_allowed

ROOT = Path(__file__).resolve().parent.parent
OURS = ["localhost", "127.0.0.1", "[::1]"]


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("localhost", OURS, True),
        ("LocalHost.", OURS, True),
        ("::1", OURS, True),
        ("evil.example", OURS, False),
        ("localhost.evil.example", OURS, False),
        (None, OURS, False),
        ("", OURS, False),
        ("evil.example", [], True),
        (None, [], True),
        ("evil.example", ["*"], True),
        ("a.example.org", ["*.example.org"], True),
        ("example.org", ["*.example.org"], False),
        ("aexample.org", ["*.example.org"], False),
        ("me.lan", [" ME.lan. "], True),
    ],
)
def test_a_host_is_allowed_by_name_only(host: str | None, allowed: list[str], expected: bool) -> None:
    assert is_allowed(host, allowed) is expected


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_server_do_not_spin_unless_its_user_says_so(given: str | None, expected: str) -> None:
    """It is said before torch is there, which reads it once."""
    code = (
        "import os, runpy, sys\n"
        "runpy.run_path('app/streamlit_app.py', run_name='served')\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected, "False"]


def test_a_server_imports_its_pages_before_they_are_asked_for() -> None:
    code = (
        "import runpy, sys\n"
        "runpy.run_path('app/streamlit_app.py', run_name='served')\n"
        "from app.server import load_pages\n"
        "load_pages().join()\n"
        "print('app.frame' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
