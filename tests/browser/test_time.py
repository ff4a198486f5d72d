"""The Time page in a real browser: the film plays, stops at its end, and a link without a step means the newest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def colours(page: Page) -> list[str]:
    """The background of every token."""
    found: list[str] = page.locator(".t").evaluate_all("spans => spans.map(span => span.style.backgroundColor)")
    return found


def test_the_film_plays_to_its_end_and_the_text_changes_its_colours(dashboard: Any, page: Page) -> None:
    page.set_default_timeout(180_000)
    page.goto(f"{dashboard.url}/time?step=0&layer=1")
    page.locator(".t").first.wait_for()
    before = colours(page)
    page.get_by_role("button", name="Play").click()
    page.wait_for_url(re.compile("step=20"))
    page.wait_for_url(lambda url: "step=" not in url)  # the newest
    page.get_by_role("button", name="Play").wait_for()  # it stopped by itself
    assert colours(page) != before
    page.reload()
    page.locator(".t").first.wait_for()
    assert page.get_by_role("slider", name="Training step").get_attribute("aria-valuetext") == "40"
    assert page.locator("[data-testid=stException]").count() == 0
