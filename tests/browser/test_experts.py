"""The Experts page in a real browser: a row opens its expert or its token, and the links keep both."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from browser_lists import click_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def test_a_row_of_the_table_opens_its_expert_and_the_link_brings_it_back(dashboard: Any, page: Page) -> None:
    page.set_default_timeout(180_000)
    page.goto(f"{dashboard.url}/experts?layer=1&expert=3")
    page.get_by_text("Expert 3 of layer 1 takes").wait_for()
    page.get_by_text("All experts").click()
    table = page.locator("[data-testid=stDataFrame]").first
    table.wait_for()
    # The first row is expert 0 of layer 0; the first column of the canvas holds the marks that select.
    click_until(page, table, 12, page.get_by_text("Expert 0 of layer 0 takes"))
    page.wait_for_url(re.compile("expert=0"))
    assert "layer=0" in page.url
    page.reload()
    page.get_by_text("Expert 0 of layer 0 takes").wait_for()
    address = page.url
    page.get_by_role("textbox", name="Find").fill("the")
    page.keyboard.press("Enter")
    page.get_by_text(", of ").and_(page.get_by_text(" in all. A cell shows its whole row")).wait_for()
    contexts = page.locator("[data-testid=stDataFrame]").first
    contexts.scroll_into_view_if_needed()
    # A cell of the first row, and the mark that selects it.
    click_until(page, contexts, 300, page.get_by_role("button", name="Open in Tokens"))
    click_until(page, contexts, 12, page.locator(".t.selected"))
    document, token = re.search(r"document=(\d+)&token=(\d+)", page.url).groups()  # type: ignore[union-attr]
    assert page.locator(".t.selected").get_attribute("data-i") == token
    assert page.locator(".layer.now .slot b").filter(has_text=re.compile("^0$")).count() == 1, "it chose the expert"
    page.locator(".text").focus()
    page.keyboard.press("ArrowLeft" if int(token) else "ArrowRight")
    beside = str(int(token) - 1 if int(token) else 1)
    page.wait_for_url(re.compile(f"document={document}&token={beside}$"))
    page.reload()
    page.locator(f".t.selected[data-i='{beside}']").wait_for()
    page.get_by_text("goes to expert").wait_for()  # the page is drawn to its end
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]')")
    page.go_back()
    page.get_by_text("Expert 0 of layer 0 takes").wait_for()
    assert sorted(re.split("[?&]", page.url)) == sorted(re.split("[?&]", address))
    page.go_forward()
    page.locator(".t.selected").wait_for()
    page.get_by_text("goes to expert").wait_for()  # the page is drawn to its end
    page.locator(".links button").first.click()
    page.get_by_text("Where it is chosen").wait_for()
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
