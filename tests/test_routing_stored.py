"""A trace on disk: read in parts of whole documents, in bounded memory, with the answers of one in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_support import random_experts, random_trace, trace_of

from moe_core.errors import TraceError, UsageError
from moe_core.routing import RoutingTrace, StoredTrace, baselines, concatenate, metrics
from moe_core.routing.trace import blocks, parquet
from moe_core.routing.trace import trace as trace_file
from moe_core.routing.trace.counts import domain_counts, domain_tokens
from moe_core.runs.places import SHIPPED

PER_TOKEN = ("token_ids", "document_ids", "source_ids", "positions", "domain_ids", "predicted_ids")

COUNTED: tuple[Callable[[StoredTrace | RoutingTrace], pd.DataFrame], ...] = (
    metrics.expert_load,
    metrics.load_balance,
    metrics.dropped_by_position,
    metrics.router_entropy,
    metrics.domain_specialization,
    metrics.domain_nmi,
    metrics.domain_divergence,
    metrics.coactivation,
    metrics.layer_flow,
)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of about 7 tokens, out of row groups of 5."""
    monkeypatch.setattr(trace_file, "PART_TOKENS", 7)
    monkeypatch.setattr(parquet, "ROW_GROUP_TOKENS", 5)


def saved(trace: RoutingTrace, folder: Path) -> StoredTrace:
    trace.save(folder / "x.parquet")
    return RoutingTrace.open(folder / "x.parquet")


def test_it_has_the_same_facts(tmp_path: Path) -> None:
    trace = trace_of(
        [[[0, 1]], [[2, 3]]],
        num_experts=4,
        token_ids=[5],
        layers=[1, 3],
        score_function="sigmoid",
        varying_experts=True,
        source="a test",
        vocabulary={5: "the"},
    )
    facts = (
        "layers",
        "num_experts",
        "top_k",
        "domains",
        "num_tokens",
        "score_function",
        "varying_experts",
        "source",
        "vocabulary",
    )
    on_disk = saved(trace, tmp_path)
    for name in (*facts, "num_layers"):
        assert getattr(on_disk, name) == getattr(trace, name), name


def test_a_trace_in_memory_is_its_own_part() -> None:
    trace = random_trace(0)
    assert list(trace.parts()) == [trace]


@pytest.mark.usefixtures("small_parts")
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=15))
def test_parts_are_whole_documents_in_order_and_no_larger_than_needed(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int]
) -> None:
    documents = np.repeat(np.arange(len(lengths)), lengths)
    T = len(documents)
    whole = trace_of(
        (np.arange(2 * T) % 3).reshape(2, T, 1), num_experts=3, token_ids=np.arange(T), document_ids=documents
    )
    parts = list(saved(whole, tmp_path_factory.mktemp("trace")).parts())
    assert [i for part in parts for i in part.token_ids.tolist()] == list(range(T))
    assert np.array_equal(np.concatenate([part.router_indices for part in parts], axis=1), whole.router_indices)
    for part, following in pairwise(parts):
        assert part.document_ids[-1] != following.document_ids[0]
    for part in parts:
        assert part.num_tokens <= trace_file.PART_TOKENS + max(lengths)


@pytest.mark.usefixtures("small_parts")
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_measure_made_of_counts_has_the_same_answer(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    trace = random_trace(seed)
    on_disk = saved(trace, tmp_path_factory.mktemp("trace"))
    assert len(list(on_disk.parts())) > 1
    for measure in COUNTED:
        pd.testing.assert_frame_equal(measure(on_disk), measure(trace), rtol=1e-9, obj=str(measure))


def test_parts_of_a_trace_with_many_logits_have_fewer_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "PART_BYTES", 40 * (22 + 6 + 2 * 16))
    sizes = {}
    for name, logits in (("with", np.zeros((1, 200, 16))), ("without", None)):
        trace = RoutingTrace.from_arrays(
            router_indices=np.zeros((200, 1), dtype=int),
            router_scores=np.ones((200, 1)),
            router_logits=logits,
            num_experts=16,
            token_ids=np.zeros(200, dtype=int),
        )
        trace.save(tmp_path / name)
        sizes[name] = [part.num_tokens for part in RoutingTrace.open(tmp_path / name).parts()]
    assert max(sizes["with"]) == 40
    assert max(sizes["without"]) == 40 * 60 // 28
    assert sum(sizes["with"]) == sum(sizes["without"]) == 200


def test_scores_are_stored_byte_by_byte_and_everything_else_by_dictionary(tmp_path: Path) -> None:
    T, rng = 20_000, np.random.default_rng(0)
    trace = RoutingTrace.from_arrays(
        router_indices=rng.integers(0, 4, (2, T, 1)),
        router_scores=rng.random((2, T, 1)),
        router_logits=rng.integers(0, 9, (2, T, 4)) / 2,
        num_experts=4,
        token_ids=rng.integers(0, 50, T),
        document_ids=np.arange(T) // 100,
    )
    trace.save(tmp_path / "t.parquet")
    group = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name, column in columns.items():
        expected = "BYTE_STREAM_SPLIT" if "score" in name else "RLE_DICTIONARY"
        assert expected in column.encodings, name
    # 23 random bits of mantissa a score cannot be pressed; the exponent and what repeats can.
    assert columns["layer_0_score_0"].total_compressed_size < 3.6 * T
    assert columns["layer_0_expert_0"].total_compressed_size < 0.3 * T
    np.testing.assert_array_equal(RoutingTrace.load(tmp_path / "t.parquet").router_scores, trace.router_scores)


def test_many_sources_are_counted_in_random_groups_of_one_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MAX_BLOCKS", 64)
    monkeypatch.setattr(blocks, "_MIN_BLOCKS", 64)
    T, rng = 6_000, np.random.default_rng(0)
    trace = trace_of(
        rng.integers(0, 4, (2, T, 1)),
        num_experts=4,
        token_ids=np.zeros(T, dtype=int),
        document_ids=np.arange(T),  # every token is a document of its own
        domain_ids=np.arange(T) % 2,
        domains=["a", "b"],
    )
    for one in (trace, saved(trace, tmp_path)):
        found = blocks.block_counts(one)
        assert len(found.tokens) == 64
        assert np.bincount(found.domain_ids).tolist() == [32, 32]
        assert found.tokens.sum() == T
        assert found.tokens.std() < 2 * np.sqrt(T / 64)  # about as uneven as throwing a die
        np.testing.assert_array_equal(found.counts.sum(axis=2), np.tile(found.tokens, (2, 1)))
        np.testing.assert_array_equal(domain_counts(one), domain_counts(trace))
        np.testing.assert_array_equal(domain_tokens(one), [T // 2, T // 2])
        assert set(baselines.domain_nmi(one)["verdict"]) == {baselines.CHANCE}
    # Few sources stay themselves.
    few = blocks.block_counts(trace.select(np.arange(T) < 60))
    assert few.tokens.tolist() == [1] * 60


def test_what_several_measures_are_made_of_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(0, T=300)
    on_disk, readings = saved(trace, tmp_path), []
    parts = StoredTrace.parts
    monkeypatch.setattr(StoredTrace, "parts", lambda self: readings.append(1) or parts(self))
    for measure in (metrics.expert_load, metrics.load_balance, metrics.domain_nmi, metrics.domain_specialization):
        pd.testing.assert_frame_equal(measure(on_disk), measure(trace), rtol=1e-9)
    assert len(readings) == 1
    for layer in trace.layers:
        for expert in range(trace.num_experts):
            told = metrics.token_experts(on_disk, layer, expert, min_count=2)
            pd.testing.assert_frame_equal(told, metrics.token_experts(trace, layer, expert, min_count=2))
    assert len(readings) == 3  # the types, and their counts


def test_ids_are_counted_over_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ID_BATCH", 7)
    documents = np.array([5, 5, 2, 2, 2, 9] * 10)
    trace = trace_of(np.zeros((1, 60, 1), int), num_experts=1, token_ids=np.zeros(60, int), document_ids=documents)
    on_disk = saved(trace, tmp_path)
    ids, tokens = parquet.count_ids(on_disk.path, "document_id")
    assert (ids.tolist(), tokens.tolist()) == ([2, 5, 9], [30, 20, 10])
    assert on_disk.count_sources() == 3


def test_only_a_part_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """160,000 tokens would take 12 MB as arrays, about as much again in Arrow; in parts of 4,000 it is far less.

    Weights that differ in every token, since the file must not be small: what was read of it could stay in memory.
    """
    monkeypatch.setattr(trace_file, "PART_TOKENS", 4_000)
    monkeypatch.setattr(parquet, "ROW_GROUP_TOKENS", 8_000)
    T, rng = 160_000, np.random.default_rng(0)
    trace = RoutingTrace.from_arrays(
        router_indices=random_experts(rng, (4, T), 2, 8),
        router_scores=rng.random((4, T, 2)),
        num_experts=8,
        token_ids=rng.integers(0, 500, T),
        document_ids=np.arange(T) // 250,
    )
    size = trace.router_indices.nbytes + trace.router_scores.nbytes + 5 * trace.token_ids.nbytes
    expected = metrics.coactivation(trace)
    on_disk = saved(trace, tmp_path)
    del trace
    sizes, arrow_before, arrow = [], pa.total_allocated_bytes(), []
    tracemalloc.start()
    for part in on_disk.parts():
        sizes.append(part.num_tokens)
        arrow.append(pa.total_allocated_bytes() - arrow_before)
        del part
    _, numpy_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sizes) == T // 4_000 + 1  # the last document of what was read waits for its end
    assert max(sizes) <= 4_000 + 250
    assert numpy_peak < size / 10
    assert max(arrow) < size / 5
    pd.testing.assert_frame_equal(metrics.coactivation(on_disk), expected)


def test_a_source_over_several_parts_is_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "PART_TOKENS", 2)
    trace = trace_of(
        [[0], [1], [0], [1], [1], [1]],
        num_experts=2,
        document_ids=[0, 0, 1, 1, 2, 2],
        source_ids=[4, 4, 9, 9, 4, 4],
    )
    on_disk = saved(trace, tmp_path)
    assert len(list(on_disk.parts())) == 3
    merged, plain = stored_counts(on_disk), stored_counts(trace)
    assert merged == plain == ([4, 9], [0, 0], [4, 2], [[[1, 3], [1, 1]]])


def stored_counts(trace: StoredTrace | RoutingTrace) -> tuple[list[object], ...]:
    from moe_core.routing.trace.blocks import block_counts

    found = block_counts(trace)
    return tuple(getattr(found, name).tolist() for name in ("source_ids", "domain_ids", "tokens", "counts"))


@pytest.mark.usefixtures("small_parts")
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12), most=st.integers(1, 80), seed=st.integers(0, 3))
def test_a_sample_is_whole_documents_alike_from_memory_and_from_disk(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], most: int, seed: int
) -> None:
    documents = np.repeat(np.arange(len(lengths)), lengths)
    trace = trace_of(np.zeros((len(documents), 1), int), num_experts=2, document_ids=documents)
    sample = trace.sample(most, seed)
    kept = np.bincount(sample.document_ids, minlength=len(lengths))
    assert sample.num_tokens <= most
    if most >= min(lengths):
        assert set(kept.tolist()) <= {0, *lengths}
        assert (kept[kept > 0] == np.array(lengths)[kept > 0]).all()
        left = [length for length, count in zip(lengths, kept, strict=True) if not count]
        assert not left or min(left) > most - sample.num_tokens  # no other document would fit
    else:
        assert sample.num_tokens == most
        assert (kept > 0).sum() == 1
    assert (np.diff(sample.document_ids) >= 0).all()
    on_disk = saved(trace, tmp_path_factory.mktemp("trace")).sample(most, seed)
    for name in PER_TOKEN[:-1]:
        assert np.array_equal(getattr(on_disk, name), getattr(sample, name)), name


def test_a_sample_is_the_trace_where_it_fits_and_else_depends_on_the_seed() -> None:
    trace = random_trace(0)
    assert trace.sample(60) is trace
    samples = [trace.sample(30, seed).document_ids.tolist() for seed in range(20)]
    assert len({tuple(sample) for sample in samples}) > 3
    assert trace.sample(30, 7).document_ids.tolist() == samples[7]
    with pytest.raises(UsageError, match="max_tokens is 0; expected 1 or more"):
        trace.sample(0)


def test_what_is_wrong_with_a_file_is_said_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no trace at '.*nowhere\.parquet'"):
        RoutingTrace.open(tmp_path / "nowhere.parquet")
    random_trace(0).save(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    for change, message in (
        (table.drop_columns(["layer_1_expert_0"]), "column 'layer_1_expert_0' is missing"),
        (table.slice(0, 0), "has no tokens"),
        (table.replace_schema_metadata(None), "no routing trace"),
    ):
        pq.write_table(change, tmp_path / "bad.parquet")
        with pytest.raises(TraceError, match=message) as caught:
            RoutingTrace.open(tmp_path / "bad.parquet")
        assert "\n" not in str(caught.value)


def test_a_damaged_part_is_found_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "PART_TOKENS", 1000)
    monkeypatch.setattr(parquet, "ROW_GROUP_TOKENS", 1000)
    rng = np.random.default_rng(0)
    trace = trace_of(rng.integers(0, 4, (5000, 1)), num_experts=4, document_ids=np.arange(5000) // 10)
    on_disk = saved(trace, tmp_path)
    content = bytearray(on_disk.path.read_bytes())
    place = pq.ParquetFile(on_disk.path).metadata.row_group(4).column(0).data_page_offset
    content[place + 30] ^= 1
    on_disk.path.write_bytes(content)
    parts = RoutingTrace.open(on_disk.path).parts()
    assert next(parts).num_tokens == 990
    with pytest.raises(TraceError, match=r"x\.parquet.*damaged"):
        list(parts)


def test_probes_written_before_there_were_sources_are_still_read() -> None:
    probes = sorted((SHIPPED / "demo" / "probes").glob("*.parquet"))
    assert probes
    for path in (probes[0], probes[-1]):
        trace = RoutingTrace.load(path)
        assert np.array_equal(trace.source_ids, trace.document_ids)
        assert trace.predicted_ids is None
        joined = concatenate(list(RoutingTrace.open(path).parts()))
        assert np.array_equal(joined.router_indices, trace.router_indices)
        pd.testing.assert_frame_equal(metrics.domain_nmi(RoutingTrace.open(path)), metrics.domain_nmi(trace))
