"""The report in a real browser: its own rules let its own pictures be drawn, and nothing is asked of anybody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import main as command_line

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def report(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOESCOPE_CHECKPOINTS", str(trained_root))
        assert command_line.main(["report", "--run", "tiny", "--out", str(target)]) == 0
    return target


@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 22, 28)")])
def test_the_report_draws_itself_without_network(report: Path, browser: Browser, scheme: str, background: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1100, "height": 800})  # type: ignore[arg-type]
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url[:4] == "http" else None)
    page.goto(report.as_uri())
    page.wait_for_selector(".js-plotly-plot .sankey-link")
    assert complaints == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
    ink = page.evaluate("getComputedStyle(document.body).color")
    label = "getComputedStyle(document.querySelector('%s')).fill"
    assert page.evaluate(label % "figure svg text") == ink, "labels take the page's colour"
    assert page.evaluate(label % ".js-plotly-plot .sankey text") == ink
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100, "nothing sticks out"
    page.get_by_text("How to read this").first.click()
    assert page.locator("dt").first.is_visible()
    context.close()
