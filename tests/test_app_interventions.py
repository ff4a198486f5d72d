"""The Interventions page: an expert is changed for one reader alone; what it does is counted, written, shown."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from app_support import SOON, Open, followed_link, payloads, shown, wait_until, work_of_a_rerun
from generation_support import generate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.components.loss_view import arrays_of_effects, chosen, passage_effects, table
from app.components.text_pair import TextPair, arrays_of_pair, differences, pair_verdict
from moe_core.errors import UsageError
from moe_core.evaluation.ablation import ablation_map
from moe_core.evaluation.pruning_text import text_of_run
from moe_core.figures.effects import domain_effects_figure, with_outline
from moe_core.figures.load import load_map_figure
from moe_core.inference import measuring_job as measuring_job_module
from moe_core.inference.expert_outputs import saliency_by_source
from moe_core.inference.job import GenerationJob
from moe_core.inference.passages import Passage
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.instruments.change import FORCE, MODES, Change
from moe_core.routing.measures.causes import effects_verdict, text_loss_verdict
from moe_core.routing.measures.keep_list import keep_list_verdict, list_by_saliency
from moe_core.routing.measures.pruning import pruning_verdict, top_k_verdict
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import LoadedRun, load_run
from moe_core.runs.pruning_file import read_curves


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, trained_root: Path) -> Path:
    """A copy: what is measured is kept in the run's folder."""
    copy = tmp_path_factory.mktemp("interventions")
    shutil.copytree(trained_root / "tiny", copy / "tiny")
    return copy


@pytest.fixture(scope="module")
def loaded(root: Path) -> LoadedRun:
    return load_run("tiny", root)


@pytest.fixture
def open_page(dashboard: Open, root: Path) -> Open:
    return partial(dashboard, root, "interventions")


def test_the_page_answers_before_the_first_click(open_page: Open, loaded: LoadedRun) -> None:
    at = open_page(layer="1", expert="2")
    assert at.title[0].value == "What happens without an expert?"
    answer = at.main.markdown[0].value.replace("\\", "")
    known = ablation_map(loaded, layers=[1], experts=[2])
    assert answer == effects_verdict(known, "without expert 2 of layer 1")
    assert at.selectbox(key="changed_expert").value == 2
    (view,) = payloads(at)
    assert view["mode"] == "change"
    assert view["mark_label"] == "had chosen expert 2 in layer 1"
    assert "Switch off each of 8 experts" in [button.label for button in at.main.button]


def test_the_map_is_measured_once_and_then_chosen_from(open_page: Open, root: Path) -> None:
    at = open_page(layer="0")
    at.button(key="measure_map").click().run()
    measured(at)
    charts = [json.loads(chart.proto.spec) for chart in at.get("vega_lite_chart")]
    cell = [parameter["name"] for parameter in charts[0]["params"]]
    assert "cell" in cell
    assert "measure_map" not in [button.key for button in at.main.button]
    assert len(list((root / "tiny" / "analysis").glob("ablation_zero_*.jsonl"))) == 1
    again = open_page(layer="1", expert="3")
    assert "measure_map" not in [button.key for button in again.main.button]


def measured(at: AppTest) -> None:
    """Wait for what is measured in the background, and draw the page again."""
    for job in list(measuring_job_module._jobs.values()):
        assert job.wait(SOON)
    at.run()
    assert not at.exception
    assert not at.main.error


def test_several_experts_are_changed_at_once(open_page: Open, loaded: LoadedRun) -> None:
    at = open_page(layer="1", expert="2", also=["0:1", "1:3", "9:9"])  # an expert that is not there is left out
    change = Change(1, 2, "zero", ((0, 1), (1, 3)))
    assert at.multiselect(key="also").value == ["0:1", "1:3"]
    what = "without expert 1 of layer 0 and experts 2 and 3 of layer 1"
    assert change.what == what
    from moe_core.evaluation.effects import domain_effects, token_effects
    from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text

    text = held_out_text(loaded.run, loaded.tokenizer, ABLATED_TOKENS_PER_DOMAIN)
    known = domain_effects(token_effects(loaded, text, change.intervention))
    assert at.main.markdown[0].value.replace("\\", "") == effects_verdict(known, what)
    (view,) = payloads(at)
    assert view["mark_label"] == "had chosen one of 3 experts"
    # The chosen one is kept by the button; of the next one chosen the set grows.
    at.multiselect(key="also").set_value([]).run()
    assert "Without expert 2 of layer 1 the loss" in shown(at)
    at.button(key="keep_expert").click().run()
    at.selectbox(key="changed_expert").set_value(0).run()
    assert at.session_state["also"] == ["1:2"]
    assert "Without experts 0 and 2 of layer 1" in shown(at)
    at.slider(key="pair_tokens").set_value(10)
    at.button(key="pair_write").click().run()
    wait_until(lambda: not running(at))
    at.run()
    assert "Without experts 0 and 2 of layer 1" in shown(at)
    assert not at.exception


def test_more_experts_than_a_layer_takes_are_refused_in_words(open_page: Open) -> None:
    at = open_page(layer="0", expert="0", mode=list(MODES)[-1], also=["0:1", "0:2"])
    assert not at.exception
    assert "3 experts of layer 0 are forced; expected at most top_k = 2" in at.main.error[0].value.replace("\\", "")


def test_the_curves_are_measured_once_and_found_again(open_page: Open, root: Path) -> None:
    at = open_page(layer="0")
    assert "down to 2: the least needed first" in shown(at)
    at.button(key="measure_curves").click().run()
    measured(at)
    kept = read_curves(RunFolder("tiny", root))
    assert kept is not None
    assert pruning_verdict(kept.curves) in shown(at)
    assert top_k_verdict(kept.curves) in shown(at)
    again = open_page(layer="1", pruning_text="legal")
    assert pruning_verdict(kept.curves) in shown(again)
    assert again.segmented_control(key="pruning_text").value == "legal"
    assert again.button(key="measure_curves").label == "Measure again"


def test_the_experts_that_can_go_are_listed_and_a_run_without_them_is_written(open_page: Open, root: Path) -> None:
    at = open_page(layer="0")
    assert at.main.get("arrow_data_frame") == []
    at.button(key="measure_keep_list").click().run()
    measured(at)
    loaded = load_run("tiny", root)
    sums = saliency_by_source(loaded, text_of_run(loaded).tuning)
    assert keep_list_verdict(list_by_saliency(sums, 3)) in shown(at)
    at.selectbox(key="keep_by").set_value("load").run()
    at.selectbox(key="keep_text").set_value("legal").run()
    legal = list_by_saliency(sums.of_domain(loaded.run.domains().index("legal")), 3, by="load", domain="legal")
    assert keep_list_verdict(legal) in shown(at)
    again = open_page(layer="1", keep="2", keep_by="load", keep_text="legal")
    assert "--keep 2 --by load --domain legal --as tiny-2-legal" in again.main.code[0].value
    at.button(key="write_pruned").click().run()
    wait_until(lambda: RunFolder("tiny-3-legal", root).exists())
    measured(at)
    assert at.button(key="go_to_pruned").label == "Go to it"
    pruned = load_run("tiny-3-legal", root)
    assert pruned.config.model.num_experts == 3
    for layer, kept in legal.kept.items():
        name = f"layers.{layer}.moe.experts.up_proj"
        assert torch.equal(pruned.model.state_dict()[name], loaded.model.state_dict()[name][kept])
    assert not at.exception
    assert not at.main.error


def test_every_change_is_in_the_url_and_answered(open_page: Open) -> None:
    at = open_page(layer="0", changed_expert="1", mode=list(MODES)[-1])
    for label in reversed(MODES):
        at.selectbox(key="mode").select(label).run()
        what = Change(0, 1, MODES[label]).what
        assert at.main.markdown[0].value.replace("\\", "").startswith(what[:1].upper() + what[1:])
        assert not at.main.error
        assert not at.exception


def test_two_texts_are_written_side_by_side_and_found_again(open_page: Open) -> None:
    at = open_page(layer="0", expert="1")
    at.slider(key="pair_tokens").set_value(30)
    at.button(key="pair_write").click().run()
    assert not at.exception
    key = at.session_state["texts"]
    wait_until(lambda: not running(at))
    at.run()
    assert not at.exception
    assert "finished ·" in shown(at)
    assert "As the model is" in shown(at)
    assert "Without expert 1 of layer 0" in shown(at)
    first, second, _ = payloads(at)
    assert first["mark_label"] == second["mark_label"] == "not in the other text"
    # The same address in another session, as after a reload.
    again = followed_link("interventions", layer="0", changed_expert="1", texts=key)
    assert payloads(again)[0]["tokens"] == first["tokens"]
    assert payloads(again)[1]["tokens"] == second["tokens"]
    assert again.text_area(key="pair_prompt").value == at.text_area(key="pair_prompt").value
    # Another change is chosen: the texts stay, and say what they are of.
    again.selectbox(key="changed_expert").set_value(2).run()
    assert "These were written without expert 1 of layer 0" in shown(again)


def running(at: AppTest) -> bool:
    from app import loaders

    pair = loaders.texts_place(at.session_state["texts"]).pair
    return pair is not None and pair.is_running


def test_stop_ends_both_texts(open_page: Open) -> None:
    at = open_page(layer="0", expert="1")
    at.slider(key="pair_tokens").set_value(400)
    at.button(key="pair_write").click().run()
    at.button(key="pair_stop").click().run()
    wait_until(lambda: not running(at))
    at.run()
    assert "stopped ·" in shown(at)
    assert not at.exception


def test_an_address_whose_texts_are_gone_offers_to_write(open_page: Open) -> None:
    at = open_page(texts="never-written")
    assert not at.exception
    assert len(payloads(at)) == 1
    assert "Write both" in [button.label for button in at.main.button]


def test_an_empty_text_says_what_to_do(open_page: Open) -> None:
    at = open_page()
    at.segmented_control(key="loss_text").select("Your own text").run()
    assert payloads(at)[0]["domains"] == ["your text"]
    at.text_area(key="loss_typed").set_value("").run()
    assert "type or paste some" in at.info[0].value
    assert not at.exception


def test_a_warm_page_computes_nothing_again(open_page: Open) -> None:
    at = open_page()
    work = work_of_a_rerun(at)
    assert work["forward"] == 0
    assert work["calls"] < 500_000


def test_a_change_reaches_no_other_user_of_the_model(loaded: LoadedRun) -> None:
    sampling = SamplingConfig(max_new_tokens=40, seed=3)
    expected = [token.token_id for token in generate(loaded, "The court", sampling)]
    change = Change(0, 1, FORCE)
    job = GenerationJob(loaded, "The court", sampling, change.intervention)
    seen = list(generate(loaded, "The court", sampling))
    job.wait(SOON)
    job.raise_error()
    assert [token.token_id for token in seen] == expected
    assert all((token.experts[0] == 1).any() for token in job.written)
    assert not all((token.experts[0] == 1).any() for token in seen)


def test_a_pair_differs_by_the_change_alone(loaded: LoadedRun) -> None:
    sampling = SamplingConfig(max_new_tokens=30, seed=1)
    change = Change(1, 0, "reroute")
    pair = TextPair.write(loaded, "The court", sampling, change.intervention, change.what)
    for job in pair.jobs:
        job.wait(SOON)
    assert pair.original.text == "".join(token.text for token in generate(loaded, "The court", sampling))
    assert not any((token.experts[1] == 0).any() for token in pair.changed.written)
    first, second = arrays_of_pair(pair)
    before = len(loaded.tokenizer.encode("The court"))
    for arrays in (first, second):
        assert arrays.marks is not None
        assert arrays.marks.shape == (2, len(arrays.tokens))
        assert not arrays.marks[:, :before].any()
    assert "without expert 0 of layer 1, others chosen instead" in pair_verdict(pair)


def test_what_changes_nothing_is_said_to_change_nothing(loaded: LoadedRun) -> None:
    from moe_core.routing import Intervention

    pair = TextPair.write(loaded, "a", SamplingConfig(max_new_tokens=9, seed=1), Intervention(), "with nothing changed")
    for job in pair.jobs:
        job.wait(SOON)
    written = len(pair.original.written)
    assert pair_verdict(pair) == f"Not one of {written} tokens changed with nothing changed, with the same seed."


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_not_marked_is_in_both_texts_in_order(first: str, second: str) -> None:
    own, other = differences(first, second)
    assert [x for x, new in zip(first, own, strict=True) if not new] == [
        x for x, new in zip(second, other, strict=True) if not new
    ]
    assert not differences(first, first)[0].any()


def test_marked_by_hand() -> None:
    own, other = differences(list("the old cat"), list("the cat"))
    assert own.tolist() == [False] * 4 + [True] * 4 + [False] * 3
    assert not other.any()


def test_the_change_of_loss_is_that_of_the_text(loaded: LoadedRun) -> None:
    change = Change(1, 2, "zero")
    passages = [Passage("a", "The court ordered the bank."), Passage("b", "def total(prices):\n    return 0")]
    effects = passage_effects(loaded, passages, change)
    arrays = arrays_of_effects(loaded, effects, change)
    text = b"".join(token or b"" for token in arrays.tokens).decode()
    assert text == "".join(passage.text for passage in passages)
    assert arrays.starts == [0, 1 + len(loaded.tokenizer.encode(passages[0].text))]
    assert arrays.changes is not None
    assert arrays.marks is not None
    assert np.isnan(arrays.changes[list(arrays.starts)]).all()
    own = (effects.trace.router_indices[1] == 2).any(axis=1)
    assert (arrays.marks == own).all()
    assert (chosen(effects, change) == own).all()
    # In the last layer nothing carries a change from one token to another: those that had not chosen the expert keep
    # their prediction of the next token.
    untouched = np.flatnonzero(~own[:-1]) + 1
    untouched = untouched[np.isfinite(arrays.changes[untouched])]
    assert np.abs(arrays.changes[untouched]).max() < 1e-5
    assert np.abs(arrays.changes[np.isfinite(arrays.changes)]).max() > 1e-4
    met = np.flatnonzero(own[:-1]) + 1
    met = met[np.isfinite(arrays.changes[met])]
    verdict = text_loss_verdict(effects.delta, own)
    assert f"for the {len(met)} tokens after one that had chosen it, 0 for the other {len(untouched)}." in verdict
    assert "tokens after one that had not chosen it" in text_loss_verdict(effects.delta, own, forced=True)
    assert len(table(effects)) == len(arrays.tokens)


def effects_frame(delta: float, low: float, high: float) -> pd.DataFrame:
    rows = [("all", 100, delta, low, high), ("legal", 50, 2 * delta, 2 * low, 2 * high)]
    frame = pd.DataFrame(rows, columns=["domain", "tokens", "delta_nats", "low", "high"])
    return frame.assign(kl=0.0, uncertain=~((frame["low"] > 0) | (frame["high"] < 0)))


@pytest.mark.parametrize(
    ("delta", "low", "high", "expected"),
    [
        (0.2, 0.1, 0.3, "Without it the loss rises by 0.2 nats per token (95 % interval +0.1 to +0.3); most on legal "
                        "text, +0.4."),
        (-0.2, -0.3, -0.1, "Without it the loss falls by 0.2 nats per token (95 % interval −0.3 to −0.1); most on "
                           "legal text, −0.4."),
        (0.005, 0.004, 0.006, "Without it the loss rises by 0.005 nats per token (95 % interval +0.004 to +0.006), too "
                              "little to matter; most on legal text, +0.01."),
        (0.1, -0.1, 0.3, "Without it the loss on all text is not distinguishable from what it was (95 % interval −0.1 "
                         "to +0.3)."),
        (0.1, np.nan, np.nan, "Without it the loss changes by +0.1 nats per token; of one source only, so uncertain."),
    ],
)  # fmt: skip
def test_the_verdict_says_size_and_certainty(delta: float, low: float, high: float, expected: str) -> None:
    frame = effects_frame(delta, low, high)
    assert effects_verdict(frame, "without it") == expected
    figure = domain_effects_figure(frame, "without it")
    assert figure.verdict == expected
    assert figure.chart.to_dict()


def test_the_chosen_cell_is_framed(root: Path) -> None:
    run = RunFolder("tiny", root)
    trace = RoutingTrace.load(run.probe_path(run.probe_steps()[-1]))
    figure = load_map_figure(metrics.expert_load(trace), metrics.load_balance(trace))
    framed = with_outline(figure, 1, 3)
    assert len(framed.chart.layer) == len(figure.chart.layer) + 1
    assert framed.chart.layer[-1].data.to_dict("records") == [{"layer": 1, "column": 3}]
    assert framed.chart.to_dict()


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="'gently'"):
        _ = Change(0, 0, "gently").intervention
