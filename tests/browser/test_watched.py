"""A training of another program in a real browser: the pages follow it by themselves."""

from __future__ import annotations

import re
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
SHOWS = {
    "training": "Now at step {step}",
    "": "read at steps 2 to {step}",
    "time": "At step {step} expert",
}


def test_training_overview_and_time_follow_a_watched_training(
    serve: Callable[[Path], AbstractContextManager[Any]], page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)
    monkeypatch.setattr("moe_core.training.watch_log.STATUS_SECONDS", 0.0)
    model = model_with("softmax").train()
    optimizer, done = torch.optim.SGD(model.parameters(), lr=0.01), 4
    with serve(tmp_path) as server, watch(model, run="theirs", every=2, root=tmp_path):
        list(train(model, optimizer, steps=done))
        for path, words in SHOWS.items():
            page.goto(f"{server.url}/{path}?run=theirs")
            page.get_by_text(words.format(step=done)).first.wait_for()
            list(train(model, optimizer, steps=2))
            done += 2
            page.get_by_text(words.format(step=done)).first.wait_for()
            assert page.locator("[data-testid=stException]").count() == 0
            page.set_viewport_size({"width": 420, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            page.set_viewport_size({"width": 1400, "height": 900})
        assert page.get_by_text(re.compile("live")).count()
