"""The box that opens files, in a real browser: by path, by upload, with progress, its errors, and after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Server
    from playwright.sync_api import Browser, Page

RECORDINGS = Path(__file__).resolve().parents[1] / "fixtures" / "recordings"
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
WIDE, NARROW = (1400, 900), (420, 900)


def long_recording(path: Path) -> Path:
    """Answers that take many seconds to read on any machine."""
    experts = np.arange(120 * 6 * 4).reshape(120, 6, 4) % 16
    answer = json.dumps({"prompt_token_ids": list(range(121)), "routed_experts": experts.tolist()})
    path.write_text(f"{answer}\n" * 4000, encoding="utf-8")
    return path


def rank_file(path: Path, counts: list[int]) -> str:
    path.write_text(json.dumps({"iter": 1, "block": "decoder", "layer": 0, "tpe": [counts]}) + "\n", encoding="utf-8")
    return str(path)


def open_box(page: Page) -> None:
    """Unfold the side bar where it is folded, and the box in it."""
    page.get_by_test_id("stPopoverButton").first.wait_for(state="attached")
    unfold = page.get_by_test_id("stExpandSidebarButton")
    if unfold.count() and unfold.first.is_visible():
        unfold.first.click()
    page.get_by_role("button", name="Open a file or a model").click()
    page.get_by_role("textbox", name="Path on this computer").wait_for()


def open_path(page: Page, path: Path) -> None:
    field = page.get_by_role("textbox", name="Path on this computer")
    field.fill(str(path))
    field.press("Enter")
    page.get_by_test_id("stPopoverBody").get_by_test_id("stBaseButton-primary").click()


def heading(page: Page, text: str) -> None:
    page.get_by_role("heading", name=text).first.wait_for()


def in_a_tab(browser: Browser, size: tuple[int, int], scheme: Literal["light", "dark"]) -> Page:
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme).new_page()
    page.set_default_timeout(180_000)
    return page


def test_files_are_opened_and_remembered(
    browser: Browser,
    serve: Callable[[Path], AbstractContextManager[Server]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))
    page = in_a_tab(browser, WIDE, "light")
    with serve(tmp_path / "runs") as server:
        page.goto(server.url)

        # An error, in one line in the box; then counts by their path, which close it.
        open_box(page)
        open_path(page, tmp_path / "nothing.gguf")
        page.get_by_test_id("stPopoverBody").get_by_text("It was not opened.").wait_for()
        open_path(page, RECORDINGS / "llama.cpp-imatrix.gguf")
        heading(page, "What are counts llama.cpp-imatrix.gguf")
        assert page.get_by_test_id("stPopoverBody").count() == 0
        assert "imatrix.gguf" in page.url
        assert str(RECORDINGS) not in page.url

        # A recording by upload, and the files of two ranks at once.
        open_box(page)
        page.locator("input[type=file]").set_input_files(str(RECORDINGS / "vllm-0.30-serve_many.jsonl"))
        heading(page, "What is trace vllm-0.30-serve_many.jsonl")
        open_box(page)
        ranks = [rank_file(tmp_path / "rank0.jsonl", [3, 5]), rank_file(tmp_path / "rank1.jsonl", [6, 2])]
        page.locator("input[type=file]").set_input_files(ranks)
        heading(page, "What are counts rank0.jsonl and 1 more")

        # Progress with the time left, in the side bar, until somebody cancels it.
        open_box(page)
        open_path(page, long_recording(tmp_path / "long.jsonl"))
        bar = page.get_by_test_id("stSidebar").get_by_test_id("stProgress")
        bar.get_by_text("left").wait_for()
        assert "Opening long.jsonl: " in bar.inner_text()
        assert page.get_by_test_id("stPopoverBody").count() == 0, "the box lies over the progress"
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("long.jsonl was not opened: it was cancelled.").first.wait_for()
        bar.wait_for(state="detached")

        # After a restart of the server all of them are offered, without a second reading; on a narrow screen too.
        page.context.close()
        server.stop()
        kept = sorted(path.name for path in (tmp_path / "cache" / "converted").iterdir())
        server.start()
        page = in_a_tab(browser, NARROW, "dark")
        page.goto(server.url)
        open_box(page)
        page.get_by_role("button", name="vllm-0.30-serve_many.jsonl").click()
        heading(page, "What is trace vllm-0.30-serve_many.jsonl")
        open_box(page)
        page.get_by_role("button", name="llama.cpp-imatrix.gguf").click()
        heading(page, "What are counts llama.cpp-imatrix.gguf")
        assert sorted(path.name for path in (tmp_path / "cache" / "converted").iterdir()) == kept
        assert page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count() == 0
        page.context.close()
