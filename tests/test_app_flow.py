"""The Flow page on a really trained tiny run: bands, maps, what neighbours share, and the text they are of."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from app_support import Open, sent_to_components, shown

from app import loaders
from app.components.routing_text import MAX_PAIRS, layers_around
from moe_core.routing import metrics
from moe_core.routing.measures.expert_flow import strongest_streams
from moe_core.routing.measures.flow import layer_flow, layer_flow_test
from moe_core.runs import RunFolder


@pytest.fixture
def opened(dashboard: Open) -> Open:
    return partial(dashboard, page="flow")


def test_bands_between_all_layers_stand_below_a_computed_answer(trained_root: Path, opened: Open) -> None:
    at = opened(trained_root, layer="0")
    assert at.title[0].value == "How do tokens travel through the layers?"
    text = shown(at)
    assert re.search(r"tells about its expert in the next|Not distinguishable from chance|too few", text)
    assert len(at.get("plotly_chart")) == 1
    assert len(at.get("vega_lite_chart")) == 2
    assert "held-out text, sent through the newest checkpoint at" in text


def test_the_largest_stream_beyond_chance_is_named(trained_root: Path, opened: Open) -> None:
    text = shown(opened(trained_root, layer="0"))
    flow = metrics.layer_flow(loaders.deep_routing(RunFolder("tiny", trained_root)).trace)
    beyond = flow["tokens"] - flow["tokens"] / flow["lift"]
    best = flow.loc[beyond.idxmax()]
    said = re.search(r"from expert (\d+) of layer 0 to expert (\d+) of layer 1: (\d+) %", text)
    assert said is not None
    assert [int(part) for part in said.groups()] == [
        best["expert"],
        best["next_expert"],
        round(100 * best["probability"]),
    ]


def test_the_last_layer_shows_how_tokens_come_into_it(trained_root: Path, opened: Open) -> None:
    assert "Layer 1 is the last: this is how tokens come into it." in shown(opened(trained_root, layer="1"))


@pytest.mark.parametrize(("view", "words"), [("Chosen together", "Layer 1:"), ("Token to token", "eighbouring")])
def test_a_closer_look_comes_with_its_verdict(trained_root: Path, opened: Open, view: str, words: str) -> None:
    at = opened(trained_root, layer="1")
    at.segmented_control(key="flow_shown").set_value(view).run()
    assert not at.exception
    verdict = shown(at).split("Look closer")[-1]
    assert words in verdict or "Not distinguishable from chance" in verdict
    assert len(at.get("vega_lite_chart")) == 1


def test_without_a_checkpoint_the_probe_is_shown(trained_root: Path, tmp_path: Path, opened: Open) -> None:
    shutil.copytree(trained_root, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "weights")
    at = opened(tmp_path / "runs")
    assert "the probe text at step 40 (more text could not be used" in shown(at)
    assert len(at.get("plotly_chart")) == 1


def test_before_the_first_snapshot_one_line_says_so(trained_root: Path, tmp_path: Path, opened: Open) -> None:
    shutil.copytree(trained_root, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "weights")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "probes")
    at = opened(tmp_path / "runs")
    assert len(at.error) == 1
    assert "\n" not in at.error[0].value


def test_layers_around_the_chosen_one_are_as_many_as_their_pairs_allow() -> None:
    layers = list(range(1, 64, 2))
    assert layers_around(layers, 1, 8) == layers  # 32 layers x 64 pairs
    few = layers_around(layers, 31, 256)  # one layer alone is 65,536 pairs
    assert few == [29, 31]
    assert layers_around(layers, 1, 256) == [1, 3]
    assert layers_around(layers, 63, 256) == [61, 63]
    assert len(layers_around(layers, 31, 128)) == MAX_PAIRS // 128**2
    assert layers_around([5], 5, 1000) == [5]


def test_one_expert_shows_where_its_tokens_come_from_and_go_and_leads_to_its_page(
    trained_root: Path, opened: Open
) -> None:
    at = opened(trained_root, layer="1", flow_shown="One expert", expert="2")
    text = shown(at).split("Look closer")[-1]
    flow = metrics.layer_flow(loaders.deep_routing(RunFolder("tiny", trained_root)).trace)
    own = flow[flow["next_expert"] == 2]
    came = len(at.get("vega_lite_chart"))
    assert came == 1 if own["tokens"].sum() else came == 0
    assert "Where its tokens come from" in text
    assert "There is no MoE layer after this one." in text
    at.button(key="flow_expert_page").click().run()
    (sent,) = (data for data in sent_to_components(at.sidebar) if "query" in data)
    assert sent["query"] == "run=tiny&layer=1&expert=2"
    assert not at.exception


def test_the_strongest_streams_are_rows_that_name_their_experts(trained_root: Path, opened: Open) -> None:
    at = opened(trained_root, layer="0")
    measured = loaders.deep_routing(RunFolder("tiny", trained_root))
    streams = strongest_streams(measured.get(layer_flow), measured.get(layer_flow_test))
    tables = [table.value for table in at.dataframe if "next_expert" in table.value]
    assert bool(tables) == bool(len(streams))
    if tables:
        assert tables[0]["expert"].tolist() == streams["expert"].tolist()
        assert "the bands above cannot be clicked" in shown(at)
