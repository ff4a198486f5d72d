"""The Interventions page in a real browser: a click on the map chooses; both texts stream, stop, survive a reload."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moe_core.figures.maps import LEGEND_ROOM

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
Serve = Callable[[Path], AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained_root: Path, serve: Serve) -> Iterator[Any]:
    """A dashboard on a copy: what is measured is kept in the run's folder."""
    root = tmp_path_factory.mktemp("clicked")
    shutil.copytree(trained_root / "tiny", root / "tiny")
    with serve(root) as started:
        yield started


def test_a_click_chooses_the_expert_and_both_texts_are_written(server: Any, page: Page) -> None:
    page.set_default_timeout(180_000)
    page.goto(f"{server.url}/interventions?layer=1&expert=0")
    page.get_by_text(re.compile("^Without expert 0 of layer 1")).first.wait_for()
    chart = page.locator("[data-testid=stVegaLiteChart]").first
    chart.wait_for()
    page.locator(".t").first.wait_for()  # the page is whole: nothing moves any more
    box = chart.bounding_box()
    assert box is not None
    # The upper row is layer 0, below the scale; wherever the axes end, a third of the way is one of its cells.
    place = box["x"] + box["width"] / 3, box["y"] + LEGEND_ROOM + 45
    page.mouse.move(*place)
    page.mouse.click(*place)
    answer = page.get_by_text(re.compile(r"^Without expert \d of layer 0 the loss")).first
    answer.wait_for()
    page.wait_for_url(re.compile("layer=0"))
    clicked = re.search(r"expert (\d)", answer.inner_text())
    assert clicked is not None
    page.wait_for_url(re.compile(f"expert={clicked[1]}"))

    # Every token of the text says what the change costs it; dots mark those that had chosen the expert.
    page.locator(".legend").get_by_text(f"had chosen expert {clicked[1]} in layer 0").wait_for()
    assert page.get_by_role("radio", name="Change of loss").get_attribute("aria-checked") == "true"
    assert page.locator(".t.marked").count() > 0
    page.locator(".t.marked:not(.code)").first.click()  # not the start of a text, which nothing foresees
    described = page.locator(".path .token").inner_text()
    assert re.search(r"loss ([+\u2212]\d+(\.\d+)?|0) nats by the change", described)
    assert f"had chosen expert {clicked[1]} in layer 0" in described

    # Both texts come as they are written, and stop.
    page.get_by_role("button", name="Sampling").click()
    page.get_by_role("slider", name="New tokens").focus()
    page.keyboard.press("End")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Write both").click()
    page.get_by_text(re.compile("^writing ·")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(re.compile("^(stopped|finished) ·")).wait_for()
    page.wait_for_url(re.compile("texts="))
    page.locator(".text").first.locator(".t").first.wait_for()
    page.locator(".text").nth(2).wait_for()  # each comes when it comes
    before = page.locator(".text").first.inner_text()
    assert page.locator(".text").count() == 3

    # A reload, as after a closed laptop: the same expert, the same texts.
    page.reload()
    page.get_by_text(re.compile("^(stopped|finished) ·")).wait_for()
    # The view stands a moment before its tokens are drawn into it.
    page.locator(".text").nth(2).wait_for()
    page.locator(".text").first.locator(".t").first.wait_for()
    assert page.locator(".text").first.inner_text() == before
    assert page.get_by_text(re.compile(f"^Without expert {clicked[1]} of layer 0")).count() > 0
    assert page.locator("[data-testid=stException]").count() == 0
