"""From a click to an expert and back, in a real browser: one step of its history, without a bounce."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def ready(page: Page) -> None:
    """Wait until the page has run to its end."""
    page.wait_for_function(
        "document.querySelector('[data-test-script-state=notRunning]') "
        "&& !document.querySelector('[data-testid=stSkeleton]')"
    )


def test_a_cell_of_overview_goes_to_its_expert_and_back_finds_overview_with_its_choices(
    dashboard: Any, page: Page
) -> None:
    page.goto(f"{dashboard.url}/?layer=0&order=load")
    page.get_by_text("Load of every expert").wait_for()
    ready(page)
    for across in (0.35, 0.75):  # another expert each time: the one shown before is not stuck to
        cells = page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first
        cells.scroll_into_view_if_needed()
        box = cells.bounding_box()
        assert box is not None
        # Of the map's height the scale takes the first quarter, the axis the last.
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * 0.45)
        said = page.locator("#vg-tooltip-element", has_text=re.compile(r"Layer \d+, expert \d+"))
        said.wait_for()
        named = re.search(r"Layer (\d+), expert (\d+)", said.inner_text())
        assert named is not None
        layer, expert = named.groups()
        page.mouse.down()
        page.mouse.up()
        page.get_by_text(f"Expert {expert} of layer {layer} takes").wait_for()
        address = urlsplit(page.url)
        chosen = parse_qs(address.query)
        assert address.path == "/experts"
        assert (chosen["layer"], chosen["expert"], chosen["run"]) == ([layer], [expert], ["tiny"])
        ready(page)
        page.go_back()
        page.get_by_text("Load of every expert").wait_for()
        ready(page)
        page.wait_for_timeout(500)  # a click that is remembered would lead forward again
        chosen = parse_qs(urlsplit(page.url).query)
        assert urlsplit(page.url).path == "/"
        assert (chosen["layer"], chosen["order"]) == (["0"], ["load"])
        assert page.get_by_role("radio", name="load", exact=True).is_checked()
    assert page.locator("[data-testid=stException]").count() == 0
