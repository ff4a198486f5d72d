"""tiktoken's encodings, converted: the same ids as tiktoken's own, from files on this machine alone."""

from __future__ import annotations

import base64
import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.data import parts, tiktoken_encodings
from moe_core.data.tiktoken_encodings import ENCODINGS, Encoding, tiktoken_tokenizer
from moe_core.data.tokenizer import END_OF_TEXT, Tokenizer
from moe_core.errors import DataError, UsageError

tiktoken = pytest.importorskip("tiktoken", reason="needs the extra data")

TEXT = (
    "The tenant's roof, 12 doors\u3000and 345 678\u00a0keys:\n\n\t  'tis  \u2028 wide \x85 won't 日本語 café\r\n--="
    "=//\n aaaaaaa aa aaa DON'T we'Ve \u01c5ungla \u0301x naïve -- !!!\n\n\n  x = f(1234)\n        return  \n"
)


def ranks_of(text: bytes, tokens: int) -> dict[bytes, int]:
    """Bytes, and stretches of the text in any order: some that joins lead to in many ways, some that none does."""
    chosen = random.Random(0)
    rank_of = {bytes([byte]): byte for byte in range(256)}
    while len(rank_of) < tokens:
        length, at = chosen.choice((2, 2, 2, 3, 3, 4, 6)), chosen.randrange(len(text))
        rank_of.setdefault(text[at : at + length], len(rank_of))
    return rank_of


def write_ranks(path: Path, rank_of: dict[bytes, int]) -> Path:
    lines = (base64.b64encode(token) + b" " + str(rank).encode() + b"\n" for token, rank in rank_of.items())
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture(scope="module")
def rank_of() -> dict[bytes, int]:
    # As in p50k_base, a number is left out.
    return ranks_of(TEXT.encode(), 420) | {b"\xf0\x9fzq": 421}


@pytest.fixture(scope="module")
def rank_file(rank_of: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ranks(tmp_path_factory.mktemp("ranks") / "small.tiktoken", rank_of)


@pytest.fixture(scope="module")
def both(rank_of: dict[bytes, int], rank_file: Path) -> dict[str, tuple[Tokenizer, tiktoken.Encoding]]:
    """Ours and tiktoken's own, by the encoding whose way of cutting text they share."""
    import tiktoken_ext.openai_public as published

    found = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(published, "load_tiktoken_bpe", lambda *_, **__: rank_of)
        for name in ("r50k_base", "cl100k_base", "o200k_base"):
            pattern = published.ENCODING_CONSTRUCTORS[name]()["pat_str"]
            theirs = tiktoken.Encoding(
                name, pat_str=pattern, mergeable_ranks=rank_of, special_tokens={END_OF_TEXT: 422}
            )
            found[name] = (tiktoken_tokenizer(f"{rank_file}@{name}"), theirs)
    return found


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.sampled_from(" \n\t\r\x1c\x85\u00a0\u2028\u3000'sStTlLvVeEa1é日-./!\u01c5\u02b0\u0301\u0663\u017f")
    | st.characters(codec="utf-8"))
)  # fmt: skip
def test_ids_are_tiktokens_own(both: dict[str, tuple[Tokenizer, tiktoken.Encoding]], text: str) -> None:
    for ours, theirs in both.values():
        assert ours.encode(text) == theirs.encode_ordinary(text)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(parts, "PART_CHARACTERS", 5)
            assert [i for part in ours.parts(text) for i in ours.encode(part)] == theirs.encode_ordinary(text)


def test_ids_of_ordinary_text_and_of_every_character_are_tiktokens_own(
    both: dict[str, tuple[Tokenizer, tiktoken.Encoding]],
) -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = [TEXT, TEXT * 5, END_OF_TEXT, " " * 50, "\U0001f000zq x\U0001f000zq", ""]
    texts += ["".join(f"a{c}1 {c}" for c in characters[at::400]) for at in range(8)]  # an eighth of a hundredth each
    for ours, theirs in both.values():
        assert ours.encode_batch(texts) == theirs.encode_ordinary_batch(texts)
        assert ours.decode(ours.encode(TEXT)) == TEXT


def test_the_vocabulary_has_every_number_and_control_tokens_never_come_from_text(
    both: dict[str, tuple[Tokenizer, tiktoken.Encoding]], tmp_path: Path
) -> None:
    ours, theirs = both["cl100k_base"]
    assert ours.vocab_size == theirs.n_vocab == 423
    assert (ours.end_of_text, ours.token_text(422), ours.token_text(420)) == (422, END_OF_TEXT, "<|unused 420|>")
    assert ours.token_bytes(420) == ours.token_bytes(422) == b""
    assert ours.decode([422, 420, 65]) == "A"
    assert not {420, 422} & {*ours.encode(f"{END_OF_TEXT} <|unused 420|>")}
    ours.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.vocabulary() == ours.vocabulary()
    assert again.encode(TEXT) == ours.encode(TEXT)
    assert len(list(again.parts("word " * 30_000))) > 1


def test_a_name_is_found_in_tiktokens_cache_and_a_file_by_its_checksum(
    rank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UsageError, match=r"ranks of tiktoken's o200k_base are not on this machine.*fetches nothing"):
        tiktoken_tokenizer("o200k_base")
    data = rank_file.read_bytes()
    address = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
    cached = tmp_path / hashlib.sha1(address.encode()).hexdigest()
    cached.write_bytes(data)
    with pytest.raises(DataError, match="its SHA-256 is another"):
        tiktoken_tokenizer("o200k_base")
    assert cached.exists(), "tiktoken itself would remove it and fetch another"
    with pytest.raises(UsageError, match=r"none of the files.*@cl100k_base"):
        tiktoken_tokenizer(str(rank_file))
    published = Encoding(
        "o200k_base", hashlib.sha256(data).hexdigest(), {END_OF_TEXT: 425}, ENCODINGS["o200k_base"].pattern
    )
    monkeypatch.setitem(tiktoken_encodings.ENCODINGS, "o200k_base", published)
    by_name, by_file = tiktoken_tokenizer("o200k_base"), tiktoken_tokenizer(str(rank_file))
    assert by_name.to_json() == by_file.to_json()
    assert by_name.vocab_size == 426


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nnonsense\n", r"line 2 is b'nonsense'; expected a token in base64"),
        (b"IQ== 0\n", "no token for the byte 0x00"),
    ],
)
def test_damaged_files_are_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(DataError, match=message):
        tiktoken_tokenizer(f"{tmp_path / 'x.tiktoken'}@o200k_base")


@pytest.mark.parametrize("rank", [65, -1, 2**21])
def test_ranks_that_no_vocabulary_can_have_are_refused(rank: int, rank_of: dict[bytes, int], tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "x.tiktoken", rank_of | {b"zzz": rank})
    with pytest.raises(DataError, match="expected a whole file of ranks"):
        tiktoken_tokenizer(f"{path}@o200k_base")


def test_what_is_no_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no encoding 'o300k'; expected gpt2, r50k_base"):
        tiktoken_tokenizer("o300k")
    with pytest.raises(UsageError, match="cannot read the ranks"):
        tiktoken_tokenizer(str(tmp_path / "missing.tiktoken"))
