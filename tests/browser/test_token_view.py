"""The token view in a real browser: what a reader sees, hovers, clicks and scrubs, and what no token can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
HOSTILE = [
    "<img src=x onerror=window.__broken=1>",
    ":red[x]",
    "$x$",
    "</style><script>window.__broken=1</script>",
    "![](http://example.com/a.png)",
    "<!-- & &lt; -->",
]


def open_tokens(page: Page, server: Any, text: str | None = None) -> None:
    """The Tokens page, with `text` typed by the reader if it is given."""
    page.goto(f"{server.url}/tokens")
    page.locator(".t").first.wait_for()
    # To its end: what the page still sends would draw the text anew, in the layer that it begins with.
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]')")
    if text is not None:
        page.get_by_role("radio", name="Your own text").or_(page.get_by_role("button", name="Your own text")).click()
        box = page.get_by_role("textbox", name="Text")
        box.wait_for()
        box.fill(text)
        box.press("Control+Enter")
        wait_for_text(page, text.split("\n")[0][:20])


@pytest.fixture(scope="module")
def opened(dashboard: Any, browser: Browser) -> Iterator[Page]:
    """The page with its example text, opened once: opening it takes longer than most tests."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(180_000)
    open_tokens(page, dashboard)
    yield page
    context.close()


@pytest.fixture
def tokens(opened: Page) -> Page:
    """The example text as it looks at first, but for the layer and the selected token."""
    opened.get_by_role("radio", name="First expert", exact=True).click()
    opened.locator(".numbers input").set_checked(False)
    opened.locator(".text").evaluate("box => { box.scrollTop = 0; }")
    opened.mouse.move(5, 5)
    return opened


def wait_for_text(page: Page, text: str) -> None:
    page.wait_for_function(
        """text => {
            const host = [...document.querySelectorAll('*')].find(node => node.shadowRoot?.querySelector('.view'));
            return host?.shadowRoot.querySelector('.text').textContent.includes(text);
        }""",
        arg=text,
    )


def colours(page: Page) -> list[str]:
    found: list[str] = page.locator(".t").evaluate_all("spans => spans.map(span => span.style.backgroundColor)")
    return found


def scrub(page: Page, place: int) -> None:
    page.locator(".scrub input").evaluate(
        "(input, place) => { input.value = place; input.dispatchEvent(new Event('input', { bubbles: true })); }", place
    )


def inside(token: Locator, box: Locator) -> bool:
    inner, outer = token.bounding_box(), box.bounding_box()
    assert inner is not None
    assert outer is not None
    return outer["y"] - 1 <= inner["y"] and inner["y"] + inner["height"] <= outer["y"] + outer["height"] + 1


def test_hostile_tokens_are_literal_text_and_run_nothing(dashboard: Any, page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    open_tokens(page, dashboard, "\n".join(HOSTILE))
    shown = page.locator(".text").evaluate("box => box.textContent")
    for token in HOSTILE:
        assert token in shown
    # Select every token once, so that the tip, the path and the figures carry their text as well.
    page.locator(".text").focus()
    for _ in range(min(15, page.locator(".t").count())):
        page.keyboard.press("ArrowRight")
    page.locator(".t").nth(5).hover()
    page.locator(".tip").wait_for()
    page.get_by_text("goes to expert").wait_for()
    assert page.evaluate("window.__broken") is None
    assert page.locator(".view img, .view script").count() == 0
    assert not [url for url in requests if "example.com" in url]


def test_line_breaks_and_spaces_are_kept_and_hidden_characters_are_codes(dashboard: Any, page: Page) -> None:
    open_tokens(page, dashboard, "if x:\n    y = 1\n\u202ea\nlast")
    shown = page.locator(".text").evaluate("box => box.textContent")
    assert "if x:↵\n    y = 1↵\n" in shown
    assert page.locator(".text").evaluate("box => getComputedStyle(box).whiteSpace") == "pre-wrap"
    assert "\u202e" not in shown
    assert "‹" in shown


def test_hovering_a_token_shows_its_experts_weights_and_surprise(tokens: Page) -> None:
    page = tokens
    page.locator(".t").nth(12).hover()
    tip = page.locator(".tip")
    tip.wait_for()
    words = tip.inner_text()
    assert tip.locator(".slot").count() == 2
    weights = [float(text) for text in tip.locator(".slot .share").all_inner_texts()]
    assert sum(weights) == pytest.approx(1, abs=0.02)
    assert "token 12" in words
    assert "router entropy" in words
    assert "surprise" in words
    assert "guess no." in words
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_scrubbing_recolours_at_once_without_python_and_without_scrolling(tokens: Page) -> None:
    page = tokens
    scrub(page, 1)
    before = colours(page)
    # Half of the way: at its end a box whose text becomes a point shorter scrolls back by that point.
    scrolled = page.locator(".text").evaluate(
        "box => { box.scrollTop = Math.floor((box.scrollHeight - box.clientHeight) / 2); return box.scrollTop; }"
    )
    assert scrolled > 0
    top = page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop")
    page.context.set_offline(True)  # nothing may be asked of the server
    after = page.locator(".scrub input").evaluate(  # read before the browser does anything else: it was at once
        "input => { input.value = 0; input.dispatchEvent(new Event('input', { bubbles: true }));"
        " return [...input.getRootNode().querySelectorAll('.t')].map(span => span.style.backgroundColor); }"
    )
    assert colours(page) == after
    page.context.set_offline(False)
    assert len(after) == len(before)
    assert after != before
    assert page.locator(".scrub output").inner_text() == "0"
    # A line's height is no whole number of points: the browser may round the place of the same line by one.
    assert abs(page.locator(".text").evaluate("box => box.scrollTop") - scrolled) <= 1
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop") == top


def test_letting_the_scrubber_go_chooses_the_layer_for_all_pages(tokens: Page) -> None:
    page = tokens
    page.locator(".scrub input").focus()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.get_by_text("Layer 0: expert").wait_for()
    page.wait_for_url("**layer=0**")
    assert page.locator(".scrub output").inner_text() == "0"


def test_a_click_and_the_arrow_keys_show_the_path_through_all_layers(tokens: Page) -> None:
    page = tokens
    page.locator(".t").nth(8).click()
    assert page.locator(".t.selected").get_attribute("data-i") == "8"
    assert page.locator(".path .layer").count() == 2
    assert page.locator(".path .slot").count() == 4
    assert "Token 8" in page.locator(".path").inner_text()
    page.get_by_text("goes to expert").wait_for()  # Python draws the path as a figure
    for key, expected in (("ArrowRight", "9"), ("ArrowLeft", "8"), ("Home", "0")):
        page.keyboard.press(key)
        assert page.locator(".t.selected").get_attribute("data-i") == expected
    page.keyboard.press("ArrowDown")
    assert page.locator(".t.selected").get_attribute("data-i") not in ("0", None)
    page.keyboard.press("End")
    last = page.locator(".t").count() - 1
    assert page.locator(".t.selected").get_attribute("data-i") == str(last)
    assert page.locator(".text").get_attribute("aria-activedescendant") == f"t{last}"
    assert inside(page.locator(".t").nth(last), page.locator(".text"))


def test_tokens_with_the_same_path_are_found(dashboard: Any, page: Page) -> None:
    open_tokens(page, dashboard, "the the the the the the")
    page.locator(".t").nth(5).click()
    ways = page.locator(".path .same-line").inner_text()
    underlined = page.locator(".t.same").count()
    assert ways.startswith(("No other token", "1 other token", f"{underlined} other tokens"))


def test_the_mode_switch_changes_what_colours_mean(tokens: Page) -> None:
    page = tokens
    seen = []
    for mode in ("First expert", "Second expert", "Router entropy", "Surprise", "Domain"):
        page.get_by_role("radio", name=mode, exact=True).click()
        seen.append(tuple(colours(page)))
    assert len(set(seen)) == 5
    assert page.locator(".legend").inner_text().split() == [
        "Domain",
        "of",
        "the",
        "text",
        "finance",
        "legal",
        "code",
        "general",
    ]
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="First expert", exact=True).get_attribute("aria-checked") == "true"


def test_expert_numbers_and_a_single_expert_can_be_shown(tokens: Page) -> None:
    page = tokens
    page.locator(".numbers input").check()
    token = page.locator(".t").nth(3)
    number = token.get_attribute("data-e")
    assert number in list("0123")
    content = token.evaluate("span => getComputedStyle(span, '::before').content")
    assert content == f'"{number}"'
    chip = page.locator(f"button.chip[data-expert='{number}']")
    chose = re.search(r": (\d+) of (\d+) tokens chose it, (\d+) as their first", chip.get_attribute("title") or "")
    assert chose is not None
    chip.click()
    numbers = page.locator(".t").evaluate_all("spans => spans.map(span => span.dataset.e)")
    shown = [colour != "transparent" for colour in colours(page)]
    assert [str(shown.count(True)), str(len(numbers)), str(numbers.count(number))] == list(chose.groups())
    assert all(seen for seen, expert in zip(shown, numbers, strict=True) if expert == number)


def test_keys_lead_from_token_to_token_of_an_expert_and_from_hit_to_hit(dashboard: Any, page: Page) -> None:
    open_tokens(page, dashboard, "another word, the other one\nother")
    place, found = page.locator(".step .place").all()
    page.locator(".t").nth(1).click()
    expert = page.locator(".step .expert").input_value()
    many = int(place.inner_text().split(" of ")[1])
    seen = []
    for key in ["n"] * many + ["p"]:
        page.keyboard.press(key)
        seen.append(int(page.locator(".t.selected").get_attribute("data-i") or -1))
        numbers = page.locator(".layer.now .slot b").all_inner_texts()
        assert expert in numbers, "any of the token's choices counts"
    assert sorted(set(seen)) == sorted(seen[:many]), "all of them once, then round"
    assert seen[many - 1] == 1
    assert place.inner_text() == f"{sorted(set(seen)).index(seen[many]) + 1} of {many}"
    page.keyboard.press("/")
    page.keyboard.type("OTHER", delay=20)  # the letters are no commands of the page around
    assert found.inner_text() == "3 hits"
    assert (
        page.locator(".t.hit").evaluate_all("spans => spans.map(span => span.textContent).join('')").count("other") == 3
    )
    page.locator(".text").evaluate("box => { box.scrollTop = 0; }")
    hits = []
    for key in ("Enter", "Enter", "Enter", "Shift+Enter"):
        page.keyboard.press(key)
        hits.append(found.inner_text())
    assert sorted(hits[:3]) == ["1 of 3", "2 of 3", "3 of 3"]
    assert hits[3] == hits[1]
    page.locator(".find").fill("nowhere in it")
    assert found.inner_text() == "not found"
    assert page.locator(".t.hit").count() == 0
    page.locator(".find").press("Escape")
    assert found.inner_text() == ""
    assert page.locator("[data-testid=stDialog]").count() == 0


def test_two_thousand_tokens_stay_usable(dashboard: Any, page: Page) -> None:
    words = " ".join(f"w{i % 97} and {i}," for i in range(3_000))
    open_tokens(page, dashboard, words[:30_000] + "\nend")
    page.wait_for_function(
        """() => [...document.querySelectorAll('*')].some(
            node => (node.shadowRoot?.querySelectorAll('.t').length ?? 0) > 1900)"""
    )
    assert 1_900 < page.locator(".t").count() <= 2_000
    times: list[float] = page.locator(".scrub input").evaluate(
        """input => [0, 1, 0, 1, 0].map(place => {
            const began = performance.now();
            input.value = place;
            input.dispatchEvent(new Event('input', { bubbles: true }));
            input.getRootNode().querySelector('.text').getBoundingClientRect();
            return performance.now() - began;
        })"""
    )
    assert sorted(times)[2] < 250, times  # measured 25 ms on two busy cores
    page.locator(".t").nth(1_500).click()
    assert page.locator(".t.selected").get_attribute("data-i") == "1500"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_token(dashboard: Any, browser: Browser, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(180_000)
    open_tokens(page, dashboard)
    lowest = page.locator(".text").evaluate(
        """box => {
            const parse = colour => colour.match(/[\\d.]+/g).map(Number);
            const light = colour => colour.slice(0, 3).map(c => c / 255)
                .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            const page = parse(getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor);
            const text = light(parse(getComputedStyle(box).color));
            return Math.min(...[...box.querySelectorAll('.t')].map(span => {
                const [r, g, b, a = 1] = parse(getComputedStyle(span).backgroundColor);
                const back = light([r, g, b].map((c, i) => a * c + (1 - a) * page[i]));
                return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
            }));
        }"""
    )
    assert lowest >= 4.5
    context.close()


def test_generation_streams_coloured_tokens_and_stops(dashboard: Any, page: Page) -> None:
    page.goto(f"{dashboard.url}/generation")
    page.get_by_role("button", name="Sampling").click()
    slider = page.get_by_role("slider", name="New tokens")
    slider.focus()
    page.keyboard.press("End")  # 1,000 tokens, so that there is time to stop
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Write", exact=True).click()
    page.locator(".t[data-e='0'], .t[data-e='1'], .t[data-e='2'], .t[data-e='3']").first.wait_for()
    first = page.locator(".t").count()
    page.wait_for_function(
        """first => [...document.querySelectorAll('*')].some(
            node => (node.shadowRoot?.querySelectorAll('.t').length ?? 0) > first)""",
        arg=first,
    )
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopped ·").wait_for()
    page.get_by_text("is the first choice of").wait_for()
    assert page.locator(".t").count() < 1_000
    assert page.get_by_text("tokens/s").count() == 1


def test_the_figure_files_come_down(tokens: Page, tmp_path: Path) -> None:
    page = tokens
    for name, start in (("All tokens as CSV", b"token,text,layer"), ("Trace as Parquet", b"PAR1")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        target = tmp_path / download.value.suggested_filename
        download.value.save_as(target)
        assert target.read_bytes().startswith(start)


def test_a_character_of_several_tokens_stands_over_them_all(dashboard: Any, page: Page) -> None:
    open_tokens(page, dashboard, "Say 你好 and 😀")
    seen = page.locator(".text").evaluate(
        """box => [...box.querySelectorAll('.together')].map(group => {
            const cells = [...group.querySelectorAll('.t')].map(token => token.getBoundingClientRect());
            const character = group.querySelector('.shared').getBoundingClientRect();
            return {
                text: group.textContent,
                tokens: cells.length,
                widths: cells.map(cell => cell.width),
                left: character.left - Math.min(...cells.map(cell => cell.left)),
                right: Math.max(...cells.map(cell => cell.right)) - character.right,
            };
        })"""
    )
    assert [one["text"].strip("\u200b ") for one in seen] == ["你", "好", "😀"]
    for one in seen:
        assert one["tokens"] > 1
        assert min(one["widths"]) > 4, "each token can be pointed at"
        assert abs(one["right"]) < 2
    page.locator(".together .t").last.hover()
    assert " of 😀" in page.locator(".tip").inner_text()


def test_tokens_have_names_that_say_their_expert_and_are_two_keys_away(dashboard: Any, page: Page) -> None:
    open_tokens(page, dashboard, "a\n  b")
    names = page.locator(".t").evaluate_all("tokens => tokens.map(token => token.ariaLabel)")
    assert all(re.fullmatch(r".+, expert \d", name) for name in names), names
    assert any(name.startswith("line break") for name in names), names
    page.goto(f"{dashboard.url}/tokens")
    page.locator(".t").first.wait_for()
    # It comes with a script of the page, before or after the text.
    page.locator("#moescope-skip-link").wait_for(state="attached")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page's content"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.locator(".t.selected").wait_for()
    assert page.locator(".t.selected").get_attribute("data-i") == "0"
