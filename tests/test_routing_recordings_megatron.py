"""The router trace of Megatron-LM, written as its RouterTracer writes it: from source, not run.

The writer below follows megatron/core/transformer/moe/router_trace.py of NVIDIA/Megatron-LM at commit
059f0f5c78cddcfa10e34842607d68b745631aeb: a line for each layer of each forward pass, in the order of the passes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, recordings

Integers = npt.NDArray[Any]
LAYERS, E, K = [1, 3], 16, 4


def chosen(tokens: int, layers: int = len(LAYERS), seed: int = 0) -> Integers:
    """[T,L,K]"""
    return np.argsort(np.random.default_rng(seed).random((tokens, layers, E)), axis=2)[:, :, :K]


def line(step: int, layer: int, top_indices: Any, rank: int = 0, **others: Any) -> dict[str, Any]:
    """A line of the file, its keys in the tracer's order."""
    indices = np.asarray(top_indices).tolist()
    of_heads = {key: others.pop(key) for key in ("mtp_idx",) if key in others}
    return {
        **{"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": rank},
        **{"num_tokens": len(indices), "topk": len(indices[0]) if indices else K, **of_heads, "top_indices": indices},
        **others,
    }


def pass_lines(step: int, experts_TLK: Integers, rank: int = 0) -> list[dict[str, Any]]:
    return [line(step, layer, experts_TLK[:, row], rank) for row, layer in enumerate(LAYERS)]


def written(folder: Path, rank: int, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"router_trace_rank{rank}.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def indices_TLK(trace: RoutingTrace) -> Integers:
    return trace.router_indices.transpose(1, 0, 2)


def test_passes_of_steps_and_microbatches_follow_from_the_layers(tmp_path: Path) -> None:
    passes = [chosen(5, seed=1), chosen(7, seed=2), chosen(5, seed=3)]
    lines = [*pass_lines(0, passes[0]), *pass_lines(0, passes[1]), *pass_lines(1, passes[2])]
    trace = recordings.read(written(tmp_path, 0, lines), num_experts=E)
    assert np.array_equal(indices_TLK(trace), np.concatenate(passes))
    assert trace.document_ids.tolist() == [0] * 5 + [1] * 7 + [2] * 5
    assert trace.positions.tolist() == [*range(5), *range(7), *range(5)]
    assert (trace.layers, trace.top_k, trace.num_experts) == (LAYERS, K, E)
    assert "each forward pass of a rank counts as one" in trace.source


def test_ranks_lie_side_by_side_and_other_files_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    ranks = {rank: chosen(6, seed=rank) for rank in (0, 2, 10)}
    for rank, experts_TLK in ranks.items():
        written(folder, rank, pass_lines(0, experts_TLK, rank))
    (folder / "hidden_states_rank0.bin").write_bytes(b"\x00" * 64)
    for path in (folder, folder / "router_trace_rank*.jsonl"):
        trace = recordings.read(path, num_experts=E)
        assert np.array_equal(indices_TLK(trace), np.concatenate(list(ranks.values())))
        assert trace.document_ids.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    found = recordings.convert(folder, tmp_path / "t.parquet", num_experts=E)
    assert (found.format, found.tokens, found.documents, found.token_ids) == ("megatron-trace", 18, 3, False)


def test_ranks_that_computed_the_same_tokens_count_once(tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    for rank, seed in enumerate((5, 5, 6)):
        written(folder, rank, [one for step in range(4) for one in pass_lines(step, chosen(50, seed=seed), rank)])
    trace = recordings.read(folder, num_experts=E)
    assert trace.num_tokens == 2 * 4 * 50
    assert "ranks that recorded the same tokens are counted once" in trace.source


def test_layers_that_are_recomputed_for_the_backward_pass_count_once(tmp_path: Path) -> None:
    first, second = chosen(40, seed=1), chosen(40, seed=2)
    again = [line(0, layer, experts[:, row]) for experts in (second, first) for row, layer in [(1, 3), (0, 1)]]
    lines = [*pass_lines(0, first), *pass_lines(0, second), *again, *pass_lines(0, first), *pass_lines(1, second)]
    trace = recordings.read(written(tmp_path, 0, lines), num_experts=E)
    assert np.array_equal(indices_TLK(trace), np.concatenate([first, second, second]))
    assert "recomputed for the backward pass are counted once" in trace.source


def test_heads_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    experts_TLK = chosen(5)
    head = line(0, 0, experts_TLK[:, 0], block="mtp", mtp_idx=0)
    trace = recordings.read(written(tmp_path, 0, [*pass_lines(0, experts_TLK), head]), num_experts=E)
    assert trace.layers == LAYERS
    assert trace.num_tokens == 5
    assert "block mtp" in trace.source


def test_a_pass_without_tokens_and_lines_of_an_older_version_are_read(tmp_path: Path) -> None:
    experts_TLK = chosen(3)
    keys = ("rank", "step", "layer", "num_tokens", "top_indices")
    lines = [{key: one[key] for key in keys} for one in [*pass_lines(0, experts_TLK[:0]), *pass_lines(1, experts_TLK)]]
    trace = recordings.read(written(tmp_path, 0, lines), num_experts=E)
    assert np.array_equal(indices_TLK(trace), experts_TLK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": 4}, r"line 2: top_indices is \[5, 4\] for 4 tokens with 4 experts"),
        ({"topk": 2}, r"line 2: top_indices is \[5, 4\] for 5 tokens with 2 experts"),
        ({"step": "0"}, r"line 2: step is '0'; expected a whole number from 0"),
        ({"layer": None}, r"line 2: layer is None; expected a whole number"),
        ({"layer": -1}, r"line 2: layer is -1; expected a whole number"),
        ({"step": []}, r"line 2: step is list; expected a whole number"),
        ({"top_indices": [[1, 2, 3, 4]] * 4 + [[1, 2, 3]]}, r"line 2: top_indices is object"),
        ({"top_indices": [[1, 2, 3, 4.5]] * 5}, r"line 2: top_indices is float64 \[5, 4\]; expected a list of expert"),
        ({"top_indices": "AAAA"}, r"line 2: top_indices is "),
        ({"top_indices": [[1, 2, 3, 4]] * 6, "num_tokens": 6}, r"line 2: layer 3 has 6 tokens, another of .* 5"),
        ({"top_indices": [[1, 2, 3, 1]] * 5}, r"the pass from line 1 on, token 0, layer 3, slot 3: expert 1 a second"),
        ({"top_indices": [[1, 2, 3, 99]] * 5}, r"the pass from line 1 on, token 0, layer 3, slot 3: 99; expected an e"),
        ({"top_indices": [[1, 2, 3]] * 5, "topk": 3}, r"line 1: 3, 4 experts a token; expected one K"),
        ({"layer": 4}, r"line 3: a pass through the layers 1, 3; expected 1, 4, as in the first one"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(change: Any, message: str, tmp_path: Path) -> None:
    lines = [*pass_lines(0, chosen(5)), *pass_lines(1, chosen(5, seed=1))]
    lines[1] |= change
    with pytest.raises(TraceError, match=message) as error:
        recordings.read(written(tmp_path, 0, lines), num_experts=E, format="megatron-trace")
    assert "router_trace_rank0.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_ids_and_empty_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, 0, [])
    with pytest.raises(TraceError, match=r"router_trace_rank0.jsonl' is empty"):
        recordings.read(path, format="megatron-trace")
    path = written(tmp_path, 0, [line(0, 0, chosen(5)[:, 0], block="mtp", mtp_idx=0)])
    with pytest.raises(TraceError, match="has no line of the decoder"):
        recordings.read(path, format="megatron-trace")
    with pytest.raises(TraceError, match="tells no texts apart that ids could be of"):
        recordings.read(path, format="megatron-trace", token_ids=path)


EXAMPLE = "".join(json.dumps(one) + "\n" for one in pass_lines(0, chosen(2))).encode()


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(EXAMPLE) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_damage_anywhere_is_one_line(
    place: int, value: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(EXAMPLE[:place] if cut else EXAMPLE[:place] + bytes([value]) + EXAMPLE[place + 1 :])
    try:
        recordings.read(path, format="megatron-trace")
    except TraceError as error:  # a changed digit may well be read
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert "damaged.jsonl" in message
