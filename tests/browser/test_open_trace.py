"""A trace opened from the command line, and another by the path field and by upload, in a real browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from moe_core.routing import RoutingTrace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def save_trace(path: Path, layers: int) -> Path:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(20), 30)
    indices = rng.permuted(np.broadcast_to(np.arange(4), (layers, documents.size, 4)), axis=2)[:, :, :2]
    words = ["the ", "bank ", "returns ", "<b>x</b> ", "\n"]
    RoutingTrace.from_arrays(
        router_indices=indices, router_scores=np.full(indices.shape, 0.5), num_experts=4,
        token_ids=rng.integers(0, 5, documents.size), document_ids=documents, domain_ids=documents % 2,
        domains=["legal", "code"], source="a model elsewhere", vocabulary=dict(enumerate(words)),
    ).save(path)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without a run, started on a trace."""
    folder = tmp_path_factory.mktemp("opened")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app", "--server.headless=true", f"--server.port={port}",
         "--", "--trace", str(save_trace(folder / "first.parquet", 2))],
        cwd=ROOT, env={**os.environ, "MOESCOPE_CHECKPOINTS": str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://localhost:{port}"
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
            break
        except OSError:
            assert server.poll() is None, "the dashboard ended"
            time.sleep(0.2)
    yield address
    server.terminate()
    server.wait(timeout=120)


def heading(page: Page, text: str) -> None:
    page.get_by_role("heading", name=text).first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_on_the_trace_and_shows_its_text(url: str, browser: Browser, scheme: Any) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(url)
    heading(page, "What is trace first.parquet, and is its routing healthy?")
    page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()
    page.get_by_role("link", name="Where does each token of my text go?").click()
    heading(page, "Which expert does each token go to?")
    page.get_by_text("<b>x</b>").first.wait_for()  # text, not markup
    assert page.locator("b", has_text="x").count() == 0
    page.get_by_role("link", name="Generation").click()
    page.get_by_text("writing takes the model itself").wait_for()
    assert page.locator("[data-testid=stException], [data-testid=stAlert]").count() == 0
    context.close()


def test_a_path_and_an_upload_open_another_and_the_url_names_it(url: str, page: Page, tmp_path: Path) -> None:
    page.goto(url)
    heading(page, "What is trace first.parquet")
    page.get_by_role("button", name="Open a file or a model").click()
    field = page.get_by_role("textbox", name="Path on this computer")
    field.fill(str(tmp_path / "nothing.parquet"))
    field.press("Enter")
    page.get_by_test_id("stPopoverBody").get_by_role("button", name="Open", exact=True).click()
    page.get_by_text("It was not opened.").wait_for()
    field.fill(str(save_trace(tmp_path / "second.parquet", 3)))
    field.press("Enter")
    page.get_by_test_id("stPopoverBody").get_by_role("button", name="Open", exact=True).click()
    heading(page, "What is trace second.parquet")
    assert "run=trace+second.parquet" in page.url.replace("%20", "+")
    assert str(tmp_path) not in page.url
    link = page.url
    if page.get_by_role("textbox", name="Path on this computer").count() == 0:
        page.get_by_role("button", name="Open a file or a model").click()
    # A box that is drawn anew has its old field for a moment, too.
    page.wait_for_function("document.querySelectorAll('input[type=file]').length === 1")
    page.locator("input[type=file]").set_input_files(str(save_trace(tmp_path / "third.parquet", 4)))
    heading(page, "What is trace third.parquet")
    page.goto(link)
    heading(page, "What is trace second.parquet")
