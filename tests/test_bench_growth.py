"""Growth, traces, start-up and dashboard: what they measure is what they say, at sizes of a second."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import dashboard, growth, startup, traces
from bench.made_traces import LARGE_MODEL, Size, write_trace
from bench.processes import run_python
from bench.suite import Scale
from moe_core.errors import MoescopeError
from moe_core.figures.growth import growth_figure
from moe_core.routing import RoutingTrace

WAYS = ("source", "domain")


def test_the_exponent_is_that_of_the_larger_sizes() -> None:
    sizes = [1, 10, 100, 1000]
    assert growth.exponent(sizes, [3 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert growth.exponent(sizes, [5, 5, 5, 50]) == pytest.approx(1.0)  # what is constant at first does not count
    assert growth.exponent([2, 4], [7, 7]) == pytest.approx(0.0)


def test_a_synthetic_trace_has_the_size_asked_for(tmp_path: Path) -> None:
    size = Size(tokens=5_000, experts=6, layers=3, documents=50, vocabulary=300)
    write_trace(tmp_path / "t.parquet", size)
    trace = RoutingTrace.load(tmp_path / "t.parquet")
    assert trace.router_indices.shape == (3, 5_000, 2)
    assert trace.num_experts == 6
    assert np.bincount(trace.document_ids).tolist() == [100] * 50
    assert trace.router_indices.min() == 0
    assert (trace.router_indices[..., 0] != trace.router_indices[..., 1]).all()
    assert trace.token_ids.max() < 300


def test_the_trace_of_a_large_model_is_as_real_ones_are(large_trace: Path) -> None:
    trace = RoutingTrace.load(large_trace)
    assert trace.router_indices.shape == (48, 12_000, 8)
    assert trace.num_experts == 128
    assert trace.router_scores.sum(axis=2) == pytest.approx(1)
    assert (np.diff(np.sort(trace.router_indices[::8], axis=2)) > 0).all()  # no expert is chosen twice
    sources = pd.DataFrame({"source": trace.source_ids, "domain": trace.domain_ids}).drop_duplicates()
    assert len(sources) == 48  # none is of two domains
    assert trace.domains == ["finance", "legal", "code", "general"]
    assert trace.token_text(0).startswith(" word")
    first = trace.router_indices[..., 0]
    inside = trace.positions[1:] > 0
    alike = (first[:, 1:] == first[:, :-1])[:, inside].mean()
    assert 0.3 < alike < 0.4  # by chance one in twenty
    assert LARGE_MODEL.tokens == trace.num_tokens


def test_growth_has_a_row_for_counts_and_one_for_nulls() -> None:
    rows = growth.run(Scale(smoke=True, rounds=1))
    assert [row.case for row in rows] == ["counts against tokens, exponent", "nulls against tokens, exponent"]
    assert all("4,000: " in row.note and "8,000: " in row.note for row in rows)


def test_adding_up_has_a_row_for_each_way_of_counting_and_a_layers_nulls_one_for_each_size() -> None:
    rows = growth.adding_rows((2, 4), Scale(smoke=True, rounds=1))
    assert [row.case for row in rows] == [f"adding up counts by {by} against parts, exponent" for by in WAYS]
    points = pd.DataFrame({"axis": "experts", "kind": ["counts", "nulls"], "size": 8, "seconds": [1.0, 6.0]})
    (row,) = growth.layer_rows(points, Size(layers=3))
    assert (row.value, row.case.split(",")[1]) == (2.0, " 8 experts")


def test_a_trace_is_written_and_read_alone() -> None:
    rows = traces.written_and_read((Size(tokens=2_000, documents=4),), Scale(smoke=True, rounds=1))
    assert [row.case.split(" alone")[0] for row in rows] == ["writing", "reading part by part"]
    assert all(row.value > 0 for row in rows)


def test_the_picture_names_the_steepest() -> None:
    points = pd.DataFrame(
        {"axis": ["tokens"] * 2 + ["layers"] * 2, "kind": "counts", "size": [10, 20, 2, 8], "seconds": [1, 2, 3, 24]}
    )
    figure = growth_figure(points, growth.exponents(points))
    assert "counts with layers, as size to the power of 1.50" in figure.verdict
    assert figure.frame["times_cost"].tolist() == [1, 2, 1, 8]
    assert figure.frame["times_size"].tolist() == [1, 2, 1, 4]


def test_a_process_is_measured_and_its_failure_told() -> None:
    ours = np.ones(600 * 2**17)  # 600 MiB, which must not be counted as the other's
    took = run_python(["-c", "block = bytearray(80 * 2**20); print('done')"])
    assert took.output == "done\n"
    assert 80 < took.peak_mib < 400 < ours.nbytes / 2**20
    assert took.processor_seconds > 0
    with pytest.raises(MoescopeError, match="exit code 3"):
        run_python(["-c", "raise SystemExit(3)"])


def test_bytes_of_a_trace_without_its_logits(tmp_path: Path) -> None:
    rng, fields = np.random.default_rng(0), {"num_experts": 4, "token_ids": np.arange(3_000) % 7}
    indices, scores = rng.integers(0, 4, (1, 3_000, 1)), rng.random((1, 3_000, 1))
    plain = RoutingTrace.from_arrays(router_indices=indices, router_scores=scores, **fields)
    full = RoutingTrace.from_arrays(
        router_indices=indices, router_scores=scores, router_logits=rng.normal(size=(1, 3_000, 4)), **fields
    )
    plain.save(tmp_path / "plain.parquet")
    full.save(tmp_path / "full.parquet")
    assert traces.bytes_without_logits(tmp_path / "full.parquet") == traces.bytes_without_logits(
        tmp_path / "plain.parquet"
    )
    assert traces.bytes_without_logits(tmp_path / "plain.parquet") < (tmp_path / "plain.parquet").stat().st_size


def test_help_is_timed_beside_an_interpreter_that_does_nothing() -> None:
    (row,) = startup.run(Scale(smoke=True, rounds=1))
    assert row.case == "main.py --help"
    assert row.value > 0
    assert "Python alone" in row.note


def test_a_missing_browser_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent / "nowhere"))
    (row,) = dashboard.run(Scale(smoke=True))
    assert row.value != row.value
    assert row.note.startswith("not measured: ")
    assert row.status == ""


def test_every_page_has_its_rows_and_an_error_is_told() -> None:
    visit = dashboard.Visit("flow", opened=1.0, rerun=float("nan"), sent=3_000_000, largest=2_500_000, error="too bad")
    rows = dashboard.rows_of([visit], "run demo")
    assert [row.value for row in rows[:2]] == [1.0, 3.0]
    assert (rows[2].value != rows[2].value, rows[2].status) == (True, "")  # an error box is small: no goal is reached
    assert {row.note for row in rows} == {"shows an error"}
    fine = dashboard.rows_of([replace(visit, error="")], "run demo")
    assert [(row.value, row.status) for row in fine] == [(1.0, ""), (3.0, ""), (2.5, "short")]
