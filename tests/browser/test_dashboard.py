"""The dashboard in a real browser: what it draws, keeps in the URL, downloads, and how it follows a live training."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moe_core.runs import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
Serve = Callable[[Path], AbstractContextManager[Any]]
ROOT = Path(__file__).resolve().parents[2]


def ready(page: Page) -> None:
    """Wait until the page has run to its end and its charts are drawn."""
    page.wait_for_selector("h1")
    page.wait_for_function(
        "document.querySelector('[data-test-script-state=notRunning]') "
        "&& !document.querySelector('[data-testid=stSkeleton]')"
    )


def test_run_and_layer_are_in_the_url_and_a_link_brings_them_back(dashboard: Any, page: Page) -> None:
    page.goto(dashboard.url)
    ready(page)
    page.get_by_role("radio", name="0", exact=True).or_(page.get_by_role("button", name="0", exact=True)).first.click()
    page.wait_for_url(re.compile("layer=0"))
    page.get_by_role("link", name="Domains").first.click()
    page.get_by_text("Layer 0:").first.wait_for()
    assert "layer=0" in page.url
    page.reload()
    page.get_by_text("Layer 0:").first.wait_for()


def test_a_figure_downloads_as_png_svg_and_csv(dashboard: Any, page: Page) -> None:
    page.goto(dashboard.url)
    ready(page)
    starts = {"PNG": b"\x89PNG", "SVG": b"<svg", "CSV": b"layer,expert"}
    for label, start in starts.items():
        with page.expect_download() as info:
            page.locator("[data-testid=stDownloadButton]", has_text=label).first.click()
        assert info.value.suggested_filename == f"expert_load.{label.lower()}"
        assert Path(info.value.path()).read_bytes().startswith(start)


def test_the_explanation_opens_with_formula_and_source(dashboard: Any, page: Page) -> None:
    page.goto(dashboard.url)
    ready(page)
    page.get_by_text("How to read this").first.click()
    page.get_by_text("max c / mean c").first.wait_for()
    page.get_by_text("2408.15664").first.wait_for()


def test_two_browsers_and_a_restarted_server_see_the_same_live_training(
    tmp_path: Path, serve: Serve, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in _TINY.items():
        monkeypatch.setenv(f"MOESCOPE_{key}", value)
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: `make test` installs it")
    run = RunFolder("live", tmp_path)
    with serve(tmp_path) as server:
        try:
            first = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            first.set_default_timeout(180_000)
            first.goto(f"{server.url}/training")
            first.get_by_text("Train a new run").first.click()  # the shipped run is there from the start
            first.get_by_label("Name of the run").fill("live")
            first.get_by_label("Name of the run").press("Enter")
            first.get_by_role("button", name="Start training").click()
            first.get_by_text(re.compile(r"^Now at step")).wait_for()

            # The page moves by itself.
            seen = first.get_by_text(re.compile(r"^Now at step")).inner_text()
            first.wait_for_function(
                "seen => [...document.querySelectorAll('p')].some("
                "p => p.innerText.startsWith('Now at step') && p.innerText !== seen)",
                arg=seen,
            )

            # Another browser sees the same run; a restarted server has not hurt it.
            second = browser.new_context().new_page()
            second.set_default_timeout(180_000)
            second.goto(f"{server.url}/training?run=live")
            second.get_by_text(re.compile(r"^Now at step")).wait_for()
            before = run.status()
            server.stop()
            time.sleep(1.0)
            server.start()
            after = run.status()
            assert before is not None
            assert after is not None
            assert after.pid == before.pid
            assert run.is_locked()
            second.goto(f"{server.url}/training?run=live")
            second.get_by_text(re.compile(r"^Now at step")).wait_for()

            # Stopped in one, seen in both; then resumed.
            stopped = re.compile(r"^Stopped at step")
            for _ in range(6):  # a click on a button that is just drawn anew is not taken
                with suppress(playwright.TimeoutError):
                    second.get_by_role("button", name="Stop").click(timeout=10_000)
                with suppress(playwright.TimeoutError):
                    second.get_by_text(stopped).wait_for(timeout=30_000)
                    break
            for page in (second, first):
                page.get_by_text(stopped).wait_for()
            first.get_by_role("button", name="Resume").click()
            second.reload()
            second.get_by_text(re.compile(r"^Now at step")).wait_for()
        finally:
            if run.path.is_dir():
                run.request_stop()
        deadline = time.monotonic() + 240
        while run.is_locked() and time.monotonic() < deadline:
            time.sleep(0.2)
    assert not run.is_locked()


def test_the_settings_beside_the_dashboard_serve_this_machine_only_and_tell_nobody() -> None:
    """That they hold from any folder, tests/test_packaging.py shows on a running server."""
    shown = subprocess.run(
        [sys.executable, "-m", "streamlit", "config", "show"],
        cwd=ROOT / "app",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in ('address = "127.0.0.1"', "gatherUsageStats = false", "enableXsrfProtection = true"):
        assert f"\n{line}" in shown


_TINY = {
    "MODEL__VOCAB_SIZE": "300", "MODEL__DIM": "16", "MODEL__NUM_LAYERS": "1", "MODEL__NUM_HEADS": "1",
    "MODEL__NUM_KV_HEADS": "1", "MODEL__HEAD_DIM": "16", "MODEL__NUM_EXPERTS": "4", "MODEL__EXPERT_HIDDEN_DIM": "16",
    "MODEL__MAX_SEQ_LEN": "64", "DATA__DOCUMENTS": "10", "TRAINING__STEPS": "1000000", "TRAINING__BATCH_SIZE": "2",
    "TRAINING__SEQ_LEN": "16", "TRAINING__EVALUATION_INTERVAL": "200", "TRAINING__EVALUATION_TOKENS": "64",
    "TRAINING__PROBE_TOKENS": "64", "TRAINING__THREADS": "1", "TRAINING__TIME_BUDGET_SECONDS": "900",
}  # fmt: skip
"""The quick preset made tiny; the server hands its environment to the trainer."""
