"""Names of experts in tables, tooltips and streams; they come from outside and stay text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_core.figures.expert_names_in_figures import named_table, with_names
from moe_core.figures.experts import layer_load_figure
from moe_core.figures.sankey import flow_sankey_figure
from moe_core.reports.html_report import report_on_routing
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.flow import layer_flow, layer_flow_test
from moe_core.routing.measures.load import expert_load
from moe_core.runs.expert_names import ExpertNames, NamedExpert

HOSTILE = "<b>$x$</b> \\1"


def routing() -> RoutingTrace:
    """Two layers of four experts, 200 tokens."""
    indices = np.random.default_rng(0).integers(0, 4, (2, 200, 1)).astype(np.int16)
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=np.ones(indices.shape, np.float32),
        num_experts=4,
        layers=[1, 3],
        token_ids=np.arange(200),
    )


def test_tables_have_names_behind_experts_where_there_are_any() -> None:
    frame = pd.DataFrame({"layer": [1, 3], "expert": [2, 2], "tokens": [5, 6], "next_layer": 3, "next_expert": [0, 1]})
    named = named_table(frame, {(1, 2): "verbs", (3, 1): "nouns", (9, 9): "gone"})
    assert list(named) == ["layer", "expert", "name", "tokens", "next_layer", "next_expert", "next_name"]
    assert named["name"].tolist() == ["verbs", ""]
    assert named["next_name"].tolist() == ["", "nouns"]
    assert list(frame) == ["layer", "expert", "tokens", "next_layer", "next_expert"]
    assert named_table(frame, {(0, 0): "verbs"}) is frame


def test_tooltips_name_the_expert_of_their_layer_alone() -> None:
    figure = layer_load_figure(expert_load(routing()), 1, 0)
    before = figure.chart.to_dict()
    assert with_names(figure, {}) is figure
    named = with_names(figure, {(1, 2): HOSTILE, (3, 0): "elsewhere"})
    drawn = named.chart.to_dict()["datasets"].values()
    said = [row["sentence"] for rows in drawn for row in rows if "sentence" in row]
    assert [f"xpert 2 · {HOSTILE}" in sentence for sentence in said].count(True) == 1
    assert not any("elsewhere" in sentence for sentence in said)
    assert figure.chart.to_dict() == before, "the figure itself is shared and stays"


def test_streams_have_names_at_their_nodes_and_tags_in_them_are_escaped() -> None:
    trace = routing()
    figure = flow_sankey_figure(layer_flow(trace), layer_flow_test(trace))
    sankey: Any = with_names(figure, {(1, 2): HOSTILE, (3, 2): "nouns"}).chart
    node, link = sankey.data[0].node, sankey.data[0].link
    assert [label for label in node.label if "·" in label] == ["2 · &lt;b&gt;$x$&lt;/b&gt; \\1", "2 · nouns"]
    assert sum("expert 2 · nouns:" in said for said in node.customdata) == 1
    ends = [said for said in link.customdata if "expert 2 · nouns in layer 3" in said]
    assert len(ends) == sum("expert 2 in layer 3" in said for said in figure.chart.data[0].link.customdata)
    assert "·" not in str(figure.chart.data[0].node.label)


def test_the_report_has_names_in_its_tables_as_text() -> None:
    names = ExpertNames((NamedExpert(1, 2, HOSTILE),))
    made = report_on_routing("trace x", routing(), "a model", "", names=names)
    assert "&lt;b&gt;$x$&lt;/b&gt;" in made.page
    assert "<b>$x$" not in made.page
    load = made.sections[0].figures[0].frame
    assert load.loc[load["name"] != "", ["layer", "expert", "name"]].to_numpy().tolist() == [[1, 2, HOSTILE]]
