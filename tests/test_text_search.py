"""Finding a piece of text in the text of a trace, over the borders of tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_core.data.tokenizer import readable
from moe_core.inference.text_search import searchable_text
from moe_core.routing import RoutingTrace


def trace_of(texts: list[list[bytes]]) -> RoutingTrace:
    """A trace of these tokens, a document each list; the rows stand in another order than one reads them."""
    tokens = [token for text in texts for token in text]
    documents = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    positions = np.concatenate([np.arange(len(text)) for text in texts])
    mixed = np.random.default_rng(0).permutation(len(tokens))
    return RoutingTrace.from_arrays(
        router_indices=np.zeros((1, len(tokens), 1), np.int16),
        router_scores=np.ones((1, len(tokens), 1), np.float32),
        num_experts=2,
        token_ids=mixed,
        document_ids=documents[mixed],
        positions=positions[mixed],
        vocabulary={i: readable(token) for i, token in enumerate(tokens)},
    )


def near(texts: list[list[bytes]], wanted: str, window: int) -> list[bool]:
    """Of each token in reading order, whether the text lies near it."""
    trace = trace_of(texts)
    order = np.lexsort([trace.positions, trace.document_ids])
    return searchable_text(trace).near(order, wanted, window).tolist()


def test_text_is_found_over_the_borders_of_tokens_in_any_letters() -> None:
    words = [b"The", b" qu", b"ick", b"\nbrown", b" fox"]
    assert near([words], "QUICK b", 0) == [False] * 5
    assert near([words], "QUICK b", 1) == [False, False, True, False, False]
    assert near([words], "quick", 1) == [False, True, True, False, False]
    assert near([words], "the", 0) == [True, False, False, False, False]
    assert near([words], "nowhere", 5) == [False] * 5
    assert near([words], "", 0) == [True] * 5


def test_a_character_of_several_tokens_is_found_and_no_text_goes_on_in_the_next() -> None:
    ni = "你".encode()
    assert near([[b"say ", ni[:1], ni[1:], b"!"]], "你", 1) == [False, True, True, False]
    assert near([[b"ab"], [b"cd"]], "bc", 9) == [False, False]
    assert near([[b"ab"], [b"cd"]], "ab", 9) == [True, False]


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba"]), min_size=1, max_size=6), min_size=1, max_size=3),
       st.text("ab", min_size=1, max_size=3), st.integers(0, 3))  # fmt: skip
def test_what_is_found_is_what_a_window_of_tokens_holds(texts: list[list[bytes]], wanted: str, window: int) -> None:
    expected = [
        wanted.encode() in b"".join(text[max(0, i - window) : i + window + 1])
        for text in texts
        for i in range(len(text))
    ]
    assert near(texts, wanted, window) == expected
