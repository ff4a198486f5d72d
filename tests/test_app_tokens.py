"""The Tokens page on a really trained tiny run, and what its token view is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from app_support import Open, numbers, payload_of, text_of, work_of_a_rerun
from colour_support import blend
from hypothesis import given
from hypothesis import strategies as st

from app.components.token_view import EASIER, HARDER, Piece, display, view_payload
from moe_core.data.document import Document
from moe_core.figures.palette import (
    DARK_PAGE,
    DARK_TEXT,
    LIGHT_PAGE,
    LIGHT_TEXT,
    TOKEN_STRENGTH,
    contrast_ratio,
)
from moe_core.figures.tokens import arrays_of_trace
from moe_core.inference.passages import (
    TOKEN_LIMIT,
    Passage,
    arrays_of,
    examples,
    fit,
    trace_passages,
)
from moe_core.routing import metrics
from moe_core.routing.measures.experts import layer_verdict
from moe_core.routing.token_arrays import TokenArrays
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import LoadedRun, load_run

HOSTILE = "<img src=x onerror=alert(1)> :red[x] $x$ </style></script> ![](http://example.com/a.png)"
OWN = "Your own text"


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


@pytest.fixture
def tokens_page(dashboard: Open, trained_root: Path) -> Open:
    return partial(dashboard, trained_root, "tokens")


def test_the_page_is_right_before_the_first_click(tokens_page: Open) -> None:
    at = tokens_page(layer="0")
    assert at.title[0].value == "Which expert does each token go to?"
    answer = at.main.markdown[0].value.replace("\\", "")
    assert answer.removeprefix("##### ").startswith("Layer 0: expert ")
    assert "(even share 25 %)" in answer
    payload = payload_of(at)
    assert payload["layer"] == 0
    assert payload["domains"] == ["finance", "legal", "code", "general"]
    assert payload["count"] <= 600
    assert len(at.get("vega_lite_chart")) == 1


def test_a_warm_page_computes_nothing_again(tokens_page: Open) -> None:
    at = tokens_page()
    work = work_of_a_rerun(at)
    assert work["forward"] == 0
    assert work["calls"] < 150_000


def test_typed_text_reaches_the_view_as_text(tokens_page: Open) -> None:
    at = tokens_page()
    at.segmented_control(key="text").select(OWN).run()
    at.text_area(key="tokens_text").set_value(HOSTILE + "\n\tsecond line").run()
    assert not at.exception
    payload = payload_of(at)
    assert text_of(payload).replace("⇥\t", "\t") == HOSTILE + "\n\tsecond line"
    assert payload["headings"] is False
    assert not at.warning


def test_a_pasted_megabyte_is_cut_and_the_limit_is_said(tokens_page: Open) -> None:
    at = tokens_page()
    at.segmented_control(key="text").select(OWN).run()
    text = "The quick brown fox. " * 50_000
    at.text_area(key="tokens_text").set_value(text).run()
    assert not at.exception
    (warning,) = at.warning
    assert "The text has 1,050,000 characters; its first" in warning.value
    assert f"more than {TOKEN_LIMIT:,} are not" in warning.value
    payload = payload_of(at)
    assert payload["count"] <= TOKEN_LIMIT
    assert text.startswith(text_of(payload))


def test_no_text_is_answered_with_what_to_do(tokens_page: Open) -> None:
    at = tokens_page()
    at.segmented_control(key="text").select(OWN).run()
    at.text_area(key="tokens_text").set_value("").run()
    assert not at.exception
    assert "type or paste some" in at.info[0].value


def test_other_examples_are_other_documents(tokens_page: Open) -> None:
    at = tokens_page()
    first = text_of(payload_of(at))
    at.button(key="tokens_other").click().run()
    assert text_of(payload_of(at)) != first
    at.segmented_control(key="text").select("code").run()
    assert payload_of(at)["domains"] == ["code"]
    assert len(payload_of(at)["starts"]) == 3


def test_a_choice_that_another_run_does_not_have_falls_back(tokens_page: Open) -> None:
    at = tokens_page()
    at.session_state["text"] = "a domain of another run"
    at.run()
    assert not at.exception
    assert at.segmented_control(key="text").value == "One of each domain"


def test_examples_go_round_through_the_held_out_documents() -> None:
    documents = [Document(f"{domain}{i}", domain, f"{domain}/{i}", "unseen") for domain in "ab" for i in range(3)]
    assert examples(documents, ["a", "b"], 0) == [Passage("a", "a0"), Passage("b", "b0")]
    assert examples(documents, ["b"], 1, each=2) == [Passage("b", "b2"), Passage("b", "b0")]
    assert examples(documents, ["c"], 0) == []


@given(st.text(max_size=400), st.integers(1, 60))
def test_fit_keeps_a_beginning_of_at_most_so_many_tokens(loaded: LoadedRun, text: str, tokens: int) -> None:
    kept = fit(text, loaded.tokenizer, tokens)
    assert text.startswith(kept)
    if len(loaded.tokenizer.encode(text)) <= tokens:
        assert kept == text
    else:
        assert len(kept.encode()) <= len(text.encode())


def test_passages_are_traced_apart_and_joined(loaded: LoadedRun) -> None:
    traced = trace_passages(loaded, [Passage("a", "one two"), Passage("b", "one two")])
    half = traced.trace.num_tokens // 2
    assert traced.trace.domains == ["a", "b"]
    assert (traced.trace.router_indices[:, :half] == traced.trace.router_indices[:, half:]).all()
    assert traced.tokens[0] is None
    assert traced.tokens[half] is None
    assert b"".join(token or b"" for token in traced.tokens) == b"one twoone two"
    assert np.isnan(traced.losses[[0, half]]).all()
    assert sorted(set(traced.trace.document_ids.tolist())) == [0, 1]
    assert traced.characters == 14


def test_the_view_gets_the_numbers_of_the_trace(loaded: LoadedRun) -> None:
    traced = trace_passages(loaded, [Passage("a", "Hello, world\n")])
    trace, payload = traced.trace, view_payload(arrays_of(traced), series="x")
    L, T, K = trace.router_indices.shape
    order = np.argsort(-trace.router_scores, axis=2, kind="stable")
    indices = numbers(payload["indices"], "<i2").reshape(L, T, K)
    assert (indices == np.take_along_axis(trace.router_indices, order, 2)).all()
    weights = numbers(payload["weights"], "<u2").reshape(L, T, K) / 65535 * payload["weight_scale"]
    assert weights == pytest.approx(np.take_along_axis(trace.router_scores, order, 2), abs=1e-4)
    entropy = numbers(payload["entropy"], "u1").reshape(L, T) / 255
    assert entropy[1] == pytest.approx(metrics.token_entropy(trace, trace.layers[1]), abs=0.003)
    assert numbers(payload["losses"], "<f4")[1:] == pytest.approx(traced.losses[1:])
    assert numbers(payload["ranks"], "<i4").tolist() == traced.ranks.tolist()
    json.dumps(payload)


def test_a_change_of_loss_and_marks_reach_the_view(loaded: LoadedRun) -> None:
    arrays = arrays_of(trace_passages(loaded, [Passage("a", "Hello")]))
    T = len(arrays.tokens)
    changes = np.linspace(-3, 3, T, dtype=np.float32)
    marks = np.zeros((2, T), np.bool_)
    marks[1, 0] = True
    payload = view_payload(
        replace(arrays, changes=changes, marks=marks, mark_label="another"), series="x", mode="change"
    )
    assert numbers(payload["changes"], "<f4") == pytest.approx(changes)
    assert numbers(payload["marks"], "u1").reshape(2, T).tolist() == marks.astype(int).tolist()
    assert (payload["mode"], payload["mark_label"]) == ("change", "another")
    plain = view_payload(arrays, series="x")
    assert (plain["changes"], plain["marks"], plain["mode"]) == (None, None, "first")


@pytest.mark.parametrize("colour", [EASIER, HARDER])
def test_text_is_readable_on_the_colours_of_a_changed_loss(colour: str) -> None:
    for page, text in ((LIGHT_PAGE, LIGHT_TEXT), (DARK_PAGE, DARK_TEXT)):
        assert contrast_ratio(text, blend(colour, page, TOKEN_STRENGTH)) >= 4.5


def test_a_growing_text_keeps_the_places_of_its_pieces() -> None:
    def arrays(tokens: list[bytes]) -> TokenArrays:
        T = len(tokens)
        return TokenArrays(tokens, [0], 4, np.zeros((1, T, 1), np.int16), np.ones((1, T, 1), np.float32))

    short = view_payload(arrays([b"a", b"b", b"a"]), series="s", live=True)
    long = view_payload(arrays([b"a", b"b", b"a", b"c"]), series="s")
    assert long["pieces"][: len(short["pieces"])] == short["pieces"]
    assert numbers(long["tokens"], "<i4")[:3].tolist() == numbers(short["tokens"], "<i4").tolist()
    assert short["id"] != long["id"]


def test_2000_tokens_in_64_layers_stay_small() -> None:
    L, T, K = 64, 2000, 8
    rng = np.random.default_rng(0)
    arrays = TokenArrays(
        [b"%d" % (i % 300) for i in range(T)], range(L), 256,
        rng.integers(0, 256, (L, T, K)).astype(np.int16), rng.random((L, T, K), np.float32),
        entropies=rng.random((L, T), np.float32),
    )  # fmt: skip
    assert len(json.dumps(view_payload(arrays, series="x"))) < 6_000_000
    few = TokenArrays(arrays.tokens, range(4), 8, arrays.indices[:4, :, :2] % 8, arrays.scores[:4, :, :2])
    assert len(json.dumps(view_payload(few, series="x"))) < 150_000


@pytest.mark.parametrize(
    ("token", "shown", "small", "line", "name"),
    [
        (b"the", "the", False, "the", "the"),
        (b" of", " of", False, " of", "of"),
        (b"  ", "  ", False, "␣␣", "2 spaces"),
        (b"\n", "↵\n", True, "↵", "line break"),
        (b"\n\t ", "↵\n⇥\t ", False, "↵⇥ ", "line break, tab, space"),
        (b";\n", ";↵\n", False, ";↵", ";↵"),
        (b"\t", "⇥\t", True, "⇥", "tab"),
        (b"\xe2\x82", "‹E2 82›", True, "bytes E2 82", "bytes E2 82"),
        (b"\x00", "‹U+0000›", True, "‹U+0000›", "‹U+0000›"),
        ("\u202e".encode(), "‹U+202E›", True, "‹U+202E›", "‹U+202E›"),
        ("a\u200b".encode(), "a‹U+200B›", False, "a‹U+200B›", "a‹U+200B›"),
        ("é".encode(), "é", False, "é", "é"),
        (b"<img src=x onerror=a(1)>", "<img src=x onerror=a(1)>", False, *2 * ["<img src=x onerror=a(1)>"]),
        (None, "start", True, "start of text", "start of text"),
        (b"", "", True, "", "empty token"),
    ],
)
def test_tokens_are_shown_as_text_and_what_cannot_be_seen_as_codes(
    token: bytes | None, shown: str, small: bool, line: str, name: str
) -> None:
    assert display([token]) == [Piece(shown, small, line, name)]


def test_bytes_of_one_character_are_shown_as_that_character_over_the_tokens_that_hold_them() -> None:
    ni = "你".encode()
    assert display([b" " + ni[:1], ni[1:2], ni[2:] + b"!"]) == [
        Piece(" 你", False, "bytes 20 E4 of  你", "part of  你", reach=3, last="你"),
        Piece("", False, "bytes BD of 你", "part of 你", goes_on=True),
        Piece("!", False, "bytes A0 21 of 你!", "part of 你!", goes_on=True),
    ]
    hidden = "\u202e".encode()
    assert "".join(piece.text for piece in display([hidden[:1], hidden[1:]])) == "‹U+202E›"


@pytest.mark.parametrize("text", ["你好，世界", "Smile 😀 and 👩‍👩‍👧 too", "naïve"])
def test_a_trace_shows_characters_of_several_tokens_and_not_their_codes(loaded: LoadedRun, text: str) -> None:
    traced = trace_passages(loaded, [Passage("a", text)])
    assert any(b"\\x" in (token or b"").decode(errors="backslashreplace").encode() for token in traced.tokens)
    for arrays in (arrays_of(traced), arrays_of_trace(traced.trace)):
        shown = text_of(view_payload(arrays, series="x"))
        assert shown.replace("‹U+200D›", "\u200d") == text


def test_the_answer_counts_first_choices(loaded: LoadedRun) -> None:
    trace = trace_passages(loaded, [Passage("a", "some words")]).trace
    at = trace.layer_position(1)
    best = [
        int(row[scores.argmax()]) for row, scores in zip(trace.router_indices[at], trace.router_scores[at], strict=True)
    ]
    leader = max(range(4), key=best.count)
    answer = layer_verdict(trace, 1)
    assert answer.startswith(f"Layer 1: expert {leader} is the first choice of ")
    assert f"{len(set(best))} of 4 experts" in answer


def test_the_example_documents_were_never_trained_on(trained_root: Path) -> None:
    run = RunFolder("tiny", trained_root)
    assert all(document.split == "unseen" for document in run.held_out("unseen"))
