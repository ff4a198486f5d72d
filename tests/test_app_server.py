"""Which hosts the dashboard answers to (app/server.py); tests/browser/test_server.py asks a running one."""

from __future__ import annotations

import pytest

from app.server import is_allowed

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
