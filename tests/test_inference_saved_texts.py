"""Texts that links name: kept whole or not at all, few, and found by their exact name alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from moe_core.files import private_folder
from moe_core.inference import saved_texts as texts
from moe_core.inference.saved_texts import delete_text, find_text, save_text, saved_texts


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))


def test_a_text_comes_back_as_it_was_typed_and_has_one_name() -> None:
    text = "a\tb\n\n  日本 <b>&amp;\u202e\r\n"
    name = save_text(text)
    assert name is not None
    assert re.fullmatch("saved-[0-9a-f]{24}", name)
    assert find_text(name) == text
    assert save_text(text) == name
    other = save_text(text + "x")
    assert other not in (None, name)
    assert {one.name for one in saved_texts()} == {name, other}
    assert (private_folder("texts") / name).stat().st_mode & 0o077 == 0 or private_folder().stat().st_mode & 0o077 == 0


def test_a_name_leads_nowhere_else(tmp_path: Path) -> None:
    outside = tmp_path / "saved-0123456789abcdef01234567"
    outside.write_text("secret")
    name = save_text("mine")
    assert name is not None
    for wrong in (
        "", "saved-", "../" * 4 + outside.name, f"../{outside.name}", str(outside), f"{name}/",
        f"{name}\n", f"{name}\0",
        name.upper(), name[:-1], f"./{name}", "%2e%2e/x", "saved-" + "g" * 24, "recently_opened.json", "x" * 10_000,
    ):  # fmt: skip
        assert find_text(wrong) is None, wrong
        delete_text(wrong)
    assert outside.read_text() == "secret"
    assert find_text(name) == "mine"


def test_a_deleted_or_damaged_text_is_not_there() -> None:
    name, other = save_text("one"), save_text("two")
    assert name
    assert other
    delete_text(name)
    delete_text(name)
    (private_folder("texts") / other).write_bytes(b"\xff\xfe")
    assert find_text(name) is None
    assert find_text(other) is None
    assert saved_texts() == []


def test_what_was_used_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST", 3)
    names = []
    for number in range(3):
        names.append(save_text(f"text {number}"))
        os.utime(private_folder("texts") / str(names[-1]), (number, number))
    assert find_text(str(names[0])) == "text 0"  # now the last used
    names.append(save_text("text 3"))
    assert {one.text for one in saved_texts()} == {"text 0", "text 2", "text 3"}


def test_what_cannot_be_kept_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert save_text("é" * (texts.MOST_BYTES // 2 + 1)) is None
    assert save_text("\ud800") is None

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert save_text("the disk is full") is None
    assert not list(private_folder("texts").glob("*"))
