"""The columns that say what a trace's numbers mean: for other programs, and never against the numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, recordings
from moe_core.routing.trace.counts import flow_counts
from moe_core.routing.trace.joining import concatenate
from moe_core.routing.trace.parquet import METADATA_KEY, TraceWriter

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ["law", "prose"]
WORDS = [" the", "a", "\n", "a", "🦜", "", "don't", " x"]


def trace_of(tokens: int = 60, seed: int = 0, **changes: Any) -> RoutingTrace:
    """Three layers, two slots of six experts, some of them unused."""
    rng = np.random.default_rng(seed)
    indices = np.argsort(rng.random((3, tokens, 6)), axis=2)[:, :, :2]
    indices[0, ::7, 1] = -1
    given_values: dict[str, Any] = {
        "router_indices": indices,
        "router_scores": np.where(indices < 0, 0, 0.5),
        "num_experts": 6,
        "token_ids": rng.integers(0, len(WORDS), tokens),
        "document_ids": np.arange(tokens) // 10,
        "domain_ids": np.arange(tokens) // 10 % 2,
        "domains": DOMAINS,
        "vocabulary": dict(enumerate(WORDS)),
    }
    return RoutingTrace.from_arrays(**{**given_values, **changes})


def both(path: Path) -> list[RoutingTrace]:
    """The file read whole, and part by part."""
    return [RoutingTrace.load(path), concatenate(list(RoutingTrace.open(path).parts()))]


def rewritten(path: Path, **columns: Any) -> None:
    """Other columns in place of those of the file; None = left out. The metadata stays."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if values is not None:
            table = table.add_column(place, name, pa.array(values))
    pq.write_table(table, path)


def test_each_row_says_what_its_numbers_mean(tmp_path: Path) -> None:
    trace = trace_of()
    trace.save(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet", columns=["token_text", "domain"])
    assert table["token_text"].to_pylist() == [WORDS[token_id] for token_id in trace.token_ids]
    assert table["domain"].to_pylist() == [DOMAINS[domain_id] for domain_id in trace.domain_ids]
    for column in range(2, 8):
        kept = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(column)
        if kept.path_in_schema in ("token_text", "domain"):
            assert kept.has_dictionary_page


def test_a_token_without_text_has_an_empty_cell(tmp_path: Path) -> None:
    for vocabulary in ({0: "zero", 5: "five"}, {}):
        trace_of(vocabulary=vocabulary).save(tmp_path / "x.parquet")
        table = pq.read_table(tmp_path / "x.parquet")
        ids = table["token_id"].to_pylist()
        assert table["token_text"].to_pylist() == [vocabulary.get(token_id) for token_id in ids]
        assert all(read.vocabulary == vocabulary for read in both(tmp_path / "x.parquet"))


def test_half_a_surrogate_pair_is_no_text_of_parquet(tmp_path: Path) -> None:
    trace = trace_of(domains=["a\ud83d", "b"], vocabulary={**dict(enumerate(WORDS)), 2: "\udc00"})
    trace.save(tmp_path / "x.parquet")
    assert "a?" in pq.read_table(tmp_path / "x.parquet")["domain"].to_pylist()
    for read in both(tmp_path / "x.parquet"):
        assert read.domains == ["a?", "b"]
        assert read.vocabulary == {**dict(enumerate(WORDS)), 2: "?"}


def test_domains_and_texts_that_come_later_are_written_in_their_rows(tmp_path: Path) -> None:
    first = trace_of(20, domains=["b", "c"])
    second = trace_of(30, seed=1, domains=["a", "b"], token_ids=np.arange(30) + 2**30,
                      vocabulary={2**30 + 3: "later"}, document_ids=np.arange(30) + 100)  # fmt: skip
    with TraceWriter(tmp_path / "x.parquet") as writer:
        writer.write(first)
        writer.write(second)
    table = pq.read_table(tmp_path / "x.parquet")
    names = [part.domains[number] for part in (first, second) for number in part.domain_ids]
    assert table["domain"].to_pylist() == names
    assert table["token_text"].to_pylist()[20:] == [None] * 3 + ["later"] + [None] * 26
    assert both(tmp_path / "x.parquet")[0].domains == ["b", "c", "a"]


def test_a_file_without_the_columns_or_with_others_opens_as_before(tmp_path: Path) -> None:
    trace = trace_of()
    for columns in ({"domain": None}, {"token_text": None}, {"domain": None, "token_text": None}):
        trace.save(tmp_path / "x.parquet")
        rewritten(tmp_path / "x.parquet", **columns)
        for read in both(tmp_path / "x.parquet"):
            assert np.array_equal(read.router_indices, trace.router_indices)
            assert read.domains == DOMAINS
    trace.save(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    text = pa.array(table["token_text"].to_pylist(), pa.large_string())
    table = table.append_column("mine", text).set_column(1, "token_text", text)
    pq.write_table(table, tmp_path / "x.parquet")
    assert both(tmp_path / "x.parquet")[1].num_tokens == 60


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("domain", lambda x: [*x[:13], "prosa", *x[14:]], r"row 13: domain is 'prosa', but domain_id 1 is 'prose'"),
        ("domain", lambda x: [*x[:59], "law"], r"row 59: domain is 'law', but domain_id 1 is 'prose'"),
        ("domain", lambda x: [None, *x[1:]], r"row 0: domain is None, but domain_id 0 is 'law'"),
        ("domain", lambda x: [1 for _ in x], r"column 'domain' is int64; expected text, or no such column"),
        ("token_text", lambda x: [*x[:8], "?", *x[9:]], r"row 8: token_text is '\?', but token_id \d is"),
        ("token_text", lambda x: [None, *x[1:]], r"row 0: token_text is None, but token_id \d is"),
        ("token_text", lambda x: [b"" for _ in x], r"column 'token_text' is .*binary.*; expected text"),
    ],
)
def test_a_text_against_its_number_is_refused_by_row(name: str, change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    trace_of().save(path)
    rewritten(path, **{name: change(pq.read_table(path)[name].to_pylist())})
    for read in (RoutingTrace.load, lambda path: list(RoutingTrace.open(path).parts())):
        with pytest.raises(TraceError, match=message) as error:
            read(path)
        assert "x.parquet" in str(error.value)
        assert "\n" not in str(error.value)


def test_names_that_were_changed_in_the_metadata_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    trace_of().save(path)
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[METADATA_KEY]) | {"domains": ["prose", "law"]}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), path)
    with pytest.raises(TraceError, match=r"row 0: domain is 'law', but domain_id 0 is 'prose' by the metadata"):
        RoutingTrace.load(path)


def test_rows_are_counted_through_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.routing.trace.trace.PART_TOKENS", 15)
    path = tmp_path / "x.parquet"
    trace_of().save(path)
    texts = pq.read_table(path)["domain"].to_pylist()
    rewritten(path, domain=[*texts[:47], "?", *texts[48:]])
    with pytest.raises(TraceError, match="row 47: domain is"):
        list(RoutingTrace.open(path).parts())


@settings(max_examples=40, deadline=None)
@given(
    vocabulary=st.dictionaries(st.integers(0, 9), st.text(max_size=3)),
    domains=st.lists(st.text(max_size=3), min_size=1, max_size=3, unique=True),
    ids=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    large=st.booleans(),
)
def test_any_texts_come_back(
    vocabulary: dict[int, str],
    domains: list[str],
    ids: list[int],
    large: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    shift, T = (2**31 - 10) * large, len(ids)
    trace = trace_of(
        T,
        token_ids=np.array(ids) + shift,
        vocabulary={token_id + shift: text for token_id, text in vocabulary.items()},
        domains=domains,
        domain_ids=np.arange(T) % len(domains),
    )
    trace.save(path)
    for read in both(path):
        assert [read.token_text(t) for t in range(T)] == [trace.token_text(t) for t in range(T)]
        assert [read.domains[d] for d in read.domain_ids] == [trace.domains[d] for d in trace.domain_ids]


def examples(language: str) -> list[str]:
    """The queries of the document."""
    text = (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RoutingTrace:
    """A trace where the queries look for it."""
    monkeypatch.chdir(tmp_path)
    trace = trace_of(500)
    trace.save("out/trace.parquet")
    return trace


def test_the_documents_queries_for_duckdb_count_as_we_do(trace: RoutingTrace) -> None:
    load, flow = (duckdb.sql(query).fetchall() for query in examples("sql"))
    expected = Counter(
        (layer, expert, DOMAINS[domain])
        for layer in range(3)
        for slots, domain in zip(trace.router_indices[layer].tolist(), trace.domain_ids.tolist(), strict=True)
        for expert in slots
        if expert >= 0
    )
    assert {tuple(row[:3]): row[3] for row in load} == expected
    assert {tuple(row[:2]): row[2] for row in flow} == {
        (a, b): count for (a, b), count in np.ndenumerate(flow_counts(trace)[0]) if count
    }
    assert flow[0][2] == flow_counts(trace)[0].max()


def test_the_documents_query_for_polars_counts_as_we_do(trace: RoutingTrace) -> None:
    (query,) = examples("python")
    names: dict[str, Any] = {}
    exec(query, names)
    reads = names["reads"]
    assert isinstance(reads, polars.DataFrame)
    there = (trace.router_indices[1] == 3).any(axis=1)
    texts = [trace.token_text(t) for t in range(trace.num_tokens)]
    counts = Counter(text for text, goes in zip(texts, there, strict=True) if goes)
    assert dict(zip(reads["token_text"], reads["tokens"], strict=True)) == counts
    for text, share in zip(reads["token_text"], reads["share"], strict=True):
        assert share == pytest.approx(counts[text] / texts.count(text))


def test_a_trace_that_lost_its_metadata_is_a_table_of_the_same_texts(tmp_path: Path) -> None:
    trace = trace_of()
    trace.save(tmp_path / "x.parquet")
    pq.write_table(pq.read_table(tmp_path / "x.parquet").replace_schema_metadata({}), tmp_path / "x.parquet")
    found = recordings.read(tmp_path / "x.parquet", num_experts=6)
    assert np.array_equal(found.router_indices, trace.router_indices)
    assert [found.token_text(t) for t in range(60)] == [trace.token_text(t) for t in range(60)]
    assert [found.domains[d] for d in found.domain_ids] == [trace.domains[d] for d in trace.domain_ids]
