"""A real server and a real browser. Skipped, with a reason, where Chromium is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0
LAUNCH_ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
]


class Server:
    """A dashboard of its own process on a free port, looking at one checkpoints folder."""

    def __init__(self, checkpoints: Path, port: int | None = None) -> None:
        self.checkpoints = checkpoints
        self.port = port or _free_port()
        self.url = f"http://localhost:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app", "--server.headless=true", f"--server.port={self.port}"],
            cwd=ROOT,
            env={**os.environ, "MOESCOPE_CHECKPOINTS": str(self.checkpoints), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the dashboard ended with exit code {self._process.returncode}")
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"the dashboard did not answer within {START_SECONDS:.0f} s")

    def stop(self) -> None:
        """End the server, and only the server."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=120)
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(checkpoints: Path) -> Iterator[Server]:
    """A running server for `checkpoints`, ended at the end."""
    server = Server(checkpoints)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], AbstractContextManager[Server]]:
    """For tests that need a checkpoints folder, or a restart, of their own."""
    return serving


@pytest.fixture(scope="session")
def dashboard(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only look at the trained tiny run, a copy: what a page measures is kept there."""
    root = tmp_path_factory.mktemp("looked_at") / "checkpoints"
    shutil.copytree(trained_root, root)
    with serving(root) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is missing: `make chromium` (as root) installs Debian's")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: `make test` installs it")
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=LAUNCH_ARGUMENTS)
        yield instance
        instance.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh browser profile of 1400 x 900 points."""
    fresh = browser.new_context(viewport={"width": 1400, "height": 900})
    yield fresh
    fresh.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """A tab in a fresh profile."""
    tab = context.new_page()
    tab.set_default_timeout(180_000)
    return tab
