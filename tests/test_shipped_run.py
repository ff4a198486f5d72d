"""No command and no page changes a file that comes with Moescope: what is found out about the demo goes elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_support import Open
from cli_support import Run

from moe_core.runs import places
from moe_core.runs.places import SHIPPED

pytestmark = pytest.mark.slow
COMMANDS = (
    (0, "runs"),
    (0, "--evaluate", "--run", "demo"),
    (0, "--evaluate", "--suite", "--run", "demo", "--tasks", "arithmetic"),
    (0, "ablate", "--run", "demo", "--layer", "0", "--expert", "1", "--mode", "reroute"),
    (0, "trace", "--run", "demo", "--text", "The tenant shall pay.", "--out", "out/trace.parquet"),
    (0, "plots", "--run", "demo", "--out", "out/plots", "--format", "csv"),
    (0, "report", "--run", "demo", "--out", "out/report.html"),
    (0, "generate", "--run", "demo", "--prompt", "def ", "--max-new-tokens", "4"),
    (0, "export", "--run", "demo", "--to", "out/demo-hf"),
    (2, "slim", "--run", "demo"),
    (2, "--run", "demo", "--resume"),
    (2, "--run", "demo", "--quick"),
)
PAGES = ("overview", "domains", "experts", "flow", "interventions", "training", "time", "compare")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder's empty checkpoints; in the end the package is as it was."""
    monkeypatch.setattr(places, "SHIPPED", SHIPPED)
    monkeypatch.chdir(tmp_path)
    before = hashes(SHIPPED)
    assert len(before) > 10
    yield tmp_path / "checkpoints"
    assert hashes(SHIPPED) == before


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[1:4]))
def test_a_command_leaves_the_demo_as_it_came(command: tuple[int, str], root: Path, cli: Run) -> None:
    expected, *arguments = command
    code, _, err = cli(root, *arguments)
    assert code == expected, err


@pytest.mark.parametrize("page", PAGES)
def test_a_page_leaves_the_demo_as_it_came(page: str, root: Path, dashboard: Open) -> None:
    at = dashboard(root, page, run="demo")
    assert not at.error
