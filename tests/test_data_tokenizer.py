"""Byte-level BPE gives every string back, never makes a control token of text, and trains alike every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.data.tokenizer import END_OF_TEXT, Tokenizer, bytes_of_readable, joined, readable
from moe_core.errors import DataError, RunError, UsageError

TEXTS = [
    "The cat sat on the mat, and the cat was fat.\n" * 5,
    "def f(x):\n    return x + 1\n" * 5,
    "日本語 €5 café " * 5,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()


@settings(deadline=None)
@given(st.lists(st.sampled_from([END_OF_TEXT, "<|", "endoftext", "|>", " a", "<", "\n"]), max_size=8))
def test_typed_control_tokens_are_ordinary_characters(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == text


def test_a_control_token_that_fills_the_training_text_is_still_not_learned_as_a_merge() -> None:
    tokenizer = Tokenizer.train([END_OF_TEXT * 500], 400)
    assert tokenizer.end_of_text not in tokenizer.encode(END_OF_TEXT * 3)


def test_merges_are_learned_and_one_byte_tokens_cover_every_byte(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode("the cat")) < 7
    assert {tokenizer.token_bytes(i) for i in range(300)} >= {bytes([byte]) for byte in range(256)}
    assert tokenizer.decode([tokenizer.end_of_text]) == ""


def test_tokens_are_shown_as_text_and_lone_bytes_as_escapes(tokenizer: Tokenizer) -> None:
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    assert tokenizer.token_text(by_bytes[b"\xe2"]) == "\\xE2"
    assert tokenizer.token_text(by_bytes[b"a"]) == "a"
    assert tokenizer.token_text(by_bytes[b"\n"]) == "\n"
    assert tokenizer.token_text(tokenizer.end_of_text) == END_OF_TEXT
    vocabulary = tokenizer.vocabulary()
    assert len(vocabulary) == tokenizer.vocab_size
    assert vocabulary[by_bytes[b"\xff"]] == "\\xFF"


def test_training_is_deterministic_and_small_texts_give_fewer_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a.json")
    Tokenizer.train(TEXTS, 300).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert Tokenizer.train(["ab"], 4096).vocab_size == 257


def test_saving_and_loading_keeps_every_encoding(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocabulary() == tokenizer.vocabulary()
    for text in [*TEXTS, END_OF_TEXT]:
        assert loaded.encode(text) == tokenizer.encode(text)


def test_faults_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(RunError, match="is damaged") as caught:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"lone surrogate U\+DCFF at character 1"):
        tokenizer.encode("a\udcff")
    with pytest.raises(UsageError, match="at least 257"):
        Tokenizer.train(TEXTS, 256)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.token_bytes(-1)


@given(st.binary(max_size=12))
def test_readable_bytes_are_read_back(data: bytes) -> None:
    assert bytes_of_readable(readable(data)) == data or b"\\x" in data


def test_the_bytes_of_one_character_are_joined_to_it() -> None:
    assert joined([r"\xE4\xBD", r"\xA0", " and ", r"\xE4"]) == r"你 and \xE4"
