"""The Experts page in a real browser: a row of the table opens its expert, and the link keeps it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

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
    page.wait_for_timeout(500)  # the grid is a canvas: its rows are there once it is drawn
    # The first row is expert 0 of layer 0; the first column of the canvas holds the marks that select.
    table.click(position={"x": 12, "y": 36 + 18})
    page.get_by_text("Expert 0 of layer 0 takes").wait_for()
    page.wait_for_url(re.compile("expert=0"))
    assert "layer=0" in page.url
    page.reload()
    page.get_by_text("Expert 0 of layer 0 takes").wait_for()
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
