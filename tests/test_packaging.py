"""What pip is told about Moescope: versions, pins, the name of the command."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import moe_core
from moe_core import program as names
from moe_core.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED_FOR = {
    "requirements.txt": PROJECT["dependencies"],
    "requirements-huggingface.txt": PROJECT["optional-dependencies"]["huggingface"],
    "requirements-serve.txt": PROJECT["optional-dependencies"]["serve"],
    "requirements-low-precision.txt": PROJECT["optional-dependencies"]["low-precision"],
    "requirements-data.txt": PROJECT["optional-dependencies"]["data"],
    "requirements-code.txt": PROJECT["optional-dependencies"]["code"],
}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.strip().split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("name", PINNED_FOR)
def test_each_pin_lies_in_the_range_that_the_package_asks_for(name: str) -> None:
    ranges = {range_.name: range_ for range_ in map(Requirement, PINNED_FOR[name])}
    assert pins(name)
    for library, version in pins(name).items():
        assert ranges[library].specifier.contains(version), f"{library} {version} is outside {ranges[library]}"


def test_what_the_package_needs_is_pinned_for_the_tests() -> None:
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == set(pins("requirements.txt"))


def test_version_is_one_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"moescope {moe_core.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", moe_core.__version__)
    assert f"## {moe_core.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("called", "in_checkout", "expected"),
    [
        ("/usr/bin/moescope", True, "moescope"),
        ("/usr/bin/moescope", False, "moescope"),
        ("main.py", True, "python main.py"),
        ("/x/app/streamlit_app.py", True, "python main.py"),
        ("/x/app/streamlit_app.py", False, "moescope"),
        ("/x/moe_core/__main__.py", False, "moescope"),
    ],
)
def test_sentences_name_the_program_that_was_called(
    called: str, in_checkout: bool, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "main.py"
    if in_checkout:
        script.touch()
    monkeypatch.setattr(names, "_CHECKOUT_SCRIPT", script)
    monkeypatch.setattr(sys, "argv", [called])
    assert names.program() == expected


def test_the_dashboard_passes_its_options_on_to_streamlit() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "dashboard", "--server.nonsense", "--", "--trace", "x.parquet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "No such option '--server.nonsense'" in done.stderr


@pytest.mark.parametrize("elsewhere", [False, True], ids=["from the checkout", "from an empty folder"])
def test_the_dashboard_has_its_settings_from_any_folder(elsewhere: bool, tmp_path: Path) -> None:
    """Without them it would answer the whole network; with them it listens at 127.0.0.1, not at another address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(ROOT / "app") if elsewhere else "app",
         "--server.headless=true", f"--server.port={port}"],
        cwd=tmp_path if elsewhere else ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not _answers(port) and time.monotonic() < deadline:
            assert process.poll() is None, "the dashboard ended"
            time.sleep(0.1)
        assert _answers(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5).close()
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_no_folder_of_runs_is_watched() -> None:
    from streamlit.watcher.folder_black_list import FolderBlackList

    settings = tomllib.loads((ROOT / "app" / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    unwatched = FolderBlackList(settings["server"]["folderWatchBlacklist"])
    assert unwatched.is_blacklisted("/home/me/work/checkpoints/demo/metrics.jsonl")
    assert unwatched.is_blacklisted("/home/me/moescope/.venv/lib/x.py")
    assert not unwatched.is_blacklisted("/home/me/moescope/app/loaders.py")


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
