"""The published analysis of a published model's routing (docs/results.md), where its table is at hand.

MOESCOPE_PUBLISHED_ROUTING names the table; without it ../shared/data is looked at. It is not part of the repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from docs.published_routing.analyse import VARIABLE, beside_chance, by_layer, not_to_be_read, read_trace, sentences
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.baselines import independence_note
from moe_core.routing.measures import registry

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "data" / "gpt_oss_20b_routing.parquet")
published = pytest.mark.skipif(
    not TABLE.is_file(), reason=f"the published table is not at hand: {VARIABLE} does not name it, nor is it at {TABLE}"
)


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return read_trace(TABLE)


@published
def test_the_table_is_read_as_it_is(trace: RoutingTrace) -> None:
    assert (trace.num_layers, trace.num_experts, trace.top_k, trace.num_tokens) == (24, 32, 4, 17_259)
    assert trace.domains == ["math", "medicine", "history", "law"]
    table = pq.read_table(TABLE).slice(12_345, 1).to_pylist()[0]
    assert trace.router_indices[:, 12_345].reshape(-1).tolist() == table["experts"]
    assert trace.router_scores[:, 12_345].reshape(-1).tolist() == table["weights"]
    assert trace.token_text(12_345) == table["text"]
    assert trace.positions[12_345] == table["position"]
    assert len(np.unique(trace.source_ids)) == 64
    assert independence_note(trace) == ""  # half of its texts were cut at 400 tokens, each by itself


@published
def test_the_plug_in_nmi_is_what_was_published(trace: RoutingTrace) -> None:
    nmi = metrics.domain_nmi(trace)["nmi"]
    assert nmi[0] == pytest.approx(0.0627, abs=5e-5)
    assert nmi[12] == pytest.approx(0.2761, abs=5e-5)
    test = baselines.domain_nmi(trace)
    assert test["nmi"].tolist() == nmi.tolist()
    assert (test["nmi"] > test["null_p99"]).all()


@published
def test_the_published_page_has_the_figures_that_this_tree_gives(trace: RoutingTrace) -> None:
    """The columns that take no minute: load with its interval, and domains beside their null."""
    text = (ROOT / "docs" / "results.md").read_text()
    section = text.split("## A published model's routing")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d+) \|(.*)\|$", section, re.MULTILINE))
    nmi = baselines.domain_nmi(trace)
    expected = by_layer(trace, {"domain_nmi": nmi})
    assert sorted(map(int, rows)) == trace.layers
    for layer, row in expected.iterrows():
        cells = [cell.strip() for cell in rows[str(layer)].split("|")]
        assert cells[: len(row)] == list(row)


def test_a_small_table_of_the_same_form_is_read_and_told_of(tmp_path: Path) -> None:
    """Without the published table: two layers, made at random."""
    rng = np.random.default_rng(0)
    T = 24 * 30
    chosen = np.argsort(rng.random((T, 2, 32)), axis=2)[..., :4].reshape(T, 8).astype(np.uint8)
    columns = {
        "text": pa.array([f"t{i}" for i in rng.integers(0, 9, T)]),
        "source": pa.array([f"s{i // 30}" for i in range(T)]),
        "domain": pa.array(["law" if (i // 30) % 2 else "math" for i in range(T)]),
        "position": pa.array([i % 30 for i in range(T)], pa.int32()),
        "experts": pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1)), 8),
        "weights": pa.FixedSizeListArray.from_arrays(pa.array(np.full(T * 8, 0.25, np.float16)), 8),
    }
    pq.write_table(pa.table(columns), tmp_path / "small.parquet")
    small = read_trace(tmp_path / "small.parquet")
    assert small.router_indices[1, 7].tolist() == chosen[7, 4:].tolist()
    tests = {"domain_nmi": baselines.domain_nmi(small), "layer_flow": baselines.layer_flow(small)}
    table = by_layer(small, tests)
    assert table.index.tolist() == [0, 1]
    assert table.loc[1, registry.LAYER_FLOW.title] == ""  # the last layer has no next one
    row = pd.Series({"verdict": baselines.CHANCE, "nmi": 0.01234, "null_p99": 0.0456})
    assert beside_chance(registry.DOMAIN_NMI, row) == "~ .0123 (.0456)"
    text = not_to_be_read(small)
    assert text.startswith("**What nobody should read into.** 64 of 64 experts prefer no subject")


@published
def test_every_measure_says_something_of_it_and_of_how_much_text(trace: RoutingTrace) -> None:
    documents = np.unique(trace.document_ids)
    few = trace.select(np.isin(trace.document_ids, documents[::4]))
    from docs.published_routing.analyse import AGAINST_CHANCE

    tests = {measure.name: measure.null(few) for measure in AGAINST_CHANCE if measure.null is not None}
    said = list(sentences(few, tests))
    assert [line.split(".")[0].strip("*") for line in said][:2] == ["Load", "NMI with the domain"]
    assert len(said) == len(AGAINST_CHANCE) + 2
