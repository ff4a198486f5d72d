"""The browser's own Back, Forward and reload, in a real browser: each page stands again as it was left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_lists import choose

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
LAYER = 0
"""Not the one that is chosen at first."""


@dataclass(frozen=True)
class Visit:
    """A page of the navigation, with something that can be chosen on it."""

    name: str
    title: str
    chosen: str = ""
    """What is clicked, by its role and name, such as "radio Load"; "" where the page has nothing of its own."""
    url: str = ""
    """What that leaves in the URL, besides the run and the layer."""

    def choose(self, page: Page) -> None:
        if self.chosen:
            role, _, name = self.chosen.partition(" ")
            page.get_by_test_id("stMain").get_by_role(role, name=name, exact=True).click()  # type: ignore[arg-type]

    def expect(self, page: Page, run: str) -> None:
        """It has been drawn to its end, for the run, the layer and the choice that the URL names; nothing is empty."""
        page.get_by_role("heading", name=self.title.format(run=run), exact=True).wait_for()
        for part in filter(None, (f"run={run}", f"layer={LAYER}", self.url)):
            page.wait_for_function("part => location.search.slice(1).split('&').includes(part)", arg=part)
        side_bar = page.get_by_test_id("stSidebar")
        side_bar.get_by_role("radio", name=str(LAYER), exact=True, checked=True).wait_for()
        side_bar.get_by_test_id("stSelectbox").first.get_by_text(run, exact=True).or_(
            side_bar.locator(f"input[value='{run}']")
        ).first.wait_for()
        if self.chosen:
            role, _, name = self.chosen.partition(" ")
            page.get_by_test_id("stMain").get_by_role(role, name=name, exact=True, checked=True).wait_for()  # type: ignore[arg-type]
        page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]')")
        found = page.locator("[data-testid=stAlertContentError], [data-testid=stException]").all_inner_texts()
        assert not found, (self.name, found)


VISITS = [
    Visit("Overview", "What is {run}, and is its routing healthy?"),
    Visit("Tokens", "Which expert does each token go to?", "radio legal", "text=legal"),
    Visit("Domains", "Which experts prefer which kind of text?"),
    Visit("Experts", "What does this expert do, and what is it worth?", "radio 3", "expert=3"),
    Visit("Flow", "How do tokens travel through the layers?", "radio Chosen together", "flow_shown=Chosen+together"),
    Visit("Generation", "Which experts write which words?"),
    Visit("Chat", "Which experts write the answers?"),
    Visit("Interventions", "What happens without an expert?", "radio legal", "loss_text=legal"),
    Visit("Training", "Is {run} learning, and are its experts forming?"),
    Visit("Time", "When did each expert become what it is?", "radio Load", "time_shown=Load"),
    Visit("Compare", "What is different?", "radio Two texts", "compare_kind=Two+texts"),
]


@pytest.fixture(scope="module")
def two_runs(
    trained_root: Path, tmp_path_factory: pytest.TempPathFactory, serve: Callable[[Path], AbstractContextManager[Any]]
) -> Any:
    """A server with two runs; one of them is chosen at first."""
    root = tmp_path_factory.mktemp("two")
    for name in ("tiny", "small"):
        shutil.copytree(trained_root / "tiny", root / name)
    with serve(root) as server:
        yield server


def test_back_and_forward_show_every_page_as_it_was(two_runs: Any, page: Page) -> None:
    page.goto(two_runs.url)
    page.locator("#moescope-skip-link").wait_for(state="attached")
    picker = page.get_by_role("combobox", name="Run")
    picker.wait_for()
    page.wait_for_url("**/?*run=*")
    run = next(name for name in ("tiny", "small") if f"run={name}" not in page.url)
    choose(page, picker, run)
    page.get_by_test_id("stSidebar").get_by_role("radio", name=str(LAYER), exact=True).click()
    VISITS[0].expect(page, run)
    for visit in VISITS[1:]:
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=visit.name).click()
        page.get_by_role("heading", name=visit.title.format(run=run), exact=True).wait_for()
        visit.choose(page)
        visit.expect(page, run)
    for visit in reversed(VISITS[:-1]):
        page.go_back()
        visit.expect(page, run)
    for visit in VISITS[1:]:
        page.go_forward()
        visit.expect(page, run)


def test_back_to_the_bare_address_and_from_one_expert_to_another(two_runs: Any, page: Page) -> None:
    page.goto("about:blank")
    page.goto(two_runs.url)
    page.wait_for_url("**/?*run=*")
    page.get_by_role("heading", name="healthy").wait_for()
    page.go_back()  # to the address without a choice
    page.get_by_role("heading", name="healthy").wait_for()
    page.wait_for_function("location.search.includes('run=') && location.search.includes('layer=')")

    # An expert of one page is that of the next; Back finds the one that was left.
    page.goto(f"{two_runs.url}/experts?run=tiny&layer=0&expert=3")
    page.get_by_test_id("stMain").get_by_role("radio", name="3", exact=True, checked=True).wait_for()
    page.locator("#moescope-skip-link").wait_for(state="attached")
    navigation = page.get_by_test_id("stSidebarNav")
    navigation.get_by_role("link", name="Interventions").click()
    page.wait_for_url("**/interventions*changed_expert=3*")
    choose(page, page.get_by_role("combobox", name="Expert of layer 0"), "1", exact=True)
    page.wait_for_url("**/interventions*changed_expert=1*")
    page.get_by_text("without expert 1 of layer 0").first.wait_for()
    page.go_back()
    page.wait_for_url("**/experts*expert=3*")
    page.get_by_test_id("stMain").get_by_role("radio", name="3", exact=True, checked=True).wait_for()

    # Step 0 is a step like others, not none; a reload keeps it.
    page.goto(f"{two_runs.url}/time?run=tiny&layer=0&step=0")
    at_first = "document.querySelector('[data-testid=stSlider] input')?.ariaValueText === '0'"
    page.wait_for_function(at_first)
    page.reload()
    page.wait_for_function(at_first)
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]')")
    page.locator("#moescope-skip-link").wait_for(state="attached")
    assert "step=0" in page.url
    navigation.get_by_role("link", name="Flow").click()
    page.get_by_role("heading", name="How do tokens travel").wait_for()
    page.go_back()
    page.wait_for_function(at_first)


def test_a_link_shows_a_text_of_ones_own_in_another_browser(two_runs: Any, page: Page, browser: Browser) -> None:
    page.goto(f"{two_runs.url}/tokens?run=tiny&layer=0&text=Your+own+text")
    box = page.get_by_role("textbox", name="Text", exact=True)
    for text in ("The first secret", "The second secret"):
        box.fill(text)
        before = page.url
        box.press("Control+Enter")
        page.wait_for_function("before => location.href !== before && location.search.includes('saved-')", arg=before)
    assert "secret" not in page.url
    other = browser.new_context().new_page()
    other.set_default_timeout(180_000)
    other.goto(page.url)
    expect_text = "document.querySelector('[data-testid=stTextArea] textarea')?.value === 'The second secret'"
    other.wait_for_function(expect_text)
    other.locator(".t").first.wait_for()

    # Deleted in one browser: the other keeps what it shows, and whoever follows the link from now on is told.
    page.get_by_role("button", name="Saved texts").click()
    page.get_by_role("button", name="Delete all").click()
    page.get_by_text("No text is kept").wait_for()
    assert "saved-" not in page.url
    other.reload()
    other.get_by_text("The text of this link was deleted").wait_for()
    other.context.close()
