"""Text without spaces, one-line documents and texts of many megabytes: bounded pieces, bounded memory, the same ids."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from moe_core.data import parts, tokens
from moe_core.data.document import Document
from moe_core.data.parts import parts_alike, parts_anyhow
from moe_core.data.tokenizer import BYTE_ALPHABET, END_OF_TEXT, LONGEST_LEARNED_PIECE, Tokenizer
from moe_core.data.tokens import TokenDataset
from moe_core.errors import DataError

SPACED = (
    "The tenant's roof, 12 doors\u3000and 3\u00a0keys:\n\n\t  'tis  \u2028 wide\x1c \x85 won't 日本語 café\r\n--==  "
    * 9
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([SPACED * 3, "a b c " * 20], 330)


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_CHARACTERS", 7)


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from(" \n\t\r\x1c\x85\u00a0\u2028\u3000'sa1é日-.\U0001f600") | st.characters(codec="utf-8")))
def test_ids_of_the_parts_are_the_ids_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "PART_CHARACTERS", 3)
        pieces = list(tokenizer.parts(text))
        loose = list(parts_anyhow(text))
    assert "".join(pieces) == "".join(loose) == text
    assert max(map(len, loose)) <= 3
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)


@pytest.mark.usefixtures("short_parts")
def test_a_text_with_spaces_is_cut_and_a_tokenizer_of_another_kind_gets_it_whole(tokenizer: Tokenizer) -> None:
    assert max(map(len, tokenizer.parts(SPACED))) < 20
    backend = tokenizers.Tokenizer(models.BPE({END_OF_TEXT: 0} | {s: 1 + i for i, s in enumerate(BYTE_ALPHABET)}, []))
    backend.add_special_tokens([END_OF_TEXT])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert list(Tokenizer(backend).parts(SPACED)) == [SPACED]


@pytest.mark.usefixtures("short_parts")
def test_a_data_set_is_the_same_whatever_is_tokenised_together(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(text, "ab"[i % 2], f"s{i}", "train") for i, text in enumerate([SPACED, "", "a", SPACED[:50]])]
    whole = [[0, *tokenizer.encode(document.text)] for document in documents]
    for together in (1, 20, 10**6):
        monkeypatch.setattr(tokens, "ENCODED_TOGETHER", together)
        monkeypatch.setattr(tokens, "COUNTED_TOGETHER", together)
        said: list[int] = []
        data = TokenDataset.build(documents, tokenizer, ["a", "b"], progress=lambda _, done, __: said.append(done))  # noqa: B023
        assert data.token_ids.tolist() == [i for ids in whole for i in ids]
        assert data.document_ids.tolist() == [number for number, ids in enumerate(whole) for _ in ids]
        assert data.positions.tolist() == [place for ids in whole for place in range(len(ids))]
        assert data.domain_bytes.tolist() == [len((SPACED + "a").encode()), len(SPACED[:50].encode())]
        assert said == sorted(said)
        assert said


def test_a_stretch_without_spaces_beyond_the_limit_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_CHARACTERS", 100)
    monkeypatch.setattr(parts, "LONGEST_STRETCH", 1000)
    documents = [Document("ab " * 100 + "x" * 1500, "a", "s", "train")]
    with pytest.raises(DataError, match=r"' xxx.* has 1,501 characters without a space.*at most 1,000") as raised:
        TokenDataset.build(documents, tokenizer, ["a"])
    assert "\n" not in str(raised.value)
    assert len(list(parts_alike("x" * 999))) == 1


@pytest.mark.parametrize(
    "alphabet",
    ["ACGT", "a", " ", "=-", "0123456789", "日本語文字", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP+/", "\n", "😀"],
)
def test_no_learned_piece_is_long_and_any_text_still_comes_back(alphabet: str) -> None:
    """Merges take time by the length of the pieces: what bounds the one bounds the other."""
    text = "".join(random.Random(0).choices(alphabet, k=20_000))
    tokenizer = Tokenizer.train([text], 600)
    assert max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)) <= LONGEST_LEARNED_PIECE
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_of_ordinary_length_are_learned_from_as_before() -> None:
    """The bound on pieces changes nothing where no piece is that long, and nothing of the bound is in the file."""
    texts = [SPACED * 20, "x" * LONGEST_LEARNED_PIECE + " y" * 30]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, min_frequency=2, special_tokens=[END_OF_TEXT], initial_alphabet=BYTE_ALPHABET,
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    ours = Tokenizer.train(texts, 400)
    assert ours.vocabulary() == Tokenizer(backend).vocabulary()
    assert "FixedLength" not in ours._backend.to_str()


LIMITED = """
import re, sys
from pathlib import Path
from moe_core.config import load_config
from moe_core.data.prepare import prepare_data

def peak():  # getrusage would tell the peak of the process that started this one, if that is higher
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

small = prepare_data(load_config(environment={}, overrides={"data.path": sys.argv[1]}))
before = peak()
big = prepare_data(load_config(environment={}, overrides={"data.path": sys.argv[2]}))
print(len(big.train), (peak() - before) * 1024)
"""


@pytest.mark.parametrize("kind", ["one-line documents of 60 characters", "one-line documents of 400,000 characters"])
def test_memory_of_tokenising_is_a_small_multiple_of_the_text(kind: str, tmp_path: Path) -> None:
    chooser = random.Random(0)
    words = ["".join(chooser.choices("abcdefghij", k=1 + chooser.randrange(9))) for _ in range(500)]
    length = 60 if "60" in kind else 400_000
    size = 0
    for name, wanted in (("small", 100_000), ("big", 10_000_000)):
        size = 0
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            documents = 0
            while size < wanted or documents < 12:
                text = " ".join(chooser.choices(words, k=length // 6 if name == "big" else 10))
                size += len(text)
                documents += 1
                print(json.dumps({"text": text}), file=file)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "small.jsonl"), str(tmp_path / "big.jsonl")],
        capture_output=True, text=True, check=True, timeout=280, cwd=Path(__file__).parents[1],
        # Every thread of the tokenizer has a part of its own.
        env=os.environ | {"RAYON_NUM_THREADS": "2"},
    )  # fmt: skip
    token_count, grown = map(int, result.stdout.split())
    assert token_count > 1_000_000
    # 9 and 12 are measured; a tokeniser that takes a whole document at once takes 27, and a list for each document 17.
    assert grown < 15 * size, f"{grown / size:.1f} bytes a character"
