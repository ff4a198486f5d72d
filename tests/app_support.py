"""The dashboard under AppTest: opened as with `streamlit run app`, and read without Markdown escapes."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from torch.nn.modules.module import register_module_forward_pre_hook

from moe_core.inference import command_line_subjects, subjects
from moe_core.inference.opening_job import running_jobs

ENTRY = Path(__file__).resolve().parent.parent / "app" / "streamlit_app.py"
Open = Callable[..., AppTest]
TIMEOUT_SECONDS = 240
SOON = 240.0
"""Seconds that anything may take here."""


@contextmanager
def opening(patch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Yield what opens the dashboard; what was opened in it besides runs is closed in the end."""

    def opened(
        root: Path, page: str = "overview", arguments: tuple[str, ...] | None = None, wait: bool = True, **query: str
    ) -> AppTest:
        """On this checkpoints folder, at a page, as from a link with `query`; `arguments` as after `--`, read anew.
        `wait` for what is being opened."""
        patch.setenv("MOESCOPE_CHECKPOINTS", str(root))
        if arguments is not None:
            patch.setattr("sys.argv", [str(ENTRY), *arguments])
            patch.setattr(command_line_subjects, "_command_line", command_line_subjects._CommandLine())
        at = AppTest.from_file(str(ENTRY), default_timeout=TIMEOUT_SECONDS)
        for key, value in query.items():
            at.query_params[key] = value
        settled(at) if wait else at.run()
        if page != "overview":
            at.switch_page(f"app_pages/{page}.py").run()
        assert not at.exception, at.exception
        return at

    yield opened
    for one in subjects.OPENED.all():
        subjects.OPENED.close(one.name)


def followed_link(page: str, **query: str) -> AppTest:
    """A browser that follows a link to a page, without another page before, once `opening` has told on which runs."""
    at = AppTest.from_file(str(ENTRY), default_timeout=TIMEOUT_SECONDS)
    for key, value in query.items():
        at.query_params[key] = value
    return at.switch_page(f"app_pages/{page}.py").run()


def settled(at: AppTest) -> AppTest:
    """Run it, and again once everything that is being opened has been."""
    at.run()
    while running_jobs():
        wait_until(lambda: not running_jobs())
        at.run()
    return at


def in_box(at: AppTest, key: str) -> str:
    """The present key of a widget in the box that opens files, which gets new ones each time it is emptied."""
    return f"{key}_{at.session_state.get('open_count', 0)}"


def shown(at: AppTest) -> str:
    """All text of the page but the side bar's, Markdown escapes taken out."""
    main = at.main
    parts = [*main.title, *main.markdown, *main.caption, *main.error, *main.info, *main.code]
    return "\n".join(str(part.value) for part in parts).replace("\\", "")


def payloads(at: AppTest) -> list[dict[str, Any]]:
    """What the page sent to its token views."""
    return [payload for payload in sent_to_components(at.main) if "series" in payload]


def sent_to_components(part: Any) -> list[dict[str, Any]]:
    """What the page sent to the components of one part, `at.main` or `at.sidebar`."""
    components = (element for element in part if element.proto.__class__.__name__ == "BidiComponent")
    return [json.loads(component.proto.json) for component in components]


def payload_of(at: AppTest) -> dict[str, Any]:
    """The same where there is one."""
    (payload,) = payloads(at)
    return payload


def numbers(packed: str, dtype: str) -> np.ndarray:
    """An array as the token view is sent it."""
    return np.frombuffer(base64.b64decode(packed), dtype)


def text_of(payload: dict[str, Any]) -> str:
    """The text as the reader sees it, without the signs before line breaks and the start marks."""
    pieces = [payload["pieces"][i] for i in numbers(payload["tokens"], "<i4")]
    return "".join(piece[0] for piece in pieces if piece[2] != "start of text").replace("↵\n", "\n")


def work_of_a_rerun(at: AppTest) -> Counter[str]:
    """Draw the page again and count what it took, as a clock would, but the same on every machine.

    "calls": calls of Python functions in the page's thread. "forward": forward passes of any module.
    """
    work: Counter[str] = Counter()
    forward = register_module_forward_pre_hook(lambda *_: work.update(forward=1))

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            work["calls"] += 1

    threading.setprofile(count)  # AppTest runs the page in a thread that it starts anew
    try:
        at.run()
    finally:
        threading.setprofile(None)
        forward.remove()
    assert not at.exception, at.exception
    assert work["calls"] > 1000, "the page's thread was not counted"
    return work


def wait_until(true: Callable[[], bool]) -> None:
    """Block until it is true, at most SOON seconds."""
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
