"""Choosing from lists and tables of the dashboard in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def choose(page: Page, opened_by: Locator, name: str, *, exact: bool = False) -> None:
    """An option of the list that a click on `opened_by` opens. A page that is drawn anew just then closes the list: it
    is opened again."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: `make test` installs it")
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]')")
    option = page.get_by_role("option", name=name, exact=exact)
    for _ in range(5):
        opened_by.click()
        try:
            option.click(timeout=15_000)
        except playwright.TimeoutError:
            page.keyboard.press("Escape")
        else:
            return
    raise AssertionError(f"no option {name!r} could be clicked")


def click_until(page: Page, table: Locator, x: int, comes: Locator) -> None:
    """In the first row of a table, `x` points from its left, until `comes` is there. A table is a canvas, which takes
    no click before its rows are drawn, and nothing tells when that is."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: `make test` installs it")
    for _ in range(5):
        page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]')")
        page.wait_for_timeout(500)
        table.click(position={"x": x, "y": 36 + 18})
        try:
            comes.first.wait_for(timeout=30_000)
        except playwright.TimeoutError:
            continue
        return
    raise AssertionError("no click on the table's first row was taken")
