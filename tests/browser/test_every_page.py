"""What holds of every page in both themes: it is drawn, fetches nothing from outside, is no wider than the window, and
can be read and steered by everyone, as far as axe-core tells."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
PAGES = {
    "Overview": "canvas, svg",
    "Tokens": ".t",
    "Domains": "canvas, svg",
    "Experts": "canvas, svg",
    "Flow": ".js-plotly-plot",
    "Placement": "canvas, svg",
    "Long context": "button",
    "Generation": ".t",
    "Chat": "textarea",
    "Interventions": "canvas, svg",
    "Training": "canvas, svg",
    "Time": "canvas, svg",
    "Compare": "canvas, svg",
}
"""By name in the navigation: what is seen of its main part once that is drawn."""
LOCAL = re.compile(r"^(https?://(localhost|127\.0\.0\.1)[:/]|data:|blob:)")
OF_STREAMLIT = {"list", "listitem"}
"""Rules that Streamlit's own navigation breaks: its lists have the groups between them and their items."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_drawn_from_here_alone_and_can_be_read(dashboard: Any, browser: Browser, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1400, "height": 900})  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(180_000)
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(f"{dashboard.url}/?run=tiny&layer=1")
    check = checker()
    violations = []
    for name, part in PAGES.items():
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        page.wait_for_url(re.compile("/[?]" if name == "Overview" else f"/{name.lower().replace(' ', '_')}[?]"))
        page.locator("main, [role=main]").locator(part).first.wait_for()
        settle(page)
        assert page.locator("[data-testid=stException]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        violations += [f"{name}: {one}" for one in check(page)]
    # Where texts are typed and files are opened, with what unfolds there.
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Tokens").click()
    page.get_by_role("radio", name="Your own text").click()
    page.get_by_role("button", name="Saved texts").click()
    page.get_by_text("No text is kept").or_(page.get_by_text("On this computer, and nowhere else")).first.wait_for()
    settle(page)
    violations += [f"saved texts: {one}" for one in check(page)]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Open a file or a model").click()
    page.get_by_role("textbox", name="Path on this computer").wait_for()
    settle(page)
    violations += [f"box that opens files: {one}" for one in check(page)]
    context.close()
    assert fetched
    assert [url for url in fetched if not LOCAL.match(url)] == []
    assert violations == []
    if check is nothing_to_check:
        pytest.skip("axe-core is missing: `make test` installs it; all but its rules was checked")


def settle(page: Page) -> None:
    """The page has run to its end, and nothing is being drawn or faded in."""
    page.wait_for_function(
        "document.querySelector('[data-test-script-state=notRunning]') "
        "&& !document.querySelector('[data-testid=stSkeleton]') "
        "&& document.getAnimations().every(one => one.playState !== 'running')"
    )


def checker() -> Any:
    """What tells of a page its violations that are serious or critical, by axe-core's rules."""
    try:
        axe = importlib.import_module("axe_playwright_python.sync_playwright").Axe()
    except ModuleNotFoundError:
        return nothing_to_check

    def violations(page: Page) -> list[str]:
        found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        return [
            f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}"
            for one in found
            if one["impact"] in ("serious", "critical") and one["id"] not in OF_STREAMLIT
            for node in one["nodes"]
        ]

    return violations


def nothing_to_check(_page: Page) -> list[str]:
    """Instead of `violations` where axe-core is missing."""
    return []
