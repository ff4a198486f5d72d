"""Which hosts the dashboard answers to, and how it starts; tests/browser/test_server.py asks a running one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from starlette.applications import Starlette
from starlette.types import Message

from app import api_beside_pages
from moe_core.server.guarded_answers import is_allowed
from moe_core.server.paths import KEY_VARIABLE

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
    """It is said before torch is there, which reads it once; nor is anything of the API there before it is asked."""
    code = (
        "import os, runpy, sys\n"
        "runpy.run_path('app/streamlit_app.py', run_name='served')\n"
        "print(os.environ['OMP_WAIT_POLICY'], bool({'torch', 'fastapi'} & {*sys.modules}))"
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


def asked(address: str | None, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """What the API beside the pages answers to who asks for its models, where the dashboard listens at `address`."""
    monkeypatch.setattr(api_beside_pages.st, "get_option", {"server.address": address}.get)
    application = Starlette(routes=api_beside_pages.routes())
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [], "query_string": b""}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    anyio.run(application, scope, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "[::1]"])
def test_the_api_answers_beside_a_dashboard_of_this_machine(
    address: str, trained_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(trained_root))
    status, text = asked(address, monkeypatch)
    assert status == 200
    assert [model["id"] for model in json.loads(text)["data"]] == ["tiny"]


@pytest.mark.parametrize("address", ["0.0.0.0", "", None, "192.168.1.7", "lab.example.org"])
def test_a_dashboard_that_others_reach_has_it_with_a_key_alone(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, text = asked(address, monkeypatch)
    assert status == 403
    assert f"start it with {KEY_VARIABLE} set" in json.loads(text)["error"]["message"]
    monkeypatch.setenv(KEY_VARIABLE, "a-key-for-others")
    assert asked(address, monkeypatch)[0] == 401


def test_a_wrong_setting_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDOR_TEMPERATURE", "hot")
    status, text = asked("127.0.0.1", monkeypatch)
    assert status == 500
    assert "CONDOR_TEMPERATURE has value 'hot'" in json.loads(text)["error"]["message"]


def test_without_the_extra_the_dashboard_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_beside_pages, "missing_library", lambda: "fastapi")
    assert api_beside_pages.routes() == []
