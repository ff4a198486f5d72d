"""The row above every page in a real browser: the link with and without leave to copy, the tour, all by keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Server
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def tab(browser: Browser, leave: list[str]) -> Page:
    """A new person's browser; `leave`: what pages may do there."""
    fresh = browser.new_context(viewport={"width": 1400, "height": 900}, permissions=leave)
    page = fresh.new_page()
    page.set_default_timeout(180_000)
    return page


def test_the_link_is_copied_and_the_tour_comes_once(browser: Browser, dashboard: Server) -> None:
    page = tab(browser, ["clipboard-read", "clipboard-write"])
    page.goto(dashboard.url)
    tour = page.locator(".st-key-tour")
    tour.get_by_text("1 of 5.").wait_for()
    picture, above = page.locator("[data-testid=stVegaLiteChart]").first, tour.bounding_box()
    picture.wait_for()
    drawn = picture.bounding_box()
    assert above is not None
    assert drawn is not None
    assert above["y"] + above["height"] <= drawn["y"], "the tour covers the picture"

    # From the row on, Tab reaches the tour; Enter goes on, Esc closes it.
    page.get_by_role("button", name="? Tour").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    tour.get_by_text("2 of 5.").wait_for()
    page.keyboard.press("Escape")
    tour.wait_for(state="detached")

    copy = page.get_by_role("button", name="Copy link")
    copy.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    assert "run=tiny" in link
    assert "layer=" in link

    # It does not come back by itself; the question mark starts it again.
    page.goto(dashboard.url)
    page.locator("[data-testid=stVegaLiteChart]").first.wait_for()
    page.get_by_role("button", name="Copy link").wait_for()
    page.wait_for_timeout(500)
    assert tour.count() == 0
    page.get_by_role("button", name="? Tour").click()
    tour.get_by_text("1 of 5.").wait_for()
    page.context.close()

    # A new person who follows the link sees what it shows, without a tour; and copies by hand what may not be copied.
    page = tab(browser, [])
    page.add_init_script("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))")
    page.goto(link)
    page.locator("[data-testid=stVegaLiteChart]").first.wait_for()
    page.get_by_role("button", name="Copy link").click()
    field = page.get_by_label("Link to this page")
    assert field.input_value() == page.url
    assert page.locator(".st-key-tour").count() == 0
    page.keyboard.press("Escape")
    field.wait_for(state="hidden")
    page.context.close()
