"""llama.cpp's importance matrix: the counts of a real one, and files that are damaged, hostile or something else."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.errors import TraceError
from moe_core.routing.opening import open_routing
from moe_core.routing.recordings.gguf_file import read_gguf_head
from moe_core.routing.trace.routing_counts import RoutingCounts

REAL = Path(__file__).parent / "fixtures" / "recordings" / "llama.cpp-imatrix.gguf"
"""Written by llama-imatrix over 719 windows of 128 tokens, for the demo as exported; these are its counts."""
REAL_COUNTS = [
    [19096, 33552, 18949, 24739, 21987, 22139, 21070, 22532],
    [18880, 22493, 28470, 19905, 20893, 30126, 21568, 21729],
    [23386, 21319, 21029, 20537, 25528, 19445, 26737, 26083],
    [23898, 21019, 24315, 21976, 20724, 23386, 21906, 26840],
]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


TYPE = pair("general.type", 8, text("imatrix"))


def gguf(tensors: Mapping[str, Sequence[float]], values: Sequence[bytes] = (TYPE,), version: int = 3) -> bytes:
    """A GGUF file with tensors of [n, 1] float32, written after the description of the format."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values)
    content = b""
    for name, numbers in tensors.items():
        head += text(name) + struct.pack("<IQQIQ", 2, 1, len(numbers), 0, len(content))
        row = struct.pack(f"<{len(numbers)}f", *numbers)
        content += row + bytes(-len(row) % 32)
    return head + bytes(-len(head) % 32) + content


def imatrix(counts: Mapping[int, Sequence[float]], dense: float = 0) -> dict[str, Sequence[float]]:
    tensors: dict[str, Sequence[float]] = {}
    for layer, numbers in counts.items():
        tensors |= {f"blk.{layer}.ffn_{name}_exps.weight.counts": numbers for name in ("up", "gate", "down")}
        tensors[f"blk.{layer}.ffn_down_exps.weight.in_sum2"] = [1.5, 2.5]
        if dense:
            tensors[f"blk.{layer}.ffn_gate_inp.weight.counts"] = [dense]
            tensors[f"blk.{layer}.attn_q.weight.counts"] = [dense]
    return tensors


def opened(tmp_path: Path, content: bytes, **options: Any) -> RoutingCounts:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(content)
    found = open_routing(path, **options)
    assert found.format == "imatrix"
    assert isinstance(found.routing, RoutingCounts)
    return found.routing


def test_the_counts_of_a_real_file_come_out_exactly() -> None:
    counts = open_routing(REAL).routing
    assert isinstance(counts, RoutingCounts)
    assert counts.tokens_per_expert[0, :, 0].tolist() == REAL_COUNTS
    assert (counts.num_tokens, counts.top_k, counts.num_experts, counts.layers) == (719 * 128, 2, 8, [0, 1, 2, 3])
    assert (counts.unit, counts.steps, counts.notes, counts.extras) == ("token", [0], (), {})
    assert counts.source == "llama.cpp importance matrix, llama.cpp-imatrix.gguf"


def test_layers_keep_their_numbers_and_k_comes_from_the_router(tmp_path: Path) -> None:
    counts = opened(tmp_path, gguf(imatrix({3: [1, 0, 5], 10: [2, 3, 1]}, dense=6)))
    assert (counts.layers, counts.top_k, counts.num_tokens) == ([3, 10], 1, 6)
    assert counts.tokens_per_expert[0, :, 0].tolist() == [[1, 0, 5], [2, 3, 1]]
    assert opened(tmp_path, gguf(imatrix({3: [1, 0, 5], 10: [2, 3, 1]}, dense=6)), layers=[10]).layers == [10]


def test_without_other_matrices_only_choices_are_known_or_what_the_user_says(tmp_path: Path) -> None:
    content = gguf(imatrix({0: [4, 2, 4]}))
    counts = opened(tmp_path, content)
    assert (counts.unit, counts.num_tokens, counts.top_k) == ("choice", 10, 1)
    assert counts.notes == (
        "neither the number of tokens nor K is in the file: the counts are of choices; --top-k gives K",
    )
    counts = opened(tmp_path, content, top_k=2)
    assert (counts.unit, counts.num_tokens, counts.top_k, counts.notes) == ("token", 5, 2, ())


def test_other_counts_that_lack_small_batches_give_no_k(tmp_path: Path) -> None:
    counts = opened(tmp_path, gguf(imatrix({0: [4, 2, 4]}, dense=4)))
    assert counts.unit == "choice"
    assert counts.notes[0] == (
        "4 tokens by the counts of the other matrices do not fit 10 choices: llama.cpp leaves batches of fewer than "
        "16 tokens out there"
    )


def test_counts_that_float32_rounds_are_noted(tmp_path: Path) -> None:
    counts = opened(tmp_path, gguf(imatrix({0: [2**25 + 4, 2**25 - 4, 2**26]}, dense=2**26)))
    assert (counts.top_k, counts.num_tokens) == (2, 2**26)
    assert counts.notes == ("the file holds counts as float32: those above 16,777,216 are rounded",)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has counts of no experts"),
        ({"blk.0.attn_q.weight.counts": [5]}, "has counts of no experts"),
        (imatrix({0: [4]}), "counts the same for every expert, as an importance matrix made of an older .dat"),
        (imatrix({0: [4, 4], 1: [4, 4]}), "counts the same for every expert"),
        (imatrix({0: [4, 2], 1: [4, 1, 1]}), "2 experts in layer 0, 3 in layer 1"),
        (imatrix({0: [4, -1]}), "'blk.0.ffn_up_exps.weight.counts' holds numbers that are no counts"),
        (imatrix({0: [4, 1.5]}), "holds numbers that are no counts"),
        (imatrix({0: [4, float("nan")]}), "holds numbers that are no counts"),
        (imatrix({0: [4, 1e30]}), "holds numbers that are no counts"),
        (imatrix({0: [0, 0]}), "counts the same for every expert"),
        (
            {**imatrix({0: [4, 2]}), "blk.0.ffn_up_exps.weight.counts": [3, 3]},
            "layer 0: ffn_down_exps and ffn_up_exps count differently",
        ),
    ],
)
def test_counts_that_cannot_be_are_refused(
    tensors: Mapping[str, Sequence[float]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError, match=message):
        opened(tmp_path, gguf(tensors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3}, "it has 2 choices for a token; --top-k is 3"),
        ({"num_experts": 16}, "it counts 8 experts; --num-experts is 16"),
        ({"layers": [2, 7]}, "--layers names layer 7; it has layers 0 to 3"),
        ({"token_ids": "ids.npy"}, "these are counts, without single tokens"),
    ],
)
def test_what_the_user_says_must_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=rf"llama\.cpp-imatrix\.gguf': {message}"):
        open_routing(REAL, **options)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4,)])
def test_a_file_of_the_python_library_names_an_architecture_too(shape: tuple[int, ...], tmp_path: Path) -> None:
    gguf_library = pytest.importorskip("gguf", reason="the library that writes the file")
    counts = np.array([[3, 1, 0, 4], [2, 2, 2, 2]], dtype=np.float32)
    writer = gguf_library.GGUFWriter(tmp_path / "x.gguf", "qwen3moe")
    writer.add_type("imatrix")
    for layer, row in enumerate(counts):
        writer.add_tensor(f"blk.{layer}.ffn_down_exps.weight.counts", row.reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_routing(tmp_path / "x.gguf").routing
    assert isinstance(found, RoutingCounts)
    assert found.tokens_per_expert[0, :, 0].tolist() == counts.tolist()


def test_an_importance_matrix_from_before_gguf_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    name = b"blk.0.ffn_down_exps.weight"
    path.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii4f", 10, 4, 1, 2, 3, 4))
    with pytest.raises(TraceError, match=r"of the older kind \(\.dat\), which has no counts of experts"):
        open_routing(path)


def model_head() -> list[bytes]:
    tokens = b"".join(text(f"token {number}") for number in range(1000))
    vocabulary = pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1000) + tokens)
    return [pair("general.architecture", 8, text("qwen3moe")), vocabulary]


def test_a_model_is_left_at_its_first_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_array(*_: object) -> None:
        raise AssertionError("read on")

    monkeypatch.setattr("moe_core.routing.recordings.gguf_file._Head.skip_array", no_array)
    for values in (model_head(), [pair("general.type", 8, text("model")), *model_head()]):
        with pytest.raises(TraceError, match=r"is a GGUF file of .*(model|qwen3moe).*; expected an importance matrix"):
            opened(tmp_path, gguf({}, values))


def test_a_head_is_read_whole_past_arrays_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    numbers = pair("numbers", 9, struct.pack("<IQ", 5, 3) + bytes(12))
    long_text = pair("long", 8, struct.pack("<Q", 2**17) + b"a" * 2**17)
    alignment = pair("general.alignment", 4, struct.pack("<I", 64))
    kinds = [pair("b", 7, b"\x01"), pair("f", 6, struct.pack("<f", 0.5)), pair("i", 11, struct.pack("<q", -3))]
    path.write_bytes(gguf({}, [*model_head(), numbers, long_text, alignment, *kinds], version=2))
    seen: list[str] = []
    head = read_gguf_head(path, lambda key, _: seen.append(key))
    assert head.values == {"general.architecture": "qwen3moe", "general.alignment": 64, "b": True, "f": 0.5, "i": -3}
    assert seen == list(head.values)


MANY = struct.pack("<Q", 2**40)
HOSTILE = {
    "2^40 tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**40, 1) + TYPE,
    "2^40 values": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40) + TYPE,
    "a million values of none": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**20) + TYPE,
    "a key of 2^40 bytes": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + MANY,
    "a text of 2^40 bytes": gguf({}, [TYPE, pair("a", 8, MANY)]),
    "an array of 2^40 numbers": gguf({}, [TYPE, pair("a", 9, struct.pack("<I", 0) + MANY)]),
    "an array of 2^63 numbers": gguf({}, [TYPE, pair("a", 9, struct.pack("<IQ", 10, 2**63))]),
    "an array of 2^40 texts": gguf({}, [TYPE, pair("a", 9, struct.pack("<I", 8) + MANY)]),
    "an array of arrays": gguf({}, [TYPE, pair("a", 9, struct.pack("<IQ", 9, 1))]),
    "a value of no type": gguf({}, [TYPE, pair("a", 99, b"")]),
    "an alignment of 0": gguf({}, [TYPE, pair("general.alignment", 4, bytes(4))]),
    "an alignment that is text": gguf({}, [TYPE, pair("general.alignment", 8, text("a"))]),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "the first version": gguf({}, version=1),
    "a tensor of 99 dimensions": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<I", 99) + bytes(99),
    "a tensor twice": gguf({"a": [1]})[:16]
    + struct.pack("<Q", 1)
    + TYPE
    + 2 * (text("a") + struct.pack("<IIQ", 0, 0, 0)),
}
HOSTILE["a tensor twice"] = HOSTILE["a tensor twice"][:8] + struct.pack("<Q", 2) + HOSTILE["a tensor twice"][16:]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_head_is_one_line_and_takes_little_memory(name: str, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match=r"^'[^\n]*imatrix\.gguf'[^\n]*$"):
            opened(tmp_path, HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_tensor_that_is_said_to_be_huge_or_of_another_type_is_refused(tmp_path: Path) -> None:
    name = "blk.0.ffn_down_exps.weight.counts"
    content = gguf({name: [1, 2]})
    place = content.index(name.encode()) + len(name) + 4
    for change, message in (
        (struct.pack("<QQ", 1, 2**19), "ends beyond the file"),
        (struct.pack("<QQ", 1, 2**60), r"\[1152921504606846976, 1\]; expected \[experts, 1\]"),
        (struct.pack("<QQ", 7, 2), r"is \[2, 7\]; expected \[experts, 1\]"),
        (struct.pack("<QQI", 1, 2, 12), "is of ggml's type 12; expected 0, float32"),
    ):
        with pytest.raises(TraceError, match=message):
            opened(tmp_path, content[:place] + change + content[place + len(change) :])


def test_a_file_cut_off_or_damaged_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    content = gguf(imatrix({0: [4, 2, 4]}, dense=5))
    for size in range(0, len(content) - 32, 7):
        with pytest.raises(TraceError):
            opened(tmp_path, content[:size])
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[random.integers(4, len(content))] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            open_routing(path)
        except TraceError:
            refused += 1
    assert 100 < refused < 400


def test_counts_of_two_texts_add_up(tmp_path: Path) -> None:
    first = opened(tmp_path, gguf(imatrix({0: [4, 2, 4]}, dense=5)))
    second = opened(tmp_path, gguf(imatrix({0: [1, 1, 0]}, dense=1)))
    both = first + second
    assert (both.tokens_per_expert[0, 0, 0].tolist(), both.num_tokens) == ([5, 3, 4], 6)
    path = tmp_path / "x.counts.parquet"
    both.save(path)
    assert RoutingCounts.load(path) == both
