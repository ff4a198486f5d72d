"""The Training page of a live run in a real browser: its charts stay where they are while they move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from routers_support import model_with
from watch_support import train

from moe_core.training import watch

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
CHARTS = "[data-testid=stVegaLiteChart]"
DRAWN = f"{CHARTS} svg, {CHARTS} canvas"
# Of the horizontal axis.
TICKS = """[...document.querySelector('[data-testid=stVegaLiteChart] svg').querySelectorAll(
    '.role-axis-label text[text-anchor=middle]')].map(one => one.textContent).join(' ')"""
REMEMBER = """selector => {
    const main = document.querySelector('[data-testid=stMain]');
    main.scrollTo(0, 250);
    window.before = {
        drawn: [...document.querySelectorAll(selector)], scroll: main.scrollTop,
        heights: [...document.querySelectorAll(selector)].map(one => one.getBoundingClientRect().height),
    };
    window.palest = 1;
    setInterval(() => document.querySelectorAll('.st-key-live [data-testid=stElementContainer]').forEach(
        one => window.palest = Math.min(window.palest, parseFloat(getComputedStyle(one).opacity))), 20);
}"""
AFTER = """selector => ({
    kept: window.before.drawn.every(one => one.isConnected),
    scrolled: document.querySelector('[data-testid=stMain]').scrollTop - window.before.scroll,
    heights: [...document.querySelectorAll(selector)].map(one => one.getBoundingClientRect().height),
    before: window.before.heights, palest: window.palest,
})"""


def test_charts_of_a_live_run_keep_their_place_while_new_readings_come(
    serve: Callable[[Path], AbstractContextManager[Any]], page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)
    monkeypatch.setattr("moe_core.training.watch_log.STATUS_SECONDS", 0.0)
    model = model_with("softmax").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with serve(tmp_path) as server, watch(model, run="theirs", every=2, root=tmp_path) as log:
        for step in train(model, optimizer, steps=8):
            log.record(loss=5.0 - step / 100, learning_rate=0.01)

        def follow(done: int, loss: str) -> None:
            """Eight steps more, until the page's numbers and then its pictures show them."""
            for step in train(model, optimizer, steps=8):
                log.record(loss=5.0 - step / 100 - done / 10, learning_rate=0.01)
            page.get_by_text(f"Now at step {done}").first.wait_for()
            page.wait_for_function(
                "start => [...document.querySelectorAll('[data-testid=stVegaLiteChart] svg text')].some("
                "text => text.textContent.startsWith(start))", arg=loss,
            )  # fmt: skip

        page.goto(f"{server.url}/training?run=theirs")
        page.get_by_text("Now at step 8").first.wait_for()
        page.get_by_text("theirs has no gradient norm").wait_for()  # the last of the pictures
        page.wait_for_function("selector => document.querySelectorAll(selector).length >= 5", arg=DRAWN)
        page.evaluate(REMEMBER, DRAWN)
        for done, loss in ((16, "train 3."), (24, "train 2.")):
            follow(done, loss)
        after = page.evaluate(AFTER, DRAWN)
        assert after["kept"], "a chart was made anew"
        assert after["scrolled"] == 0
        assert after["heights"] == after["before"]
        assert after["palest"] == 1, "a chart faded"

        # A part that was zoomed into stays in sight.
        whole = page.evaluate(TICKS)
        page.locator(CHARTS).first.hover()
        page.keyboard.down("Shift")
        page.mouse.wheel(0, -400)
        page.keyboard.up("Shift")
        page.wait_for_function(f"whole => {TICKS} !== whole", arg=whole)
        page.wait_for_timeout(1000)  # the page is told 0.15 s after the wheel's last move
        zoomed = page.evaluate(TICKS)
        follow(32, "train 1.")
        assert page.evaluate(TICKS) == zoomed

        # What is drawn along is in the address as soon as it is chosen.
        page.get_by_role("radio", name="tokens").click()
        page.wait_for_url("**along=tokens**")
        assert page.locator("[data-testid=stException]").count() == 0
