"""Characters over several tokens: each is found, over the tokens that hold its bytes and no others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_core.data.characters import SharedToken, shared_characters


def test_a_character_over_two_and_four_tokens() -> None:
    ni, smile = "你".encode(), "😀".encode()
    assert shared_characters([ni[:2], ni[2:]]) == [SharedToken("", "你", 2), SharedToken("", ended="你")]
    middle = SharedToken("", ended="😀")
    assert shared_characters([b"a", *(bytes([byte]) for byte in smile), b"b"]) == [
        None, SharedToken("", "😀", 4), middle, middle, middle, None,
    ]  # fmt: skip


def test_a_token_may_end_one_character_and_begin_the_next() -> None:
    ni, hao = "你".encode(), "好".encode()
    assert shared_characters([b" " + ni[:1], ni[1:] + b"," + hao[:2], hao[2:] + b"!"]) == [
        SharedToken(" ", "你", 2),
        SharedToken(",", "好", 2, ended="你"),
        SharedToken("!", ended="好"),
    ]


def test_what_never_becomes_a_character_stays_bytes() -> None:
    ni = "你".encode()
    for tokens in ([ni[:2]], [ni[:2], b"a"], [ni[:2], None, ni[2:]], [ni[2:], b"a"], [b"\xff", ni[2:]], [ni[:1], b""]):
        assert shared_characters(tokens) == [None] * len(tokens)
    assert shared_characters([ni[:2], ni[2:] + ni[:1]]) == [
        SharedToken("", "你", 2),
        SharedToken("", ended="你", rest=ni[:1]),
    ]
    # A broken beginning does not take the next character with it.
    assert shared_characters([ni[:1], ni[:2], ni[2:]]) == [None, SharedToken("", "你", 2), SharedToken("", ended="你")]


@given(st.text(max_size=30), st.data())
def test_however_a_text_is_cut_its_characters_are_all_there(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(whole) - 1)))))
    tokens = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    tokens = [token for token in tokens if token]
    shared = shared_characters(tokens)
    read = ""
    for token, part in zip(tokens, shared, strict=True):
        read += token.decode() if part is None else part.whole + part.begun
    assert read == text


@given(st.lists(st.none() | st.binary(max_size=4), max_size=12))
def test_any_bytes_are_taken(tokens: list[bytes | None]) -> None:
    shared = shared_characters(tokens)
    assert len(shared) == len(tokens)
    for place, part in enumerate(shared):
        if part is not None and part.begun:
            for other in shared[place + 1 : place + part.reach]:
                assert other is not None
                assert other.ended == part.begun
