"""The dashboard of the installed wheel, from an empty folder: the demo on its pages, and a training from the page."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from wheel_support import Installed

from moe_core.runs import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("wheel"), pytest.mark.timeout(600)]
STEPS = 20
PRIMARY_COLOUR = "rgb(31, 78, 140)"
"""Of app/.streamlit/config.toml, light."""


@pytest.fixture(scope="module")
def address(installed: Installed) -> Iterator[str]:
    """Of `moescope dashboard`, whose trainings take 20 steps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [installed.programs / "moescope", "dashboard", "--server.headless=true", f"--server.port={port}"],
        cwd=installed.work,
        env=installed.environment(MOESCOPE_TRAINING__STEPS=str(STEPS), MOESCOPE_DATA__DOCUMENTS="40"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://localhost:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the dashboard ended"
            with suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=2):
                break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_the_demo_is_shown_with_our_theme_and_our_token_view(address: str, page: Page) -> None:
    page.set_default_timeout(60_000)
    page.goto(f"{address}/?run=demo")
    page.wait_for_selector("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg")
    assert page.locator("[data-testid=stException]").count() == 0
    page.get_by_role("link", name="Tokens").first.click()
    page.locator(".view .t").nth(20).wait_for()
    page.get_by_role("link", name="Compare").first.click()
    page.get_by_text("Dense models and routers", exact=True).first.click()
    page.get_by_text("From dense-real-domains.json").first.wait_for()


def test_a_training_is_started_from_its_page_and_finishes(address: str, page: Page, installed: Installed) -> None:
    before = installed.files()
    page.set_default_timeout(60_000)
    page.goto(f"{address}/training?run=demo")
    page.wait_for_selector("h1")
    page.get_by_text("Train a new run").first.click()
    start = page.get_by_role("button", name="Start training")
    start.wait_for()
    assert start.evaluate("button => getComputedStyle(button).backgroundColor") == PRIMARY_COLOUR
    page.get_by_role("textbox", name="Name of the run").fill("mine")
    page.get_by_role("textbox", name="Name of the run").press("Enter")
    start.click()
    run = RunFolder("mine", installed.work / "checkpoints")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (run.path / "report.md").exists():
        time.sleep(0.5)
    log = run.log_path.read_text(encoding="utf-8") if run.log_path.exists() else "no log"
    assert (run.path / "report.md").exists(), log
    status = run.status()
    assert status is not None
    assert (status.state, status.step, status.steps) == ("finished", STEPS, STEPS)
    assert installed.files() == before
