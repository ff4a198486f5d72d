"""The Chat page in a real browser: what is written goes on, is seen by others, branches, and is gone once deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from test_every_page import LOCAL, checker, settle

from moe_core.conversations.database import conversations_path
from moe_core.conversations.store import Conversations
from moe_core.conversations.threads import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
ENDLESS = Settings("tiny", max_new_tokens=1_000_000, temperature=0)
HOSTILE = "<img src=x onerror=alert(1)> **b** ![x](http://e.example/x.png)\n  <script>alert(2)</script>"
SECRET = "Rosebud"


def test_a_thread_is_written_seen_by_others_branched_and_deleted(dashboard: Any, page: Page, browser: Browser) -> None:
    kept = Conversations(conversations_path(dashboard.checkpoints))
    thread = kept.new_thread(ENDLESS)
    fetched: list[str] = []
    dialogs: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    address = f"{dashboard.url}/chat?run=tiny&layer=1&thread={thread}"
    page.goto(address)
    box = page.get_by_role("textbox", name="Message to tiny")
    box.fill("on")
    box.press("Enter")
    stop = page.get_by_role("button", name="Stop", exact=True)
    stop.wait_for()

    # It goes on when another page is opened, and another browser sees it grow.
    page.locator("#moescope-skip-link").wait_for(state="attached")
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Flow").click()
    page.get_by_role("heading", name="How do tokens travel").wait_for()
    other = browser.new_context().new_page()
    other.set_default_timeout(180_000)
    other.goto(address)
    for _ in range(2):
        before = tokens_shown(other)
        other.wait_for_function(f"({TOKENS_SHOWN}) > {before}")
    page.go_back()
    stop.wait_for()
    other.get_by_role("button", name="Stop", exact=True).click()
    for one in (other, page):
        one.get_by_text("· stopped").wait_for()
    text = kept.conversation(thread).messages[-1].text.strip()  # type: ignore[union-attr]
    shown = page.get_by_test_id("stText").nth(1).inner_text().removesuffix(" …")
    assert shown
    assert text.startswith(shown)

    # Another answer, and a branch with an edited message, both seen in the other browser.
    kept.set_settings(thread, Settings("tiny", max_new_tokens=10, temperature=0))
    page.get_by_role("button", name="Answer again").click()
    for one in (page, other):
        one.get_by_text("2 of 2").wait_for()
    # The same without its busiest expert, beside it: a slot that the change has emptied is unused.
    page.get_by_text("The same again without an expert").click()
    page.get_by_role("button", name="Write it beside this one").click()
    page.get_by_text("without expert").first.wait_for()
    page.get_by_text("not in the other").first.wait_for()
    hints: set[str] = set()
    for token in page.locator(".t").all():
        token.click()
        hints |= set(page.locator(".slot .hint").all_inner_texts())
    assert hints == {"unused"}
    page.get_by_role("button", name="Previous", exact=True).click()
    page.get_by_text("1 of 2").wait_for()
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_role("textbox", name="Your message").fill(HOSTILE)
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Send as a new branch").click()
    for one in (page, other):
        one.get_by_text("<script>alert(2)").wait_for()
    assert page.get_by_test_id("stText").first.inner_text() == HOSTILE
    page.get_by_role("button", name="Answer again").or_(page.get_by_text("context window")).first.wait_for()
    page.reload()
    page.get_by_text("<script>alert(2)").wait_for()
    page.get_by_text("2 of 2").wait_for()

    # More than the model reads at once: kept, and told of.
    box.fill(f"{SECRET} " * 14_000)
    box.press("Enter")
    page.get_by_text("at once (its context window)").last.wait_for()
    page.get_by_text("was not answered to its end").wait_for()

    # In the hand, and to who cannot see it.
    page.set_viewport_size({"width": 420, "height": 900})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    check = checker()
    assert check(page) == []
    page.get_by_role("button", name="Threads").click()
    page.get_by_role("textbox", name="Search all messages").wait_for()
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert check(page) == []

    # Deleted: gone here, there, and from the disk.
    page.get_by_role("button", name="Delete", exact=True).first.click()
    page.get_by_role("button", name="Delete for good").click()
    page.get_by_text("No thread yet").wait_for()
    assert "thread=" not in page.url
    other.get_by_text("The thread of this link was deleted").wait_for()
    files = list(dashboard.checkpoints.glob(f"{kept.path.name}*"))
    assert files
    assert not [file.name for file in files if SECRET.encode() in file.read_bytes()]
    other.context.close()
    assert dialogs == []
    assert [url for url in fetched if not LOCAL.match(url)] == []


TOKENS_SHOWN = (
    "Math.max(0, ...[...document.querySelectorAll('[data-testid=stCaptionContainer]')]"
    ".map((one) => Number((/([0-9,]+) tokens? /.exec(one.innerText) || ['', '0'])[1].replace(/,/g, ''))))"
)
"""How many tokens the answer has, as the page says."""


def tokens_shown(page: Page) -> int:
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    return int(page.evaluate(TOKENS_SHOWN))
