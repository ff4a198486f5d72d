"""The Flow page in a real browser: the bands are drawn in both themes and can be taken away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bands_are_drawn_and_taken_away_and_a_closer_look_opens(dashboard: Any, browser: Browser, scheme: Any) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{dashboard.url}/flow?layer=0")
    bands = page.locator("path.sankey-link")
    bands.first.wait_for()
    assert bands.count() > 4
    assert page.locator("g.sankey-node").count() == 8  # two layers of four experts
    # Plotly's own halo is white, also on a dark page.
    assert page.locator("text.node-label").first.evaluate("label => getComputedStyle(label).textShadow") == "none"
    # Its numbers, and a page that needs no network.
    for label, start in (("CSV", b"layer,next_layer"), ("HTML", b"<!DOCTYPE html>")):
        with page.expect_download() as info:
            page.locator("[data-testid=stDownloadButton]", has_text=label).first.click()
        assert Path(info.value.path()).read_bytes()[:200].lower().lstrip().startswith(start.lower())
    page.get_by_role("radio", name="Chosen together").or_(
        page.get_by_role("button", name="Chosen together")
    ).first.click()
    page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()
    assert page.locator("[data-testid=stException]").count() == 0
    context.close()
