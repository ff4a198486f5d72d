"""The frame, Overview, Domains and Training on a really trained tiny run, and on runs that are not sound."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from app_support import Open, shown, wait_until

from app.components.page import prose
from moe_core.inference import tracing
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.runs import RunFolder

PAGES = ("overview", "domains", "experts", "flow", "time", "training")


def test_overview_says_in_plain_words_what_the_run_is_and_whether_it_is_healthy(
    trained_root: Path, dashboard: Open
) -> None:
    at = dashboard(trained_root)
    assert at.title[0].value == "What is tiny, and is its routing healthy?"
    text = shown(at)
    assert "2 MoE layers of 4 experts, 2 for each token" in text
    assert "ealthy" in text
    assert [metric.label for metric in at.metric] == [
        "Loss on unseen text",
        "Busiest expert",
        "Dead experts",
        "Experts know domains",
    ]
    assert "of 8" in at.metric[2].value
    assert len(at.get("vega_lite_chart")) == 1
    assert [link.label for link in at.main.get("page_link")][1] == "Which experts prefer which kind of text?"


def test_domains_gives_map_null_and_verdict_of_every_layer(trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root, "domains", layer="1")
    assert at.title[0].value == "Which experts prefer which kind of text?"
    assert "Layer 1:" in shown(at)
    assert len(at.get("vega_lite_chart")) == 3  # the layer's map, all layers at once, each layer against chance
    table = at.dataframe[0].value
    assert list(table["layer"]) == [0, 1]
    assert table["verdict"].notna().all()


@pytest.mark.parametrize("page", ["domains", "experts", "time"])
def test_a_cell_is_certain_after_all_cells_were_adjusted_for(page: str, trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root, page, layer="1")
    if page == "time":
        at.segmented_control(key="time_shown").set_value("Domains").run()
    drawn = [
        pa.ipc.open_stream(data.data.data).read_pandas()
        for chart in at.get("vega_lite_chart")
        for data in chart.proto.datasets
    ]
    cells = next(frame for frame in drawn if "lift_low" in frame)
    assert (cells["uncertain"] == ~(cells["p_adjusted"] <= SIGNIFICANCE)).all()


def test_domains_uses_more_text_on_request_also_of_a_link(trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root, "domains")
    wanted = [toggle for toggle in at.main.toggle if toggle.key == "more_text"]
    if wanted:  # else the probe was too small and more text is used already
        assert "sent through the newest checkpoint at" not in shown(at)
        wanted[0].set_value(True).run()
    assert not at.exception
    assert "sent through the newest checkpoint at" in shown(at)
    assert "sent through the newest checkpoint at" in shown(dashboard(trained_root, "domains", more_text="true"))


def test_training_shows_loss_load_and_a_way_to_start_another(trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root, "training")
    assert at.title[0].value == "Is tiny learning, and are its experts forming?"
    assert "Finished 40 steps" in shown(at)
    assert "guessing by token frequency" in shown(at)
    assert len(at.get("vega_lite_chart")) == 8  # loss, load, and what goes with it
    assert at.expander[0].label == "Train a new run"


@pytest.mark.parametrize("page", PAGES)
def test_a_rerun_shows_the_same_from_what_was_kept(
    trained_root: Path, dashboard: Open, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speed itself is measured elsewhere; here, that a warm page sends no text through the model again."""
    at = dashboard(trained_root, page)
    before = shown(at)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a warm page traced text again")

    monkeypatch.setattr(tracing, "trace_documents", refuse)
    at.run()
    assert not at.exception, at.exception
    assert shown(at) == before


def test_run_and_layer_stay_chosen_from_page_to_page(own_root: Path, dashboard: Open) -> None:
    shutil.copytree(own_root / "tiny", own_root / "other")
    at = dashboard(own_root, run="tiny", layer="0")
    assert at.title[0].value == "What is tiny, and is its routing healthy?"
    for page in ("domains", "training", "overview"):
        at.switch_page(f"app_pages/{page}.py").run()
        assert at.session_state["run"] == "tiny"
        assert at.session_state["layer"] == 0
    at.selectbox(key="run").select("other").run()
    assert at.title[0].value == "What is other, and is its routing healthy?"
    at.switch_page("app_pages/domains.py").run()
    assert at.session_state["run"] == "other"


def test_the_first_draw_writes_run_and_layer_into_the_url(own_root: Path, dashboard: Open) -> None:
    """Else the browser's Back to the first page, or a copied link, would mean another run tomorrow."""
    for given, layer in (({}, "1"), ({"run": "tiny"}, "1"), ({"layer": "0"}, "0")):
        written = dict(dashboard(own_root, **given).query_params)
        assert (written["run"], written["layer"], written["order"]) == ("tiny", layer, "number")


def test_a_link_to_a_run_that_is_gone_says_so_until_another_is_chosen(own_root: Path, dashboard: Open) -> None:
    shutil.copytree(own_root / "tiny", own_root / "other")
    at = dashboard(own_root, run="n*pe")
    shown_run = at.selectbox(key="run").value
    assert [warning.value for warning in at.sidebar.warning] == [f"There is no run n\\*pe here. This is {shown_run}."]
    at.run()
    assert at.sidebar.warning
    at.selectbox(key="run").select("tiny" if shown_run == "other" else "other").run()
    assert not at.sidebar.warning
    assert not dashboard(own_root, run="other").sidebar.warning


def test_a_url_with_values_that_do_not_exist_shows_the_defaults(trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root, run="../secret", layer="99")
    assert at.session_state["run"] == "tiny"
    assert at.session_state["layer"] in (0, 1)


def test_without_runs_every_page_says_how_to_make_one(tmp_path: Path, dashboard: Open) -> None:
    for page in ("overview", "domains"):
        at = dashboard(tmp_path, page)
        assert "There is no run yet" in shown(at)
        assert at.main.get("page_link")[0].label == "Train a first run"
    at = dashboard(tmp_path, "training")
    assert at.button(key="start_training").label == "Start training"


def test_a_broken_run_is_named_with_its_fault_and_the_others_still_work(own_root: Path, dashboard: Open) -> None:
    shutil.copytree(own_root / "tiny", own_root / "cut")
    (own_root / "cut" / "config.json").write_text("{")
    at = dashboard(own_root, run="cut")
    assert at.title[0].value == "What is wrong with cut?"
    assert "config.json" in shown(at)
    assert "Choose another run" in shown(at)
    at.selectbox(key="run").select("tiny").run()
    assert at.title[0].value == "What is tiny, and is its routing healthy?"


@pytest.mark.parametrize("page", ["overview", "domains"])
def test_a_damaged_probe_is_one_line_and_no_traceback(own_root: Path, dashboard: Open, page: str) -> None:
    for probe in (own_root / "tiny" / "probes").iterdir():
        probe.write_bytes(probe.read_bytes()[:100])
    at = dashboard(own_root, page)
    assert len(at.error) == 1
    assert "step_000040.parquet" in shown(at)
    assert "\n" not in at.error[0].value


def test_a_run_before_its_first_evaluation_says_so(own_root: Path, dashboard: Open) -> None:
    shutil.rmtree(own_root / "tiny" / "probes")
    at = dashboard(own_root)
    assert "has no routing to show yet" in shown(at)


def with_status(own_root: Path, **changes: object) -> None:
    run = RunFolder("tiny", own_root)
    status = run.status()
    assert status is not None
    run.write_status(replace(status, **changes))  # type: ignore[arg-type]


def test_an_interrupted_run_says_what_happened_and_can_be_resumed(own_root: Path, dashboard: Open) -> None:
    with_status(own_root, state="running", step=25)
    at = dashboard(own_root, "training")
    assert "ended at step 25 of 40 without a word" in shown(at)
    assert at.button(key="resume_training").label == "Resume"


def test_a_failed_run_shows_the_reason_as_text(own_root: Path, dashboard: Open) -> None:
    with_status(own_root, state="failed", step=25, message="the disk is full :red[x] $x$ <img src=x onerror=alert(1)>")
    at = dashboard(own_root, "training")
    assert "Failed at step 25 of 40: The disk is full :red[x] $x$ <img src=x onerror=alert(1)>" in shown(at)
    assert r"\:red\[x\]" in "".join(part.value for part in at.markdown)


def test_metrics_of_a_run_trained_on_are_not_stale(own_root: Path, dashboard: Open) -> None:
    at = dashboard(own_root)
    record = {"kind": "evaluation", "step": 60, "split": "unseen", "nats_per_token": 1.25, "bits_per_byte": 1.0}
    RunFolder("tiny", own_root).append_metrics(record)
    time.sleep(1.1)  # the list of runs, and with it their key figures, may be a second old
    at.run()
    assert at.metric[0].value == "1.25 nats"


def test_figures_of_a_training_fit_a_quarter_of_a_narrow_window(trained_root: Path, dashboard: Open) -> None:
    """At 1024 points a figure has room for eleven characters: "5,684 tokens/s" was cut."""
    at = dashboard(trained_root, "training")
    assert {"Loss on unseen text", "Busiest expert", "Tokens a second"} <= {metric.label for metric in at.metric}
    assert [metric.value for metric in at.metric if len(metric.value) > 11] == []


def test_a_run_whose_lock_is_held_is_live_and_can_be_asked_to_stop(own_root: Path, dashboard: Open) -> None:
    with_status(own_root, state="running", step=10, seconds_left=30.0)
    run = RunFolder("tiny", own_root)
    with run.lock():
        at = dashboard(own_root, "training")
        assert "Now at step 10 of 40, 30 s left." in shown(at)
        at.button(key="stop_training").click().run()
        assert run.stop_requested()
        assert at.button(key="stop_training").disabled


def test_a_run_that_is_being_scored_says_so_and_shows_no_loss_of_a_part(own_root: Path, dashboard: Open) -> None:
    run = RunFolder("tiny", own_root)
    run.evaluation_path.unlink(missing_ok=True)
    with run.lock():
        at = dashboard(own_root, "training")
        assert "All 40 steps are done" in shown(at)
        assert "is being scored" in shown(at)
        assert at.metric[0].value == "scoring"
        assert at.metric[3].label == "Time taken"
        assert not [button for button in at.button if button.key == "stop_training"]
        assert dashboard(own_root).metric[0].value == "scoring"
    time.sleep(1.1)  # the list of runs may be a second old
    assert "Finished 40 steps" in shown(dashboard(own_root, "training"))


def test_a_run_that_is_being_prepared_has_no_time_left_yet(own_root: Path, dashboard: Open) -> None:
    with_status(own_root, state="preparing", step=0, seconds_left=None, elapsed_seconds=0.0, message="preparing")
    with RunFolder("tiny", own_root).lock():
        at = dashboard(own_root, "training")
        assert (at.metric[3].label, at.metric[3].value) == ("Time left", "–")


def test_commands_in_a_message_are_code_and_all_else_is_text() -> None:
    assert prose("no *run*; `main.py runs` lists `them`") == r"no \*run\*; `main.py runs` lists `them`"
    assert prose("one ` alone") == r"one \` alone"


def test_two_sessions_do_not_share_their_choice(own_root: Path, dashboard: Open) -> None:
    shutil.copytree(own_root / "tiny", own_root / "other")
    first, second = dashboard(own_root, run="tiny"), dashboard(own_root, run="other")
    first.run()
    assert first.title[0].value == "What is tiny, and is its routing healthy?"
    assert second.title[0].value == "What is other, and is its routing healthy?"


def test_events_are_shown_newest_first_and_as_text(own_root: Path, dashboard: Open) -> None:
    run = RunFolder("tiny", own_root)
    for step, message in ((10, "first"), (20, "expert 3 in layer 1 has become a *bold* expert")):
        run.append_metrics({"kind": "event", "step": step, "message": message})
    text = shown(dashboard(own_root, "training"))
    assert text.index("Step 20: expert 3 in layer 1 has become a *bold* expert") < text.index("Step 10: first")


@pytest.mark.slow
def test_a_run_that_cannot_be_resumed_says_why(own_root: Path, dashboard: Open) -> None:
    with_status(own_root, state="stopped", step=25)
    for checkpoint in (own_root / "tiny" / "weights").iterdir():
        (checkpoint / "model.safetensors").write_bytes(b"damaged")
    at = dashboard(own_root, "training")
    at.button(key="resume_training").click().run()
    assert not at.exception
    assert "The run was not resumed" in at.error[0].value
    assert "model.safetensors" in at.error[0].value.replace("\\", "")


def test_domains_shows_states_of_halves_when_asked(trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root, "domains", layer="1")
    assert "Do states of one text lie together?" in shown(at)
    at.button(key="states_start").click().run()
    wait_until(lambda: "of halves find the other half" in shown(at.run()))
    at.segmented_control(key="states_colour").set_value("Expert").run()
    assert not at.exception
    assert "was read alone" in shown(at)
