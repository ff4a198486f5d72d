"""The Time page on a really trained tiny run: its film, its verdicts, and the runs that have no film to show."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from app_support import Open, payload_of, shown

from app.components.snapshots import snapshot_payload
from moe_core.figures.formation import formation_figure, formation_verdict
from moe_core.figures.tokens import TOKENS_OF_EACH_DOMAIN, snapshot_arrays
from moe_core.routing import RoutingTrace, metrics
from moe_core.runs import RunFolder


@pytest.fixture
def opened(dashboard: Open) -> Open:
    return partial(dashboard, page="time")


def test_the_answer_says_when_the_layers_experts_were_formed(trained_root: Path, opened: Open) -> None:
    at = opened(trained_root, layer="0")
    assert at.title[0].value == "When did each expert become what it is?"
    formation = metrics.formation(
        {s: RoutingTrace.load(RunFolder("tiny", trained_root).probe_path(s)) for s in (0, 20, 40)}
    )
    assert formation_verdict(formation, 0) in shown(at)
    assert len(at.get("vega_lite_chart")) == 2


def test_the_slider_shows_the_text_as_it_was_routed_at_that_step(trained_root: Path, opened: Open) -> None:
    at = opened(trained_root, step="20")
    assert at.session_state["step"] == 20
    run = RunFolder("tiny", trained_root)
    expected = {
        step: snapshot_payload(RoutingTrace.load(run.probe_path(step)), series=str(RunFolder("tiny").path))
        for step in (0, 20)
    }
    assert payload_of(at)["indices"] == expected[20]["indices"]
    at.select_slider(key="step").set_value(0).run()
    assert payload_of(at)["indices"] == expected[0]["indices"]
    assert payload_of(at)["tokens"] == expected[20]["tokens"]
    assert expected[0]["indices"] != expected[20]["indices"]


def test_the_first_step_stands_in_the_url_and_none_means_the_newest(trained_root: Path, opened: Open) -> None:
    at = opened(trained_root, step="0")
    assert at.session_state["step"] == 0
    assert at.query_params["step"] == "0"
    assert opened(trained_root).session_state["step"] == 40


@pytest.mark.parametrize(("what", "title"), [("Domains", "Step 0, layer 1:"), ("Load", "Step 0:")])
def test_the_maps_of_a_step_come_with_their_verdict(trained_root: Path, opened: Open, what: str, title: str) -> None:
    at = opened(trained_root, step="0", layer="1")
    at.segmented_control(key="time_shown").set_value(what).run()
    assert not at.exception
    assert title in shown(at)


def test_one_snapshot_has_no_slider_and_says_so(own_root: Path, opened: Open) -> None:
    for step in (0, 20):
        RunFolder("tiny", own_root).probe_path(step).unlink()
    at = opened(own_root)
    assert not at.select_slider
    assert "There is one snapshot only" in shown(at)


def test_before_the_first_snapshot_one_line_says_so(own_root: Path, opened: Open) -> None:
    shutil.rmtree(own_root / "tiny" / "probes")
    at = opened(own_root)
    assert "has no routing to show yet" in shown(at)
    assert len(at.error) == 1


def test_a_damaged_snapshot_is_one_line(own_root: Path, opened: Open) -> None:
    probe = RunFolder("tiny", own_root).probe_path(20)
    probe.write_bytes(probe.read_bytes()[:100])
    at = opened(own_root)
    assert len(at.error) == 1
    assert "step_000020.parquet" in at.error[0].value.replace("\\", "")


def test_a_run_that_trains_says_that_more_is_to_come(own_root: Path, opened: Open) -> None:
    with RunFolder("tiny", own_root).lock():
        assert "New snapshots appear by themselves" in shown(opened(own_root))


def test_a_step_that_is_not_there_shows_the_last(trained_root: Path, opened: Open) -> None:
    assert opened(trained_root, step="33").session_state["step"] == 40


def test_the_film_shows_the_beginning_of_one_document_of_each_domain(trained_root: Path) -> None:
    trace = RoutingTrace.load(RunFolder("tiny", trained_root).probe_path(40))
    arrays = snapshot_arrays(trace)
    assert len(arrays.starts) == len(set(trace.domain_ids.tolist()))
    assert len(arrays.tokens) <= TOKENS_OF_EACH_DOMAIN * len(trace.domains)
    assert arrays.indices.shape[1] == len(arrays.tokens)
    assert list(np.asarray(arrays.domain_ids)[list(arrays.starts)]) == sorted(set(trace.domain_ids.tolist()))


def test_the_picture_of_more_experts_and_snapshots_than_fit_draws_the_busiest_and_spaced_ones() -> None:
    generator = np.random.default_rng(0)
    T, E, S = 200, 80, 70
    traces = {
        step: RoutingTrace.from_arrays(
            router_indices=generator.integers(0, E, (1, T, 1)),
            router_scores=np.ones((1, T, 1), np.float32),
            num_experts=E,
            token_ids=np.arange(T),
            document_ids=np.zeros(T, np.int32),
        )
        for step in range(S)
    }
    figure = formation_figure(metrics.formation(traces), 0)
    drawn = figure.chart.to_dict()
    (rows,) = (table for table in drawn["datasets"].values() if len(table) > 1)
    assert len({row["expert"] for row in rows}) == 64
    steps = {row["step"] for row in rows}
    assert len(steps) == 64
    assert {0, S - 1} <= steps
    assert len(figure.frame) == E * S  # the numbers behind it are all there
