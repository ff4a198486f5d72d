"""The Compare page in a real browser: the side bar's choice, the same text in both, and hostile text as one side."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from browser_lists import choose

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
HOSTILE = (
    "<img src=x onerror=window.__broken=1> ![](http://example.com/a.png) </style><script>window.__broken=1</script>"
)


def test_two_steps_and_two_texts(dashboard: Any, page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.set_default_timeout(180_000)
    page.goto(f"{dashboard.url}/compare")
    page.get_by_text(re.compile("^A is tiny, step 0, B is tiny, step 40. Different")).wait_for()
    for side in (0, 1):  # each is a frame of its own, which comes when it comes
        page.locator(".text").nth(side).locator(".t").first.wait_for()

    # Both sides show one text; the dots are on the same tokens, and follow the layer.
    sides = page.locator(".text")
    assert sides.count() == 2
    assert sides.nth(0).inner_text() == sides.nth(1).inner_text()

    def dots(side: int) -> list[str]:
        found: list[str] = sides.nth(side).locator(".t.marked").evaluate_all("all => all.map(t => t.dataset.i)")
        return found

    assert dots(0) == dots(1) != []

    # Another step, chosen in the side bar, stands in the URL.
    choose(page, page.get_by_role("combobox", name="Compare with"), "step 20")
    page.get_by_text(re.compile("^A is tiny, step 20, B is tiny, step 40")).wait_for()
    page.wait_for_url(re.compile(r"compare=step(\+|%20)20"))

    # Two texts; one is typed, and its tokens stay text.
    page.get_by_text("Two texts", exact=True).click()
    page.get_by_text(re.compile("^A is finance text, B is legal text")).wait_for()
    page.get_by_text("Your own text", exact=True).first.click()
    box = page.get_by_role("textbox", name="Text")
    box.wait_for()
    box.fill(HOSTILE)
    box.press("Control+Enter")
    page.get_by_text(re.compile("^A is your own text, B is legal text")).wait_for()
    page.get_by_text(re.compile("from one source")).wait_for()
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]')")
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.evaluate("window.__broken") is None
    assert not [url for url in requests if "example.com" in url]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
