"""Megatron-LM's tokens per expert: written here as its ActivationLogger writes them, not by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.errors import TraceError
from moe_core.routing.opening import open_routing
from moe_core.routing.trace.routing_counts import RoutingCounts

Layers = dict[int, list[list[int]]]
"""The microbatches of each layer."""


def line(iteration: int, layer: int, microbatches: list[list[int]], **others: Any) -> str:
    return json.dumps({"iter": iteration, "block": "decoder", **others, "layer": layer, "tpe": microbatches}) + "\n"


def rank_file(folder: Path, rank: int, iterations: dict[int, Layers]) -> Path:
    """As save_tpe appends: layers in ascending order, one iteration after the other."""
    path = folder / f"rank{rank}.jsonl"
    lines = [line(step, layer, found) for step, layers in iterations.items() for layer, found in sorted(layers.items())]
    path.write_text("".join(lines))
    return path


def opened(path: Path, **options: Any) -> RoutingCounts:
    found = open_routing(path, **options)
    assert isinstance(found.routing, RoutingCounts)
    return found.routing


def two_ranks(folder: Path) -> Path:
    """Two iterations of two layers, two experts on each of two ranks, two microbatches; 5 tokens of 2 choices."""
    folder.mkdir(exist_ok=True)
    rank_file(
        folder, 0, {100: {3: [[1, 2], [3, 0]], 4: [[2, 2], [1, 0]]}, 200: {3: [[0, 1], [1, 1]], 4: [[5, 0], [0, 0]]}}
    )
    rank_file(
        folder, 1, {100: {3: [[1, 1], [1, 1]], 4: [[0, 1], [2, 2]]}, 200: {3: [[3, 1], [2, 1]], 4: [[0, 5], [0, 0]]}}
    )
    return folder


def test_ranks_stand_side_by_side_and_microbatches_add_up(tmp_path: Path) -> None:
    counts = opened(two_ranks(tmp_path / "tokens_per_expert"), top_k=2)
    assert counts.tokens_per_expert[:, :, 0].tolist() == [
        [[4, 2, 2, 2], [3, 2, 2, 3]],
        [[1, 2, 5, 2], [5, 0, 0, 5]],
    ]
    assert (counts.steps, counts.layers, counts.tokens.tolist(), counts.top_k) == ([100, 200], [3, 4], [[5], [5]], 2)
    assert counts.notes == ()
    counts.save(tmp_path / "x.counts.parquet")
    assert RoutingCounts.load(tmp_path / "x.counts.parquet") == counts
    assert open_routing(tmp_path / "tokens_per_expert").format == "megatron-counts"
    assert opened(tmp_path / "tokens_per_expert").unit == "choice"
    assert opened(tmp_path / "tokens_per_expert" / "rank*.jsonl", top_k=2) == counts
    assert opened(tmp_path / "tokens_per_expert", layers=[4], top_k=2).layers == [4]


def test_one_rank_alone_says_so(tmp_path: Path) -> None:
    counts = opened(two_ranks(tmp_path) / "rank1.jsonl")
    assert counts.num_experts == 2
    assert counts.notes[0] == "these are the experts of one rank alone: 1 more files lie beside it"
    with pytest.raises(TraceError, match=r"layer 3: 1 ranks of 2 experts each; expected 4 experts"):
        opened(tmp_path / "rank1.jsonl", num_experts=4)


def test_ranks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for rank in range(12):
        rank_file(tmp_path, rank, {1: {0: [[rank + 1]]}})
    assert opened(tmp_path).tokens_per_expert[0, 0, 0].tolist() == list(range(1, 13))


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    for rank in (0, 1, 3):
        rank_file(tmp_path, rank, {1: {0: [[rank + 1, 2]]}})
    with pytest.raises(TraceError, match=r"has ranks 0, 1, 3, but no rank2\.jsonl: its experts would be missing"):
        opened(tmp_path)
    with pytest.raises(TraceError, match=r"3 ranks of 2 experts each; expected 8 experts, or a multiple of them"):
        opened(tmp_path, num_experts=8)
    assert opened(tmp_path, num_experts=6).tokens_per_expert[0, 0, 0].tolist() == [1, 2, 2, 2, 4, 2]


def test_ranks_beyond_the_experts_go_round_and_add_up(tmp_path: Path) -> None:
    for rank, counts in enumerate([[1, 2], [3, 4], [10, 20], [30, 40]]):
        rank_file(tmp_path, rank, {1: {0: [counts]}})
    assert opened(tmp_path).num_experts == 8
    found = opened(tmp_path, num_experts=4)
    assert found.tokens_per_expert[0, 0, 0].tolist() == [11, 22, 33, 44]
    assert found.notes[0] == (
        "4 ranks hold 4 experts 2 times over: each time is taken to be of other tokens (expert data parallelism; of "
        "pipeline stages give one at a time)"
    )


def test_ranks_that_split_their_experts_count_once(tmp_path: Path) -> None:
    parts = [np.random.default_rng(part).integers(0, 100, (5, 1, 2)).tolist() for part in range(2)]
    for rank in range(4):
        rank_file(tmp_path, rank, {step: {0: parts[rank // 2][step]} for step in range(5)})
    counts = opened(tmp_path)
    assert counts.num_experts == 4
    assert counts.tokens_per_expert[2, 0, 0].tolist() == parts[0][2][0] + parts[1][2][0]
    assert counts.notes[0].startswith("2 of 4 ranks have all the counts of the rank before")
    assert opened(tmp_path, num_experts=8).num_experts == 8


def test_an_iteration_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    """As where the trainer was killed while rank 1 wrote: its last line has no end."""
    path = two_ranks(tmp_path) / "rank1.jsonl"
    content = path.read_bytes()
    for cut in range(content.rindex(b"{"), len(content) - 2, 7):
        path.write_bytes(content[:cut])
        counts = opened(tmp_path, top_k=2)
        assert (counts.steps, counts.num_tokens) == ([100], 5)
        assert counts.notes[-1] == (
            "1 of 2 iterations were not saved whole and are left out: iteration 200 of rank 1, layer 4 is missing"
        )
    path.write_bytes(content[:-1])  # whole but for its newline
    assert opened(tmp_path, top_k=2).steps == [100, 200]
    rank_file(tmp_path, 1, {300: {3: [[1, 1]], 4: [[1, 1]]}})
    with pytest.raises(TraceError, match=r"no iteration was saved by every rank; iteration 100 of rank 1, layer 3"):
        opened(tmp_path)


def test_ranks_of_other_layers_and_iterations_saved_again(tmp_path: Path) -> None:
    path = rank_file(tmp_path, 0, {1: {0: [[1, 2]]}, 2: {0: [[3, 4]]}})
    path.write_text(path.read_text() + line(2, 0, [[5, 6]]) + line(2, 0, [[9, 9]], block="mtp", mtp_idx=0))
    rank_file(tmp_path, 1, {1: {1: [[7, 8]]}, 2: {1: [[1, 1]]}})
    counts = opened(tmp_path)
    assert counts.tokens_per_expert[:, :, 0].tolist() == [[[1, 2], [7, 8]], [[5, 6], [1, 1]]]
    assert counts.notes[:2] == (
        "iterations that were saved twice, as after a restart, are as they were saved last",
        "layers of the block 'mtp' are left out: they are not the decoder's",
    )


def test_counts_that_fp8_filled_up_are_noted(tmp_path: Path) -> None:
    for rank in range(2):
        rank_file(tmp_path, rank, {step: {0: [[16 * (step + 1), 32 + 16 * rank]]} for step in range(2)})
    counts = opened(tmp_path, top_k=2)
    assert (counts.varying_experts, len(counts.notes)) == (True, 1)  # what is uneven by that is no dropped token
    assert counts.notes[0] == ("every count is a multiple of 16, as FP8 training fills them up: tokens are fewer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (line(1, 0, [[1, 2], [3]]), "line 1: tpe is no list of lists of counts"),
        (line(1, 0, []), "line 1: tpe is no list of lists"),
        (line(1, 0, [[]]), "line 1: tpe is no list of lists"),
        (line(1, 0, [[1, 2.5]]), "line 1: tpe is no list of lists"),
        (line(1, 0, [[1, -2]]), "line 1: counts from -2 to 1"),
        (line(1, 0, [[1, 2**62]]), "line 1: counts from 1 to"),
        (line(1, 0, [[1] * 40_000]), "of 40000 experts; expected"),
        (line(1, 0, [[1, 2]]) + line(1, 1, [[1, 2, 3]]), "line 2: 3 experts; expected 2 as in the lines before"),
        (line(-1, 0, [[1, 2]]), "line 1: iter is -1"),
        (line(1, 99_999, [[1, 2]]), "line 1: layer is 99999"),
        (line(1, 0, [[1, 2]], block=3), "line 1: block is 3"),
        (line(1, 0, [[1, 2]]) + '{"iter": 1}\n', "line 2: expected an object with iter, block, layer and tpe"),
        (line(1, 0, [[1, 2]]) + "[1]\n", "line 2: expected an object"),
        (line(1, 0, [[1, 2]]) + "{oops}\n", "line 2 is no JSON"),
        (line(1, 0, [[1, 2]]) + "[" * 100_000 + "\n", "line 2 is no JSON"),
        (line(1, 0, [[1, 2]]).replace("2", "9" * 5000), "line 1 is no JSON|line 1: tpe is no list"),
        (line(1, 0, [[1, 2]], block="mtp"), "has no counts of a decoder's layers"),
        (line(1, 0, [[0, 0]]), "nothing was routed"),
    ],
)
def test_lines_that_hold_no_counts_are_refused_by_number(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rank0.jsonl").write_text(content)
    with pytest.raises(TraceError, match=message) as refusal:
        opened(tmp_path)
    assert "\n" not in str(refusal.value)


def test_ranks_that_differ_in_their_number_of_experts_are_refused(tmp_path: Path) -> None:
    rank_file(tmp_path, 0, {1: {0: [[1, 2]]}})
    rank_file(tmp_path, 1, {1: {0: [[1, 2, 3]]}})
    with pytest.raises(TraceError, match=r"rank1\.jsonl' has 3 experts, .*rank0\.jsonl' 2"):
        opened(tmp_path)


def test_more_counts_than_may_be_held_and_a_line_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rank_file(tmp_path, 0, {step: {0: [[1, 2]]} for step in range(4)})
    monkeypatch.setattr("moe_core.routing.recordings.megatron_counts.MAX_NUMBERS", 5)
    with pytest.raises(TraceError, match="line 3: more than 5 counts"):
        opened(path)
    monkeypatch.setattr("moe_core.routing.recordings.megatron_counts.MAX_LINE_BYTES", 20)
    with pytest.raises(TraceError, match="line 1 has more than 20 bytes"):
        opened(path)
