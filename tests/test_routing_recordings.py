"""Routing recorded elsewhere: every format as its program writes it, and every fault named by row and column.

The writers below follow the programs' own descriptions (docs/trace-format.md says which); no engine runs here.
"""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError, UsageError
from moe_core.routing import RoutingTrace, metrics, recordings
from moe_core.routing.recordings import one_text, parquet_table, pieces

Integers = npt.NDArray[Any]
L, K, E = 4, 2, 8


def chosen(tokens: int, layers: int = L, k: int = K, experts: int = E, seed: int = 0) -> Integers:
    """[T,L,K] different experts for each token and layer, drawn evenly."""
    generator = np.random.default_rng(seed)
    return np.argsort(generator.random((tokens, layers, experts)), axis=2)[:, :, :k]


def indices_TLK(trace: RoutingTrace) -> Integers:
    return trace.router_indices.transpose(1, 0, 2)


def npy_base64(array: Integers) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def flat_base64(array: Integers, dtype: str = "int32") -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()


def written(path: Path, *records: Any) -> Path:
    """JSON, or JSON lines for a .jsonl path."""
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Arrays


def test_an_array_becomes_a_trace_and_says_what_it_lacks(tmp_path: Path) -> None:
    x = chosen(5)
    x[0, 0] = (E - 1, 0)
    np.save(tmp_path / "r.npy", x.astype(np.uint8))
    np.save(tmp_path / "ids.npy", np.arange(10, 16))  # one id more than rows: the last token was never read
    trace = recordings.read(tmp_path / "r.npy", token_ids=tmp_path / "ids.npy")
    assert np.array_equal(indices_TLK(trace), x)
    assert trace.token_ids.tolist() == [10, 11, 12, 13, 14]
    assert trace.positions.tolist() == [0, 1, 2, 3, 4]
    assert set(trace.document_ids.tolist()) == {0}
    assert (trace.layers, trace.num_experts, trace.domains) == ([0, 1, 2, 3], E, ["all"])
    assert (trace.router_scores == 0.5).all()
    assert "no weights were recorded: every score is 1/2" in trace.source
    assert "the number of experts, 8, is the largest id + 1" in trace.source
    told = recordings.read(tmp_path / "r.npy", num_experts=16)
    assert told.num_experts == 16
    assert "largest id" not in told.source
    assert "no token ids were recorded" in told.source
    assert (told.token_ids == 0).all()


def test_layers_without_router_are_left_out_and_layers_can_be_named(tmp_path: Path) -> None:
    x = chosen(6)
    x[:, 0] = 0  # an engine's buffer has a row for every layer; dense ones stay 0
    np.save(tmp_path / "r.npy", x)
    trace = recordings.read(tmp_path / "r.npy")
    assert trace.layers == [1, 2, 3]
    assert np.array_equal(indices_TLK(trace), x[:, 1:])
    assert "layer 0 left out: it holds the same number everywhere" in trace.source
    assert recordings.read(tmp_path / "r.npy", layers=[2, 3]).layers == [2, 3]
    assert recordings.read(tmp_path / "r.npy", layers=[0, 9, 10, 11]).layers == [9, 10, 11]
    with pytest.raises(TraceError, match="--layers names layer 7; the recording has 4 layers: layers 0 to 3"):
        recordings.read(tmp_path / "r.npy", layers=[7])
    with pytest.raises(UsageError, match="expected ascending layer numbers"):
        recordings.read(tmp_path / "r.npy", layers=[2, 1])


def test_tokens_without_routing_are_left_out_and_counted(tmp_path: Path) -> None:
    x = chosen(6)
    x[1], x[4] = -1, 0  # a cached prefix marked by -1; a place of the buffer that was never written
    np.save(tmp_path / "r.npy", x)
    trace = recordings.read(tmp_path / "r.npy")
    assert trace.positions.tolist() == [0, 2, 3, 5]
    assert "2 tokens without recorded routing are left out" in trace.source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (((3, 2, 1), 9), r"row 3, layer 2, slot 1: 9; expected an expert id from 0 to 7, or -1 for none"),
        (((0, 1, 0), -2), r"row 0, layer 1, slot 0: -2; expected"),
        (((4, 3), 5), r"row 4, layer 3, slot 1: expert 5 a second time; expected each expert once"),
    ],
)
def test_a_wrong_expert_is_named_by_row_and_column(change: Any, message: str, tmp_path: Path) -> None:
    x = chosen(6)
    x[change[0]] = change[1]
    np.save(tmp_path / "r.npy", x)
    with pytest.raises(TraceError, match=message) as error:
        recordings.read(tmp_path / "r.npy", num_experts=E)
    assert "\n" not in str(error.value)
    assert "r.npy" in str(error.value)


@pytest.mark.parametrize(
    ("content", "ids", "message"),
    [
        (np.zeros((3, 2)), None, r"float64 \[3, 2\]; expected integers \[tokens, layers, k\]"),
        (chosen(3), np.arange(7), r"3 rows of routed_experts for 7 token ids"),
        (chosen(3), np.zeros(3), r"text 0 is float64 \[3\]; expected a list of whole numbers"),
        (chosen(3), np.array([1, -4, 2]), r"row 1: token id -4; expected 0 to"),
        (np.zeros((3, 2, 2), dtype=int), None, r"no token is routed"),
        (np.full((3, 1, 1), -1), None, r"no token is routed"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(content: Any, ids: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", content)
    if ids is not None:
        np.save(tmp_path / "ids.npy", ids)
    with pytest.raises(TraceError, match=message):
        recordings.read(tmp_path / "r.npy", token_ids=None if ids is None else tmp_path / "ids.npy")


def test_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    for name, content in {
        "cut.npy": b"\x93NUMPY\x01\x00",
        "cut.npz": b"PK\x03\x04",
        "cut.json": b'{"routed_experts": [',
        "bytes.json": b"\xff\xfe{",
        "cut.parquet": b"PAR1 and nothing",
        "empty.csv": b"",
        "empty.jsonl": b"",
        "words.csv": b"to be or not\n",
        "list.json": b"[1, 2]",
        "number.jsonl": b"7\n",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(TraceError) as error:
            recordings.read(path)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
    with pytest.raises(TraceError, match="no file at"):
        recordings.read(tmp_path / "missing.npy")
    with pytest.raises(UsageError, match=r"format is 'x'; expected one of auto, vllm"):
        recordings.read(tmp_path / "cut.npy", format="x")
    with pytest.raises(TraceError, match=r"is text; for parquet expected a Parquet table"):
        recordings.read(tmp_path / "words.csv", format="parquet")
    with pytest.raises(UsageError, match="num_experts is 1; expected 2 or more"):
        recordings.read(tmp_path / "cut.npy", num_experts=1)


def test_a_pickle_in_a_numpy_file_is_not_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(TraceError, match=r"is no readable \.npy file"):
        recordings.read(tmp_path / "p.npy")


def test_npz_holds_prompt_answer_ids_and_weights(tmp_path: Path) -> None:
    x = chosen(5)
    weights = np.random.default_rng(1).random(x.shape)
    np.savez(tmp_path / "r.npz", routed_experts=x, token_ids=np.arange(5), routed_weights=weights)
    trace = recordings.read(tmp_path / "r.npz", num_experts=E)
    assert np.allclose(trace.router_scores.transpose(1, 0, 2), weights)
    assert trace.source == "routed_experts array, r.npz"
    np.savez(
        tmp_path / "both.npz",
        prompt_routed_experts=x[:3],
        routed_experts=x[3:],
        prompt_token_ids=np.arange(3),
        token_ids=np.arange(3, 6),
    )
    both = recordings.read(tmp_path / "both.npz")
    assert np.array_equal(indices_TLK(both), x)
    assert both.token_ids.tolist() == [0, 1, 2, 3, 4]
    np.savez(tmp_path / "other.npz", something=x)
    with pytest.raises(TraceError, match="holds something; expected an array named routed_experts"):
        recordings.read(tmp_path / "other.npz")
    weights[2, 1, 0] = np.nan
    np.savez(tmp_path / "nan.npz", routed_experts=x, routed_weights=weights)
    with pytest.raises(TraceError, match="row 2, layer 1, slot 0: its weight is nan; expected a finite number"):
        recordings.read(tmp_path / "nan.npz")
    np.savez(tmp_path / "shape.npz", routed_experts=x, routed_weights=weights[1:])
    with pytest.raises(TraceError, match=r"routed_weights is float64 \[4, 4, 2\]; expected numbers \[5, 4, 2\]"):
        recordings.read(tmp_path / "shape.npz")


# vLLM


def vllm_answer(x: Integers, prompt: int, **fields: Any) -> dict[str, Any]:
    """The whole text in one base64 .npy of all but the last token, as vLLM sends it from 0.22 on."""
    ids = list(range(100, 101 + len(x)))
    choice = {"index": 0, "token_ids": ids[prompt:], "routed_experts": npy_base64(x.astype(np.uint8))}
    return {"object": "text_completion", "prompt_token_ids": ids[:prompt], "choices": [choice], **fields}


def test_vllm_answers_line_by_line(tmp_path: Path) -> None:
    x, y = chosen(9), chosen(4, seed=1)
    path = written(tmp_path / "v.jsonl", vllm_answer(x, 5, domain="code"), vllm_answer(y, 3, domain="law"))
    trace = recordings.read(path, num_experts=E)
    assert np.array_equal(indices_TLK(trace), np.concatenate([x, y]))
    assert trace.document_ids.tolist() == [0] * 9 + [1] * 4
    assert trace.positions.tolist() == [*range(9), *range(4)]
    assert trace.token_ids.tolist() == [*range(100, 109), *range(100, 104)]
    assert (trace.domains, trace.domain_ids.tolist()) == (["code", "law"], [0] * 9 + [1] * 4)
    assert trace.source.startswith("vLLM routed_experts, v.jsonl")
    assert metrics.expert_load(trace)["tokens"].sum() == 13 * L * K


def test_vllm_before_022_sends_prompt_and_answer_as_lists(tmp_path: Path) -> None:
    x = chosen(9)
    answer = vllm_answer(x, 5, prompt_routed_experts=x[:5].tolist())
    for rows in (x[5:], x[5:8]):  # with and without a row for the last token; or fewer, as its page allows
        answer["choices"][0]["routed_experts"] = rows.tolist()
        answer["choices"][0]["token_ids"] = list(range(105, 109))
        trace = recordings.read(written(tmp_path / "v.json", answer))
        assert np.array_equal(indices_TLK(trace), x[: 5 + len(rows)])
        assert trace.token_ids.tolist() == list(range(100, 105 + len(rows)))


def test_several_choices_count_their_prompt_once_and_stay_one_source(tmp_path: Path) -> None:
    x, y = chosen(9), chosen(9, seed=1)
    y[:5] = x[:5]
    answer = vllm_answer(x, 5)
    answer["choices"].append(vllm_answer(y, 5)["choices"][0])
    trace = recordings.read(written(tmp_path / "v.json", answer))
    assert np.array_equal(indices_TLK(trace), np.concatenate([x, y[5:]]))
    assert trace.document_ids.tolist() == [0] * 9 + [1] * 4
    assert trace.positions.tolist() == [*range(9), *range(5, 9)]
    assert set(trace.source_ids.tolist()) == {0}


def test_routing_of_the_answer_alone_keeps_its_place(tmp_path: Path) -> None:
    x = chosen(4)
    answer = vllm_answer(chosen(9), 6)
    answer["choices"][0]["routed_experts"] = {
        "encoding": "base64",
        "dtype": "int16",
        "shape": list(x.shape),
        "data": flat_base64(x, "int16"),
    }
    trace = recordings.read(written(tmp_path / "v.json", answer))
    assert np.array_equal(indices_TLK(trace), x)
    # The row of token 9 was never computed: four rows are those of the prompt's last token and of three answered ones.
    assert trace.positions.tolist() == [5, 6, 7, 8]
    assert trace.token_ids.tolist() == [105, 106, 107, 108]


@pytest.mark.parametrize("left_out", [1, 3, 4, 5])
@pytest.mark.parametrize("asked", [True, False])
def test_rows_left_out_at_the_beginning_shift_nothing(left_out: int, asked: bool, tmp_path: Path) -> None:
    x = chosen(9)
    answer = vllm_answer(x, 5)
    answer["choices"][0]["routed_experts"] = x[left_out:].tolist()
    if asked:
        answer["routed_experts_prompt_start"] = left_out
    trace = recordings.read(written(tmp_path / "v.json", answer))
    assert np.array_equal(indices_TLK(trace), x[left_out:])
    assert trace.positions.tolist() == list(range(left_out, 9))
    assert trace.token_ids.tolist() == list(range(100 + left_out, 109))
    assert "the first tokens have no row" in trace.source


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        (7, 3, "7 rows of routed_experts for 10 tokens begin at token 2; expected routed_experts_prompt_start = 3"),
        (9, 1, "begin at token 0; expected routed_experts_prompt_start = 1"),
        (3, 6, "3 rows of routed_experts for 10 tokens; expected 9, or less where the first of the 5 tokens"),
        (7, -1, "routed_experts_prompt_start: -1; expected the number of a token"),
        (7, "2", "routed_experts_prompt_start: '2'; expected the number of a token"),
        (7, True, "routed_experts_prompt_start: True; expected the number of a token"),
    ],
)
def test_rows_that_do_not_fit_what_was_asked_are_refused(rows: int, asked: Any, message: str, tmp_path: Path) -> None:
    x = chosen(9)
    answer = vllm_answer(x, 5, routed_experts_prompt_start=asked)
    answer["choices"][0]["routed_experts"] = x[9 - rows :].tolist()
    with pytest.raises(TraceError, match=re.escape(message)):
        recordings.read(written(tmp_path / "v.json", answer))


def test_several_prompts_of_one_request_are_several_sources(tmp_path: Path) -> None:
    """Two prompts with two answers each: the choices come prompt by prompt."""
    prompts = [chosen(9, seed=seed) for seed in (0, 1)]
    choices, expected = [], []
    for number, x in enumerate(prompts):
        for seed in (2, 3):
            y = chosen(9, seed=10 * number + seed)
            y[:5] = x[:5]
            choice = vllm_answer(y, 5)["choices"][0]
            choices.append(choice | {"prompt_token_ids": [number, *range(101, 105)]})
            expected.append(y[0 if seed == 2 else 5 :])
    trace = recordings.read(written(tmp_path / "v.json", {"choices": choices}))
    assert np.array_equal(indices_TLK(trace), np.concatenate(expected))
    assert [len(set(trace.source_ids[trace.document_ids == d].tolist())) for d in range(4)] == [1] * 4
    assert [int(trace.source_ids[trace.document_ids == d][0]) for d in range(4)] == [0, 0, 2, 2]


def test_top_1_recordings_lose_dense_layers_and_zeros_of_a_cached_prefix(tmp_path: Path) -> None:
    x = chosen(40)[:, :, :1].copy()
    x[:, 0] = 0  # a dense layer
    x[:35] = 0  # two blocks of a cache, and three tokens that may have chosen expert 0 everywhere
    np.save(tmp_path / "x.npy", x)
    trace = recordings.read(tmp_path / "x.npy", num_experts=E)
    assert trace.layers == list(range(1, L))
    assert trace.positions.tolist() == list(range(32, 40))
    assert "32 tokens without recorded routing are left out" in trace.source
    assert "layer 0 left out" in trace.source
    x[0, 1] = 3  # a first token that was routed: what follows is no prefix
    np.save(tmp_path / "x.npy", x)
    assert recordings.read(tmp_path / "x.npy", num_experts=E).num_tokens == 40


@pytest.mark.parametrize(
    ("routed", "message"),
    [
        (None, r"line 2 has no routed_experts; start the server with --enable-return-routed-experts"),
        ("%%%", r"line 2, routed_experts: no base64"),
        (base64.b64encode(b"abcd").decode(), r"line 2, routed_experts: base64 without a \.npy header, as SGLang"),
        (npy_base64(np.zeros(3)), r"line 2: routed_experts is float64 \[3\]; expected integers"),
        ([[[0, 1]], [[0]]], r"line 2, routed_experts, row 1, layer 0 has 1 slots; expected 2 as row 0, layer 0"),
        ([[[0, 1]], [[0, "x"]]], r"line 2, routed_experts, row 1, layer 0, slot 1: 'x'; expected a whole number"),
        ([[[0, 1]], [[0, 1.5]]], r"row 1, layer 0, slot 1: 1.5; expected a whole number"),
        ([[[0, 1]], [[0, 1], [1, 0]]], r"line 2, routed_experts, row 1 has 2 layers; expected 1 as row 0"),
        ([[[0, 1]], 7], r"line 2, routed_experts, row 1 is no list of lists"),
        ({"data": "AAAA", "dtype": "int16", "shape": [1, 1, 2]}, r"bytes of int16; expected whole numbers"),
        ({"data": "AAAAAA==", "dtype": "int16", "shape": [9]}, r"reshape.*; expected base64 data with dtype and shape"),
        ({"dtype": "int16"}, r"'data'; expected base64 data with dtype and shape"),
        (
            npy_base64(chosen(3)),
            r"line 2: 3 rows of routed_experts for 10 tokens; expected 9, or less where the first of",
        ),
        (npy_base64(chosen(11)), r"line 2: 11 rows of routed_experts for 10 token ids"),
        (npy_base64(chosen(9, layers=3)), r"line 2, row 0 has 3 layers with 2 slots, earlier rows 4 with 2"),
    ],
)
def test_a_wrong_answer_is_named_by_line(routed: Any, message: str, tmp_path: Path) -> None:
    good = vllm_answer(chosen(9), 5)
    bad = vllm_answer(chosen(9), 5)
    bad["choices"][0]["routed_experts"] = routed
    with pytest.raises(TraceError, match=message) as error:
        recordings.read(written(tmp_path / "v.jsonl", good, bad))
    assert "\n" not in str(error.value)


def test_json_faults_are_named_by_line_and_column(tmp_path: Path) -> None:
    path = written(tmp_path / "v.jsonl", vllm_answer(chosen(9), 5))
    path.write_text(path.read_text() + '\n{"choices": [}\n')
    with pytest.raises(TraceError, match=r"line 3, column 14: Expecting value; expected JSON"):
        recordings.read(path)
    mixed = vllm_answer(chosen(9), 5)
    del mixed["prompt_token_ids"], mixed["choices"][0]["token_ids"]
    with pytest.raises(TraceError, match="line 2, row 0 has no token ids, earlier rows have some"):
        recordings.read(written(path, vllm_answer(chosen(9), 5), mixed))


def test_token_ids_of_several_answers_come_from_a_list_of_lists(tmp_path: Path) -> None:
    x = chosen(4)
    answers = written(tmp_path / "v.jsonl", {"routed_experts": x.tolist()}, {"routed_experts": x.tolist()})
    ids = written(tmp_path / "ids.json", [[1, 2, 3, 4], [5, 6, 7, 8, 9]])
    assert recordings.read(answers, token_ids=ids).token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(TraceError, match="line 2 has no token ids: --token-ids holds those of 1 texts"):
        recordings.read(answers, token_ids=written(tmp_path / "one.json", [[1, 2, 3, 4]]))


# SGLang


def sglang_answer(x: Integers, prompt: int, **info: Any) -> dict[str, Any]:
    """An answer of /generate with log-probabilities: flat int32 of all but the last token."""
    ids = list(range(100, 101 + len(x)))
    return {
        "text": "...",
        "output_ids": ids[prompt:],
        "meta_info": {
            "prompt_tokens": prompt,
            "completion_tokens": len(ids) - prompt,
            "routed_experts": flat_base64(x),
            "input_token_logprobs": [[None if i == 0 else -1.5, ids[i], None] for i in range(prompt)],
            **info,
        },
    }


def test_sglang_answers_need_top_k(tmp_path: Path) -> None:
    x = chosen(9)
    path = written(tmp_path / "s.json", [sglang_answer(x, 5), sglang_answer(x, 4)])
    with pytest.raises(TraceError, match=r"record 0: 72 expert ids in a row; say with --top-k"):
        recordings.read(path)
    trace = recordings.read(path, top_k=K)
    assert np.array_equal(indices_TLK(trace), np.concatenate([x, x]))
    assert trace.token_ids.tolist() == [*range(100, 109)] * 2
    assert trace.source.startswith("SGLang routed_experts, s.json")
    with pytest.raises(TraceError, match=r"72 expert ids; expected a multiple of 45 = 9 tokens x 5 slots"):
        recordings.read(path, top_k=5)


def test_sglang_small_types_and_a_later_start(tmp_path: Path) -> None:
    x = chosen(9)
    answer = sglang_answer(x, 5, routed_experts=flat_base64(x, "uint8"), routed_experts_dtype="uint8")
    assert np.array_equal(indices_TLK(recordings.read(written(tmp_path / "s.json", answer), top_k=K)), x)
    answer = sglang_answer(x, 5, routed_experts=flat_base64(x[4:]), routed_experts_start_len=4)
    trace = recordings.read(written(tmp_path / "s.json", answer), top_k=K)
    assert np.array_equal(indices_TLK(trace), x[4:])
    assert trace.positions.tolist() == [4, 5, 6, 7, 8]
    assert trace.token_ids.tolist() == [104, 105, 106, 107, 108]
    with pytest.raises(TraceError, match="expert ids of type 'float32'; expected one of int32, uint16, uint8"):
        recordings.read(written(tmp_path / "s.json", sglang_answer(x, 5, routed_experts_dtype="float32")), top_k=K)


def test_sglang_partitions_bring_their_own_shape(tmp_path: Path) -> None:
    x = chosen(9)
    x[:, 1] = (3, 4)  # not among moe_layer_ids: whatever its buffer holds is no routing
    schema = {
        "num_layers": L,
        "top_k": K,
        "dtype": "int32",
        "layout": "row_major",
        "moe_layer_ids": [0, 2, 3],
        "input_num_rows": 4,
        "output_num_rows": 5,
        "input_start_position": 0,
        "output_start_position": 4,
    }
    extension = {"input_expert_ids": flat_base64(x[:4]), "output_expert_ids": flat_base64(x[4:])}
    answer = {
        "choices": [{"index": 0}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5},
        "sglext": {**extension, "expert_ids_schema": schema},
    }
    trace = recordings.read(written(tmp_path / "s.json", answer))
    assert trace.layers == [0, 2, 3]
    assert np.array_equal(indices_TLK(trace), x[:, [0, 2, 3]])
    del answer["sglext"]["input_expert_ids"]  # type: ignore[attr-defined]
    late = recordings.read(written(tmp_path / "s.json", answer))
    assert late.positions.tolist() == [4, 5, 6, 7, 8]
    assert np.array_equal(indices_TLK(late), x[4:][:, [0, 2, 3]])


def test_a_format_that_was_named_wrongly_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "s.json", sglang_answer(chosen(9), 5))
    with pytest.raises(TraceError, match="holds answers of SGLang"):
        recordings.read(path, format="vllm", top_k=K)
    assert recordings.read(path, format="sglang", top_k=K).num_tokens == 9
    outputs = {"prompt_token_ids": [1, 2], "outputs": [{"token_ids": [3], "routed_experts": chosen(2).tolist()}]}
    assert recordings.read(written(path, outputs)).source.startswith("vLLM routed_experts, s.json")


def test_sglang_without_counts_or_routing_is_refused(tmp_path: Path) -> None:
    bare = {"meta_info": {"routed_experts": flat_base64(chosen(3))}}
    with pytest.raises(TraceError, match="has neither prompt_tokens and completion_tokens nor token ids"):
        recordings.read(written(tmp_path / "s.json", bare), top_k=K)
    with pytest.raises(TraceError, match="ask with return_routed_experts"):
        recordings.read(written(tmp_path / "s.json", {"meta_info": {}}), top_k=K)


# llama.cpp


def moe_trace(x: Integers, passes: list[int], layout: str, last_layer_whole: bool = False) -> str:
    """What the programs print: for every pass and layer the choices of its tokens, in the last layer of one only."""
    lines = ["phase,token,layer,rank,expert"] if layout == "ranked" else []
    begin = 0
    for n in passes:
        for layer in range(x.shape[1]):
            whole = layer < x.shape[1] - 1 or last_layer_whole
            rows = x[begin : begin + n, layer] if whole else x[begin + n - 1 : begin + n, layer]
            for j, row in enumerate(rows.tolist()):
                if layout == "positions":
                    place = -(begin + len(rows) - j) if n > 1 else begin
                    lines.append(",".join(map(str, [place, layer, *row])))
                elif layout == "ranked":
                    phase = "prefill" if n > 1 else "decode"
                    lines += [f"{phase},{begin + j},{layer},{rank},{expert}" for rank, expert in enumerate(row)]
                else:
                    lines += [f"{layer},{expert}" for expert in row]
        begin += n
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("layout", ["positions", "ranked", "activations"])
def test_llama_cpp_traces_of_every_layout(layout: str, tmp_path: Path) -> None:
    x = chosen(12)
    (tmp_path / "t.csv").write_text(moe_trace(x, [5, 3, 1, 1, 1, 1], layout))
    (tmp_path / "ids.csv").write_text("phase,token,id\n" + "".join(f"decode,{i},{i + 50}\n" for i in range(12)))
    trace = recordings.read(
        tmp_path / "t.csv", token_ids=tmp_path / "ids.csv", top_k=K if layout == "activations" else None
    )
    expected = x.copy()
    expected[[0, 1, 2, 3, 5, 6], L - 1] = -1  # only the last token of a prompt's pass is evaluated there
    assert np.array_equal(indices_TLK(trace), expected)
    assert (trace.router_scores.transpose(1, 0, 2) == np.where(expected < 0, 0, 0.5)).all()
    assert trace.token_ids.tolist() == list(range(50, 62))
    assert trace.positions.tolist() == list(range(12))
    assert "layer 3, the last one, was evaluated only for tokens whose output was wanted" in trace.source


@settings(max_examples=40, deadline=None)
@given(
    passes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    layers=st.integers(1, 5),
    layout=st.sampled_from(["positions", "ranked", "activations"]),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sequence_of_passes_is_put_together_again(
    passes: list[int], layers: int, layout: str, whole: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = whole or layers == 1  # with one layer alone a pass and its last token cannot be told apart
    x = chosen(sum(passes), layers=layers, seed=seed)
    path = tmp_path_factory.mktemp("llama") / "t.csv"
    path.write_text(moe_trace(x, passes, layout, whole))
    trace = recordings.read(path, top_k=K, num_experts=E)
    expected = x.copy()
    if not whole:
        last = np.cumsum(passes) - 1
        expected[np.setdiff1d(np.arange(len(x)), last), -1] = -1
    assert np.array_equal(indices_TLK(trace), expected)


def test_small_blocks_and_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = chosen(400, seed=3)
    path = tmp_path / "t.csv"
    path.write_text(moe_trace(x, [50, 50] + [1] * 300, "ranked", last_layer_whole=True))
    whole = recordings.read(path)
    monkeypatch.setattr("moe_core.routing.recordings.csv_rows.BLOCK_BYTES", 1000)
    monkeypatch.setattr("moe_core.routing.recordings.llama_cpp.PIECE_TOKENS", 7)
    parts = recordings.read(path)
    assert np.array_equal(indices_TLK(whole), x)
    for name in ("router_indices", "positions", "document_ids"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    x = chosen(6)
    for layout in ("positions", "ranked", "activations"):
        text = moe_trace(x, [2, 1, 1, 1, 1], layout, True).replace("\n", "\r\n")
        (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert np.array_equal(indices_TLK(recordings.read(tmp_path / "t.csv", top_k=K)), x)


def test_a_text_begins_where_places_start_anew(tmp_path: Path) -> None:
    x, y = chosen(5), chosen(4, seed=1)
    (tmp_path / "t.csv").write_text(
        moe_trace(x, [3, 1, 1], "positions", True) + moe_trace(y, [2, 1, 1], "positions", True)
    )
    trace = recordings.read(tmp_path / "t.csv")
    assert np.array_equal(indices_TLK(trace), np.concatenate([x, y]))
    assert trace.document_ids.tolist() == [0] * 5 + [1] * 4
    assert trace.positions.tolist() == [*range(5), *range(4)]


def test_choices_read_from_the_wrong_place_are_found_out(tmp_path: Path) -> None:
    """The programs' first versions show ranks K+1 to 2K of the first token as the choices of the second, and so on."""
    layers, k, experts = 24, 4, 32
    generator = np.random.default_rng(0)
    x = chosen(40, layers, k, experts)
    wrong = x.copy()
    for layer in range(layers):
        wrong[:8, layer] = generator.permutation(experts).reshape(8, k)
    path = tmp_path / "t.csv"
    path.write_text(moe_trace(wrong, [8] + [1] * 32, "positions", True))
    trace = recordings.read(path)
    assert "a batch no expert comes up twice" in trace.source
    assert trace.positions.tolist() == [0, *range(8, 40)]
    path.write_text(moe_trace(x, [8] + [1] * 32, "positions", True))
    assert recordings.read(path).num_tokens == 40


@pytest.mark.parametrize(
    ("text", "top_k", "message"),
    [
        ("0,1\n0,2\n", None, r"has one row for each activation; say with --top-k"),
        ("0,1\n0,2\n1,3\n", 2, r"ends in line 3 within a token: 1 of its 2 rows are there"),
        ("0,1\n1,2\n", 2, r"line 2, column 'layer': 1; expected 0, for a token has 2 rows"),
        ("-1,0,1,2\n-1,x,1,2\n", None, r"line 2, column 'layer': 'x'; expected a whole number"),
        ("-1,0,1,2\n-1,1,1\n", None, r"line 2 has 3 columns; expected 4: pos,layer,id0,id1"),
        ("-1,0,1,2\n-1,1,,2\n", None, r"line 2, column 'id0' is empty; expected a whole number"),
        ("-1,0,1,2\n-1,-1,1,2\n", None, r"line 2, column 'layer': -1; expected 0 or more"),
        ("-1,0,1,2\n", 3, r"has 2 experts for a token and layer, --top-k says 3"),
        ("layer,expert\n0,1\n0,99\n", 2, r"line 2, layer 0, slot 1: 99; expected an expert id from 0 to 7"),
        ("-1,0,1,2\n0,0,3,3\n", None, r"the token of line 2, layer 0, slot 1: expert 3 a second time"),
        (
            "phase,token,layer,rank,expert\nprefill,0,0,0,1\nprefill,0,0,1,2\nprefill,1,0,1,2\nprefill,1,0,1,3\n",
            None,
            r"line 4, column 'rank': 1; expected 0",
        ),
        (
            "-2,0,1,2\n-1,0,2,3\n-2,1,1,2\n-2,2,1,2\n-1,2,3,4\n",
            None,
            r"line 3: layer 1 has 1 tokens where another layer of the same pass has 2",
        ),
        ("one,two\n1,2\n", 2, r"line 1: 'one,two'; expected layer,expert"),
    ],
)
def test_a_wrong_line_is_named(text: str, top_k: int | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TraceError, match=message) as error:
        recordings.read(tmp_path / "t.csv", top_k=top_k, num_experts=E)
    assert "\n" not in str(error.value)


def test_token_ids_of_another_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(moe_trace(chosen(6), [2, 1, 1, 1, 1], "positions", True))
    for count, message in ((4, "only 4 token ids, but"), (9, "are 9 for 6 tokens of")):
        (tmp_path / "ids.txt").write_text(" ".join(["7"] * count))
        with pytest.raises(TraceError, match=message):
            recordings.read(tmp_path / "t.csv", token_ids=tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("1, 2, 3 4\n5 6 7")
    assert recordings.read(tmp_path / "t.csv", token_ids=tmp_path / "ids.txt").token_ids.tolist() == [1, 2, 3, 4, 5, 6]


# Parquet


def wide_columns(x: Integers, layers: tuple[int, ...] = (1, 3, 5, 7)) -> dict[str, Any]:
    return {f"layer_{layer}_expert_{s}": x[:, i, s] for i, layer in enumerate(layers) for s in range(x.shape[2])}


def table_at(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def test_a_table_with_a_column_for_each_slot(tmp_path: Path) -> None:
    x = chosen(6)
    x[2, 1, 1] = -1
    scores = np.where(x < 0, 0, np.random.default_rng(0).random(x.shape)).astype(np.float32)
    columns = wide_columns(x) | {
        name.replace("expert", "score"): values for name, values in wide_columns(scores).items()
    }
    columns |= {
        "token_id": [5, 6, 7, 5, 6, 7],
        "document_id": ["b", "b", "a", "a", "b", "c"],
        "source_id": [1, 1, 2, 2, 1, 2],
        "domain": pa.array(["law", "law", "code", "code", "law", "code"]).dictionary_encode(),
    }
    trace = recordings.read(table_at(tmp_path / "t.parquet", columns, {"num_experts": "16"}))
    assert np.array_equal(indices_TLK(trace), x)
    assert np.array_equal(trace.router_scores.transpose(1, 0, 2), scores)
    assert (trace.layers, trace.num_experts, trace.domains) == ([1, 3, 5, 7], 16, ["law", "code"])
    assert trace.document_ids.tolist() == [0, 0, 1, 1, 0, 2]
    assert trace.source_ids.tolist() == [1, 1, 2, 2, 1, 2]
    assert trace.positions.tolist() == [0, 1, 0, 1, 2, 0]
    assert trace.domain_ids.tolist() == [0, 0, 1, 1, 0, 1]
    assert trace.source == "Parquet table, t.parquet"


def test_a_table_with_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = chosen(20)
    weights = np.random.default_rng(0).random(x.shape)
    columns = {"routed_experts": x.tolist(), "routed_weights": weights.tolist(), "position": range(20, 40)}
    path = table_at(tmp_path / "t.parquet", columns)
    trace = recordings.read(path)
    assert np.array_equal(indices_TLK(trace), x)
    assert np.allclose(trace.router_scores.transpose(1, 0, 2), weights)
    assert trace.positions.tolist() == list(range(20, 40))
    assert "the whole table counts as one text" in trace.source
    monkeypatch.setattr(parquet_table, "PIECE_TOKENS", 3)
    assert np.array_equal(indices_TLK(recordings.read(path)), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_3_expert_1": [1, 2, 99, 4]},
            r"row 2, column 'layer_3_expert_1': 99; expected an expert id from 0 to 7",
        ),
        ({"layer_3_expert_1": [1, None, 3, 4]}, r"row 1, column 'layer_3_expert_1' is empty"),
        ({"layer_3_expert_1": [0.5, 1, 2, 3]}, r"column 'layer_3_expert_1' is double; expected whole numbers"),
        ({"layer_3_expert_1": None}, r"column 'layer_3_expert_1' is missing; expected 2 a layer"),
        ({"layer_3_score_1": [0.5, 1, 2, 3]}, r"column 'layer_1_score_0' is missing"),
        ({"token_id": [1, 2, 3, -4]}, r"row 3: token id -4; expected 0 to"),
        ({"token_id": ["a", "b", "c", "d"]}, r"column 'token_id' is string; expected whole numbers"),
        ({"token_id": [1, None, 3, 4]}, r"row 1, column 'token_id' is empty"),
        ({"position": [0, 1, 2, -1]}, r"row 3: position -1"),
        ({"document_id": [0, 1, 2, 2**40]}, r"row 3, column 'document_id': 1099511627776; expected"),
        ({"document_id": [0.5, 1, 2, 3]}, r"column 'document_id' is double; expected whole numbers or text"),
        ({"domain": [1, 2, 3, 4]}, r"column 'domain' is int64; expected text"),
    ],
)
def test_a_wrong_cell_of_a_table_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    columns = {name: values for name, values in (wide_columns(chosen(4)) | changes).items() if values is not None}
    with pytest.raises(TraceError, match=message) as error:
        recordings.read(table_at(tmp_path / "t.parquet", columns), num_experts=E)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[[0, 1]], [[0]]], r"row 1, column 'routed_experts' has 1 slots, row 0 has 2"),
        ([[[0, 1]], [[0, 1], [2, 3]]], r"row 1, column 'routed_experts' has 2 layers, row 0 has 1"),
        ([[[0, 1]], [[0, None]]], r"row 1, column 'routed_experts' has an empty place"),
        ([[[0, 1]], None], r"row 1, column 'routed_experts' is empty"),
        ([[["a"]], [["b"]]], r"column 'routed_experts' is list<.*>; expected lists \[layers\] of lists \[k\]"),
    ],
)
def test_wrong_lists_in_a_table_are_named(lists: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        recordings.read(table_at(tmp_path / "t.parquet", {"routed_experts": lists}))


@pytest.mark.parametrize("name", ["layer_0_expert_0", "token_id", "domain", "text"])
def test_a_table_with_a_column_twice_is_refused(name: str, tmp_path: Path) -> None:
    columns = {
        "layer_0_expert_0": [0, 1],
        "layer_0_expert_1": [1, 2],
        "token_id": [5, 6],
        "domain": ["a", "b"],
        "text": ["c", "d"],
    }
    names = [*columns, name]
    table = pa.Table.from_arrays([pa.array(columns[name]) for name in names], names=names)
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(TraceError, match=f"has several columns '{name}'; expected one of each name"):
        recordings.read(tmp_path / "t.parquet")


def test_a_trace_is_no_table_and_a_table_needs_experts(tmp_path: Path) -> None:
    path = table_at(tmp_path / "t.parquet", wide_columns(chosen(4)))
    recordings.read(path).save(tmp_path / "x.parquet")
    with pytest.raises(TraceError, match="is a trace already; open it as it is"):
        recordings.read(tmp_path / "x.parquet")
    with pytest.raises(TraceError, match="has columns a; expected layer_0_expert_0"):
        recordings.read(table_at(tmp_path / "t.parquet", {"a": [1]}))
    with pytest.raises(TraceError, match="its token ids are its column token_id"):
        recordings.read(table_at(tmp_path / "t.parquet", wide_columns(chosen(4))), token_ids=tmp_path / "ids.json")
    with pytest.raises(TraceError, match="num_experts in the metadata is b'many'"):
        recordings.read(table_at(tmp_path / "t.parquet", wide_columns(chosen(4)), {"num_experts": "many"}))


# Writing


def test_convert_writes_what_read_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_text, "PIECE_TOKENS", 4)
    assert pieces.PIECE_TOKENS > 4
    path = written(tmp_path / "v.jsonl", *(vllm_answer(chosen(9, seed=i), 5, domain=f"d{i % 2}") for i in range(5)))
    stages: list[tuple[str, int, int]] = []

    def texts(ids: Any) -> dict[int, str]:
        return {token_id: f"<{token_id}>" for token_id in ids}

    found = recordings.convert(
        path, tmp_path / "x.parquet", num_experts=E, texts=texts, progress=lambda *call: stages.append(call)
    )
    assert (found.tokens, found.documents, found.domains, found.top_k) == (45, 5, ["d0", "d1"], K)
    assert not found.weights
    stored, read = RoutingTrace.load(tmp_path / "x.parquet"), recordings.read(path, num_experts=E, texts=texts)
    for name in ("router_indices", "router_scores", "token_ids", "document_ids", "positions", "domain_ids"):
        assert np.array_equal(getattr(stored, name), getattr(read, name)), name
    assert (stored.source, stored.vocabulary) == (found.source, read.vocabulary)
    assert stored.token_text(0) == "<100>"
    assert {stage for stage, _, _ in stages} == {"checking (1 of 2)", "writing (2 of 2)"}
    assert all(0 <= done <= total for _, done, total in stages)


def test_a_fault_at_the_end_leaves_the_older_file(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"older")
    bad = vllm_answer(chosen(9), 5)
    bad["choices"][0]["routed_experts"] = None
    path = written(tmp_path / "v.jsonl", *[vllm_answer(chosen(9), 5)] * 3, bad)
    with pytest.raises(TraceError, match="line 4"):
        recordings.convert(path, tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").read_bytes() == b"older"
    assert {file.name for file in tmp_path.iterdir()} == {"x.parquet", "v.jsonl"}


HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1), }  False, 'shape': (22, 4, 2), }"
BROKEN_NPY = b"\x93NUMPY\x01\x00" + (len(HEADER) + 1).to_bytes(2, "little") + HEADER + b"\n" + b"\x01" * 8
"""Its header is no Python: numpy fails with an error of Python's own tokenizer."""


def test_a_npy_whose_header_is_broken_is_named_wherever_it_comes(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(BROKEN_NPY)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("routed_experts.npy", BROKEN_NPY)
    encoded = {"routed_experts": base64.b64encode(BROKEN_NPY).decode(), "prompt_token_ids": [1, 2]}
    (tmp_path / "x.jsonl").write_text(json.dumps({"choices": [encoded]}) + "\n", encoding="utf-8")
    for name in ("x.npy", "x.npz", "x.jsonl"):
        with pytest.raises(TraceError, match=name):
            recordings.read(tmp_path / name)
    np.save(tmp_path / "sound.npy", np.zeros((2, 1, 1), np.uint8))
    with pytest.raises(TraceError, match="expected whole numbers"):
        recordings.read(tmp_path / "sound.npy", token_ids=tmp_path / "x.npy")
