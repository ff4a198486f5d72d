"""Text of one's own on every page that takes some: a link names it, another browser shows it, and it can be deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_support import Open, followed_link
from streamlit.testing.v1 import AppTest

from moe_core.inference.saved_texts import delete_text, find_text, saved_texts

MINE = "A secret of mine, 12,500 <b>euros</b>."
OWN = "Your own text"
FIELDS = {
    "tokens": ("tokens_text", "tokens_saved", {"text": OWN}),
    "generation": ("generation_prompt", "generation_saved", {}),
    "interventions": ("loss_typed", "loss_saved", {"loss_text": OWN}),
    "compare": ("text_a_typed", "text_a_saved", {"compare_kind": "Two texts", "text_a": OWN}),
}
"""The field of each page: its key, what names its text in the URL, and the choice that shows it."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def open_page(own_root: Path, dashboard: Open) -> Callable[..., AppTest]:
    dashboard(own_root)  # what a page measures is kept in the run's folder
    return followed_link


def link_of(at: AppTest) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else value[0] for key, value in at.query_params.items()}


@pytest.mark.parametrize("page", FIELDS)
def test_a_link_shows_the_text_and_does_not_hold_it(page: str, open_page: Callable[..., AppTest]) -> None:
    key, link, choice = FIELDS[page]
    at = open_page(page, **choice)
    assert link not in at.query_params  # the example needs no name
    example = at.text_area(key=key).value
    at.text_area(key=key).set_value(MINE).run()
    address = link_of(at)
    assert find_text(address[link]) == MINE
    assert "secret" not in str(address)

    again = open_page(page, **choice, **{link: address[link]})
    assert again.text_area(key=key).value == MINE
    assert not again.warning

    # Deleted, here or elsewhere: who has typed it keeps it in the field, who follows the link is told.
    delete_text(address[link])
    at.run()
    assert at.text_area(key=key).value == MINE
    assert link not in at.query_params
    assert saved_texts() == []
    gone = open_page(page, **choice, **{link: address[link]})
    assert "was deleted" in gone.warning[0].value
    assert gone.text_area(key=key).value == example
    assert not gone.exception


def test_another_page_does_not_hand_the_name_on_and_coming_back_brings_it(
    open_page: Callable[..., AppTest],
) -> None:
    at = open_page("tokens", text=OWN)
    at.text_area(key="tokens_text").set_value(MINE).run()
    name = link_of(at)["tokens_saved"]
    at.switch_page("app_pages/domains.py").run()
    assert "tokens_saved" not in at.query_params
    at.switch_page("app_pages/tokens.py").run()
    at.segmented_control(key="text").select(OWN).run()
    assert at.text_area(key="tokens_text").value == MINE
    assert link_of(at)["tokens_saved"] == name
    assert [one.text for one in saved_texts()] == [MINE]


@pytest.mark.parametrize("name", ["saved-000000000000000000000000", "../../etc/passwd", "x" * 5000])
def test_an_unknown_name_says_so_and_shows_the_example(name: str, open_page: Callable[..., AppTest]) -> None:
    at = open_page("tokens", text=OWN, tokens_saved=name)
    assert "was deleted, or was never kept" in at.warning[0].value
    assert "court" in at.text_area(key="tokens_text").value
    assert not at.error
