"""Recordings that say what each token reads: the trace shows it without a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, recordings
from moe_core.routing.recordings import examine

FIXTURES = Path(__file__).parent / "fixtures" / "recordings"


def table_of(path: Path, texts: Any, **columns: Any) -> Path:
    """A table of one layer and one slot."""
    experts = np.arange(len(texts)) % 4
    pq.write_table(pa.table({"layer_0_expert_0": experts, "token_text": texts, **columns}), path)
    return path


def texts_of(trace: RoutingTrace) -> list[str]:
    return [trace.token_text(t) for t in range(trace.num_tokens)]


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_a_table_of_texts_without_ids_shows_them(as_dictionary: bool, tmp_path: Path) -> None:
    words = [" the", "cat", " the", "\n", "🦜", "cat"]
    texts = pa.array(words).dictionary_encode() if as_dictionary else pa.array(words)
    trace = recordings.read(table_of(tmp_path / "x.parquet", texts))
    assert texts_of(trace) == words
    assert trace.token_ids.tolist() == [0, 1, 0, 2, 3, 1]
    assert "no token ids were recorded: they number the 4 different texts" in trace.source


def test_numbers_of_texts_go_through_all_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.routing.recordings.parquet_table.PIECE_TOKENS", 2)
    words = ["b", "a", "c", "a", "b", "d", "a"]
    path = table_of(tmp_path / "x.parquet", words)
    found = recordings.convert(path, tmp_path / "t.parquet")
    assert texts_of(RoutingTrace.load(tmp_path / "t.parquet")) == words
    assert not found.token_ids


def test_one_text_may_have_two_ids_and_some_tokens_none(tmp_path: Path) -> None:
    path = table_of(tmp_path / "x.parquet", ["a", "a", None, "b"], token_id=[7, 3, 9, 5])
    trace = recordings.read(path)
    assert texts_of(trace) == ["a", "a", "#9", "b"]
    assert trace.token_ids.tolist() == [7, 3, 9, 5]


def test_a_text_that_changes_is_noted_and_the_first_is_shown(tmp_path: Path) -> None:
    path = table_of(tmp_path / "x.parquet", ["a", "b", "c"], token_id=[7, 7, 5])
    trace = recordings.read(path)
    assert texts_of(trace) == ["a", "a", "c"]
    assert "the text of 1 token id changes, that of id 7 from 'a' to 'b': the first one is shown" in trace.source


def test_recorded_text_goes_before_a_tokenizers(tmp_path: Path) -> None:
    path = table_of(tmp_path / "x.parquet", ["a", None], token_id=[7, 3])
    trace = recordings.read(path, texts=lambda ids: {token_id: f"of tokenizer {token_id}" for token_id in ids})
    assert texts_of(trace) == ["a", "of tokenizer 3"]


def test_a_token_with_neither_id_nor_text_is_named(tmp_path: Path) -> None:
    path = table_of(tmp_path / "x.parquet", ["a", None, "b"])
    with pytest.raises(TraceError, match="row 1 has neither a token id nor a text"):
        recordings.read(path)


def test_texts_that_are_no_tokens_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "MAX_TEXTS", 3)
    with pytest.raises(TraceError, match="row 0: more than 3 different token texts"):
        recordings.read(table_of(tmp_path / "x.parquet", list("abcd")))
    with pytest.raises(TraceError, match="column 'token_text' is int64; expected text"):
        recordings.read(table_of(tmp_path / "x.parquet", [1, 2]))


def test_an_answer_of_vllm_with_log_probabilities_shows_its_tokens() -> None:
    trace = recordings.read(FIXTURES / "vllm-0.30-serve_echo.jsonl", num_experts=8)
    with (FIXTURES / "vllm-0.30-serve_echo.jsonl").open(encoding="utf-8") as lines:
        tokens = json.loads(next(lines))["choices"][0]["logprobs"]["tokens"]
    assert texts_of(trace)[: len(tokens) - 1] == tokens[:-1]


@pytest.mark.parametrize("spoilt", [None, ["a"] * 99, [1, 2], "abc", {"tokens": [None]}])
def test_log_probabilities_that_name_no_tokens_are_passed_over(spoilt: Any, tmp_path: Path) -> None:
    experts = [[[0, 1]], [[1, 2]]]
    record = {"choices": [{"routed_experts": experts, "token_ids": [4, 5, 6], "logprobs": {"tokens": spoilt}}]}
    (tmp_path / "x.json").write_text(json.dumps(record))
    assert texts_of(recordings.read(tmp_path / "x.json")) == ["#4", "#5"]


def test_an_answer_of_sglang_with_texts_beside_its_ids_shows_them(tmp_path: Path) -> None:
    import base64

    experts = np.array([[[0, 1]], [[1, 2]], [[2, 3]]], dtype=np.int32)
    info = {
        "routed_experts": base64.b64encode(experts.tobytes()).decode(),
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "input_token_logprobs": [[None, 4, None], [-1.0, 5, " b"]],
        "output_token_logprobs": [[-1.0, 5, " b"], [-1.0, 6, "c"]],
    }
    (tmp_path / "x.json").write_text(json.dumps({"text": "", "meta_info": info}))
    assert texts_of(recordings.read(tmp_path / "x.json", top_k=2)) == ["#4", " b", " b"]
