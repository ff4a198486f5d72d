"""SGLang's counts, the buffer of its recorder and the older CSV: written here as its source writes them, not by it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.errors import TraceError
from moe_core.routing.opening import open_routing
from moe_core.routing.trace.routing_counts import RoutingCounts

SUMMED = (
    "SGLang sums over all ranks: with tensor parallelism each of them counts every token, and the counts are so many "
    "times too high; their shares are right"
)


def dump(path: Path, buffer: Any, **others: Any) -> Path:
    """What _StatAccumulator.dump gives to torch.save."""
    content = {"rank": 0, "logical_count": torch.as_tensor(buffer), "average_utilization_rate_over_window": None}
    torch.save({**content, **others}, path)
    return path


def ring(size: int, passes: int, begin: int = 0) -> np.ndarray[Any, Any]:
    """[size, 3 layers, 4 experts]: pass p has the counts p+1 of expert p % 4, and 2 of expert 3; layer 0 is dense."""
    buffer = np.zeros((size, 3, 4), np.int32)
    for number in range(passes):
        place = buffer[(begin + number) % size, 1:]
        place[:] = 0
        place[:, number % 4] += number + 1
        place[:, 3] += 2
    return buffer


def opened(path: Path, **options: Any) -> RoutingCounts:
    found = open_routing(path, **options)
    assert isinstance(found.routing, RoutingCounts)
    return found.routing


def test_unused_places_and_dense_layers_are_left_out(tmp_path: Path) -> None:
    path = dump(tmp_path / "expert_distribution_recorder_1746012345.12.pt", ring(8, 3))
    counts = opened(path, top_k=2)
    assert counts.tokens_per_expert[:, 0, 0].tolist() == [[1, 0, 0, 2], [0, 2, 0, 2], [0, 0, 3, 2]]
    assert (counts.layers, counts.steps, counts.top_k) == ([1, 2], [0, 1, 2], 2)
    assert counts.tokens[:, 0].tolist() == [2, 2, 3]
    assert counts.notes == (
        SUMMED,
        "layers without a single choice are left out, as those without a router are: 0",
        "the choices of the busiest layer are no multiple of K = 2: tokens were dropped, or K is another number",
        "fewer choices than tokens x K in layers 1, 2: dropped tokens, as a rule",
    )
    assert opened(path).unit == "choice"
    assert open_routing(path).format == "sglang-stat"


@pytest.mark.parametrize("begin", range(5))
def test_the_ring_is_unrolled_where_its_gap_shows_the_beginning(begin: int, tmp_path: Path) -> None:
    counts = opened(dump(tmp_path / "x.pt", ring(5, 4, begin)))
    assert counts.tokens_per_expert[:, 0, 0].sum(axis=1).tolist() == [3, 4, 5, 6]
    assert not [note for note in counts.notes if "buffer" in note]


def test_a_full_ring_and_one_with_several_gaps_say_that_the_order_is_not_known(tmp_path: Path) -> None:
    assert any(
        note.startswith("every place of the buffer is used")
        for note in opened(dump(tmp_path / "x.pt", ring(4, 6))).notes
    )
    buffer = ring(6, 5)
    buffer[2] = 0
    counts = opened(dump(tmp_path / "y.pt", buffer))
    assert counts.steps == [0, 1, 2, 3]
    assert "passes without tokens lie between the others: their order is that of the buffer's places" in counts.notes


def test_files_of_several_ranks_are_the_same_sums_and_count_once(tmp_path: Path) -> None:
    for rank in range(3):
        dump(tmp_path / f"expert_distribution_recorder_17460123{rank}.pt", ring(8, 3), rank=rank)
    counts = opened(tmp_path)
    assert counts.num_tokens == opened(next(tmp_path.glob("*.pt"))).num_tokens
    assert counts.notes[0] == (
        "of 3 files 1 differ: every rank writes the sums over all ranks, and equal ones count once"
    )


def test_files_that_differ_are_dumps_one_after_the_other(tmp_path: Path) -> None:
    dump(tmp_path / "expert_distribution_recorder_9.5.pt", ring(8, 1))
    dump(tmp_path / "expert_distribution_recorder_10.5.pt", ring(8, 2))
    counts = opened(tmp_path)
    assert counts.tokens_per_expert[:, 0, 0].sum(axis=1).tolist() == [3, 3, 4]
    assert "2 files that differ are taken for dumps one after the other" in counts.notes
    dump(tmp_path / "expert_distribution_recorder_11.5.pt", np.ones((2, 3, 5), np.int32))
    with pytest.raises(TraceError, match=r"11\.5\.pt' has \[3, 5\] layers and experts, .*\[3, 4\]"):
        opened(tmp_path)


def test_more_passes_than_fit_are_added_up_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.routing.recordings.sglang_buffer.MAX_NUMBERS", 24)
    counts = opened(dump(tmp_path / "x.pt", ring(8, 5)))
    assert counts.tokens_per_expert[:, 0, 0].tolist() == [[1, 2, 3, 6], [5, 0, 0, 8]]
    assert "3 forward passes each are added into one step, for all would not fit" in counts.notes


def test_a_buffer_of_a_gpu_and_one_of_int64_open_alike(tmp_path: Path) -> None:
    content = dump(tmp_path / "x.pt", ring(8, 3)).read_bytes()
    assert content.count(b"X\x03\x00\x00\x00cpu") == 1
    (tmp_path / "y.pt").write_bytes(content.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00npu"))
    expected = opened(tmp_path / "x.pt").tokens_per_expert
    dump(tmp_path / "z.pt", ring(8, 3).astype(np.int64))
    np.testing.assert_array_equal(opened(tmp_path / "z.pt").tokens_per_expert, expected)
    with pytest.raises(TraceError, match="is damaged"):  # its checksum was that of the other text
        opened(tmp_path / "y.pt")


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (np.zeros((4, 2, 3), np.int32), "every count is 0; start the recorder"),
        (np.zeros((4, 2, 3), np.float32), "logical_count is float32"),
        (-np.ones((4, 2, 3), np.int32), "logical_count is int32, from -1 on"),
        (np.zeros(3, np.int32), r"logical_count is \[3\]; expected a tensor \[passes, layers, experts\]"),
        (np.zeros((0, 2, 3), np.int32), r"logical_count is \[0, 2, 3\]"),
    ],
)
def test_a_buffer_that_holds_no_counts_is_refused(buffer: Any, message: str, tmp_path: Path) -> None:
    path = dump(tmp_path / "x.pt", buffer)
    with pytest.raises(TraceError, match=message):
        opened(path)


def test_a_huge_buffer_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dump(tmp_path / "x.pt", ring(8, 3))
    monkeypatch.setattr("moe_core.routing.recordings.sglang_buffer.MOST_NUMBERS", 95)
    with pytest.raises(TraceError, match=r"\[8, 3, 4\] has more than 95 numbers"):
        opened(path)


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = dump(tmp_path / "x.pt", ring(8, 3), rank=Hostile())
    with pytest.raises(TraceError, match=r"it names '(posix|nt)\.mkdir'"):
        opened(path)
    assert not (tmp_path / "ran").exists()


def csv_file(folder: Path, rank: int, tokens: Any, time: float = 1744347750.5) -> Path:
    """As dump_record counts the tokens [T,K] of layers 3 and 4, in the order in which experts come up."""
    lines = ["layer_id,expert_id,count"]
    for layer in (3, 4):
        counts: dict[int, int] = {}
        for row in tokens:
            for expert in row:
                counts[expert] = counts.get(expert, 0) + 1
        lines += [f"{layer},{expert},{count}" for expert, count in counts.items()]
    path = folder / f"expert_distribution_rank{rank}_timestamp{time}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_of_one_rank(tmp_path: Path) -> None:
    path = csv_file(tmp_path, 0, [(0, 2), (2, 5), (2, 0)])
    counts = opened(path, top_k=2)
    assert counts.tokens_per_expert[0, :, 0].tolist() == [[2, 0, 3, 0, 0, 1]] * 2
    assert (counts.layers, counts.num_tokens, counts.num_experts) == ([3, 4], 3, 6)
    assert counts.notes == (
        "the number of experts, 6, is the largest id + 1: give --num-experts if the model has more",
    )
    assert opened(path, num_experts=64).num_experts == 64
    with pytest.raises(TraceError, match="it counts 6 experts; --num-experts is 4"):
        opened(path, num_experts=4)
    assert open_routing(path).format == "sglang-csv"


def test_ranks_with_equal_counts_count_once_and_others_add_up(tmp_path: Path) -> None:
    for rank, tokens in enumerate([[(0, 1)], [(0, 1)], [(1, 2), (1, 3)], [(1, 2), (1, 3)]]):
        csv_file(tmp_path, rank, tokens, 100.0 + rank)
    counts = opened(tmp_path, top_k=2, num_experts=4)
    assert counts.tokens_per_expert[0, 0, 0].tolist() == [1, 3, 1, 1]
    assert counts.notes == (
        "of 4 ranks 2 saw tokens of their own: ranks with equal counts are of one tensor-parallel group, and count "
        "once",
    )
    two = opened(tmp_path / "expert_distribution_rank[12]_*.csv", num_experts=4)
    assert two.tokens_per_expert[0, 0, 0].tolist() == [1, 3, 1, 1]
    assert two.notes[0] == "the counts of 2 ranks, each of tokens of its own, are added up"


def test_dumps_of_a_rank_are_steps_in_the_order_of_their_times(tmp_path: Path) -> None:
    csv_file(tmp_path, 0, [(0, 1)], 1000.5)
    csv_file(tmp_path, 0, [(2, 3)], 999.5)
    csv_file(tmp_path, 1, [(0, 2)], 1001.5)
    with pytest.raises(TraceError, match="has 2 dumps of rank 0, 1 of rank 1; expected as many of each"):
        opened(tmp_path)
    csv_file(tmp_path, 1, [(1, 3)], 998.5)
    assert opened(tmp_path).tokens_per_expert[:, 0, 0].tolist() == [[0, 1, 1, 2], [2, 1, 1, 0]]


def test_padding_of_a_batch_is_left_out(tmp_path: Path) -> None:
    counts = opened(csv_file(tmp_path, 0, [(0, 1), (-1, -1)]), top_k=2)
    assert (counts.num_tokens, counts.num_experts) == (1, 2)
    assert counts.notes[0] == "choices of expert -1, with which batches are filled up, are left out"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "counts nothing"),
        ("0,1\n", "line 2: '0,1'; expected layer_id,expert_id,count"),
        ("0,1,2\n0,1,3\n", "line 3: expert 1 of layer 0 a second time"),
        ("0,1,2\nUNKNOWN,1,3\n", "line 3: 'UNKNOWN,1,3'; expected layer_id,expert_id,count"),
        ("0,1,x\n", "line 2: '0,1,x'; expected"),
        ("0,1,2.5\n", "line 2: '0,1,2.5'; expected"),
        ("0,1,1_000\n", "line 2: '0,1,1_000'; expected"),
        ("\n", "line 2: ''; expected"),
        ("0,1,-2\n", "line 2: layer 0, expert 1, count -2"),
        ("-1,1,2\n", "line 2: layer -1"),
        ("0,99999,2\n", "line 2: layer 0, expert 99999"),
        ("99999,1,2\n", "line 2: layer 99999"),
        (f"0,1,{'9' * 5000}\n", "line 2: '0,1,9{56}'"),
        (f"0,1,{10**17}\n", "line 2: layer 0"),
        ("0,-1,5\n", "counts nothing"),
        ("0,1,0\n", "nothing was routed"),
        ('0,"1\n', "line 2"),
    ],
)
def test_rows_that_count_nothing_are_refused_by_line(rows: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"layer_id,expert_id,count\n{rows}")
    with pytest.raises(TraceError, match=message):
        opened(path)


def test_a_file_with_too_many_rows_and_one_of_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = csv_file(tmp_path, 0, [(0, 1), (2, 3)])
    path.write_bytes(path.read_bytes() + b"\xff\xfe")
    with pytest.raises(TraceError, match=r"csv', line .*codec"):
        opened(path)
    monkeypatch.setattr("moe_core.routing.recordings.sglang_csv.MOST_ROWS", 4)
    with pytest.raises(TraceError, match="has more than 4 rows"):
        opened(csv_file(tmp_path, 0, [(0, 1), (2, 3)]))


FIXTURES = Path(__file__).parent / "fixtures" / "recordings"
"""Written by SGLang's own recorders, 0.4.5 and 0.5.23, in two processes that were given these choices."""


def recorded(step: int) -> np.ndarray[Any, Any]:
    """[3 layers, 8 experts] of both ranks together; layer 0 of the model is dense."""
    layer, token, slot = np.indices((4, 10, 2))
    ranks = [(token * (rank + 1) + 3 * slot + step + layer) % 8 for rank in range(2)]
    return np.stack([np.bincount(np.concatenate(ranks)[at::4].ravel(), minlength=8) for at in (1, 2, 3)])


def test_what_the_recorder_of_0_5_23_dumped_comes_out_through_its_ring(tmp_path: Path) -> None:
    """A ring of 6, dumped after 2 passes, then after 5, which go over its end; two experts have a copy each."""
    counts = opened(FIXTURES / "sglang-0.5.23", top_k=2)
    expected = [recorded(step) for step in (0, 1, 10, 11, 12, 13, 14)]
    assert counts.tokens_per_expert[:, :, 0].tolist() == np.stack(expected).tolist()
    assert (counts.layers, counts.num_tokens, counts.top_k) == ([1, 2, 3], 7 * 20, 2)
    counts.save(tmp_path / "x.counts.parquet")
    assert RoutingCounts.load(tmp_path / "x.counts.parquet") == counts


def test_what_the_recorder_of_0_4_5_dumped_adds_up_over_its_ranks(tmp_path: Path) -> None:
    counts = opened(FIXTURES / "sglang-0.4.5", top_k=2)
    assert counts.tokens_per_expert[0, :, 0].tolist() == sum(recorded(step) for step in range(3)).tolist()
    assert (counts.layers, counts.num_tokens, counts.num_experts) == ([1, 2, 3], 60, 8)
    counts.save(tmp_path / "x.counts.parquet")
    assert RoutingCounts.load(tmp_path / "x.counts.parquet") == counts
