"""Other models' tokenizers: the ids the transformers library gives, the bytes that make up the text, no injection."""

from __future__ import annotations

import pytest
import tokenizers
from huggingface_support import TEXT, trained_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError, UsageError
from moe_core.inference.foreign_tokenizer import ForeignTokenizer, IdTokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
ORIGINAL = {kind: trained_tokenizer(kind) for kind in ("byte-level", "sentencepiece")}


def wrapped(original: PreTrainedTokenizerFast) -> ForeignTokenizer:
    return ForeignTokenizer(original.backend_tokenizer, bos=original.bos_token_id, eos=original.eos_token_id)


WRAPPED = {kind: wrapped(original) for kind, original in ORIGINAL.items()}


@settings(deadline=None, max_examples=60)
@given(TEXTS)
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_ids_are_those_of_the_library_and_bytes_make_up_the_text(kind: str, text: str) -> None:
    original, tokenizer = ORIGINAL[kind], WRAPPED[kind]
    ids = tokenizer.encode(text)
    assert ids == original(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == original.decode(ids)
    data = b"".join(tokenizer.token_bytes(token_id) for token_id in ids)
    # A sentencepiece-like tokenizer writes a space before a text, and has one character for the space itself.
    expected = text if kind == "byte-level" else (" " + text if text else "").replace("▁", " ")
    assert data == expected.encode()


@pytest.mark.parametrize("text", [TEXT, "日", "\xff\x00", "a  b\n"])
def test_a_byte_level_tokenizer_is_read_as_our_own(text: str) -> None:
    own = Tokenizer.train([TEXT], 300)
    same = ForeignTokenizer(own._backend, eos=own.end_of_text)
    assert same.encode(text) == own.encode(text)
    assert [same.token_bytes(i) for i in range(own.vocab_size)] == [own.token_bytes(i) for i in range(own.vocab_size)]
    assert [same.token_text(i) for i in range(own.vocab_size)] == own.vocabulary()
    assert (same.end_of_text, same.vocab_size) == (own.end_of_text, own.vocab_size)


def test_control_tokens_in_a_text_are_ordinary_characters_and_stand_for_no_bytes() -> None:
    tokenizer = WRAPPED["byte-level"]
    ids = tokenizer.encode("a<|im_end|>b")
    assert 1 not in ids
    assert tokenizer.decode([*ids, 1]) == "a<|im_end|>b"
    assert tokenizer.token_bytes(1) == b""
    assert tokenizer.token_text(1) == "<|im_end|>"
    # The original keeps its own way.
    assert 1 in ORIGINAL["byte-level"]("a<|im_end|>b")["input_ids"]


def test_a_token_added_to_the_vocabulary_that_is_no_control_token_stands_for_its_characters() -> None:
    tokenizer = WRAPPED["byte-level"]
    added = tokenizer.encode("<tool>")
    assert added == [300]
    assert tokenizer.token_bytes(300) == b"<tool>"
    assert tokenizer.vocab_size == 301
    assert tokenizer.token_bytes(301) == b""
    assert tokenizer.token_text(301) == "#301"


def test_a_document_begins_with_what_the_tokenizer_puts_there_else_with_begin_or_end_of_sequence() -> None:
    assert WRAPPED["sentencepiece"].end_of_text == 1
    assert WRAPPED["byte-level"].end_of_text == 0
    backend = ORIGINAL["byte-level"].backend_tokenizer
    assert ForeignTokenizer(backend, bos=1, eos=0).end_of_text == 1
    assert ForeignTokenizer(backend).end_of_text is None


def test_settings_for_batches_of_other_users_do_not_reach_us() -> None:
    original = trained_tokenizer("byte-level")
    original.backend_tokenizer.enable_truncation(3)
    original.backend_tokenizer.enable_padding(length=9)
    assert wrapped(original).encode(TEXT) == WRAPPED["byte-level"].encode(TEXT)


def test_of_any_other_kind_bytes_are_what_the_tokenizer_writes_for_the_token_alone() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "open": 1, "##ed": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    tokenizer = ForeignTokenizer(backend)
    assert tokenizer.encode("opened") == [1, 2]
    assert tokenizer.decode([1, 2]) == "opened"
    assert tokenizer.token_bytes(1) == b"open"


def test_metaspace_is_a_space() -> None:
    backend = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -1.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = ForeignTokenizer(backend)
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("ab a")] == [b" a", b"b", b" a"]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        WRAPPED["sentencepiece"].encode("\ud800")


def test_without_a_tokenizer_text_is_ids_in_figures() -> None:
    tokenizer = IdTokenizer(300)
    assert tokenizer.encode("17 4\n256") == [17, 4, 256]
    assert tokenizer.decode([17, 4, 256]) == "17 4 256"
    assert [tokenizer.token_text(i) for i in (17, 4)] == ["#17", "#4"]
    assert tokenizer.encode(b"".join(tokenizer.token_bytes(i) for i in (17, 4)).decode()) == [17, 4]
    for text in ("The court", "-1", "300", "1.5"):
        with pytest.raises(UsageError, match="came without a tokenizer, so expected numbers from 0 to 299"):
            tokenizer.encode(text)
