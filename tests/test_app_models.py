"""The dashboard opened on a model of the transformers library: tokens, generation and interventions live on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers", reason="transformers is missing: pip install -r requirements-huggingface.txt")

import numpy as np
import torch
from app_support import SOON, Open, in_box, payload_of, shown, text_of, work_of_a_rerun
from huggingface_support import saved_model, tiny_model
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from app import effect_loaders
from app.components.effect_map import parts_of
from app.components.open_other import open_path
from moe_core.errors import MoescopeError, UsageError
from moe_core.evaluation.effects import token_effects
from moe_core.inference import measuring_job
from moe_core.inference.kept_files import Said
from moe_core.inference.open import language_model
from moe_core.inference.subjects import OPENED, ForeignModel
from moe_core.routing import Intervention
from moe_core.routing.instruments.huggingface.loading import load
from moe_core.routing.measures.pruning import pruning_verdict

pytestmark = pytest.mark.usefixtures("dashboard")  # closes what was opened, also without a page
NAME = "model some-moe"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, the first dense, of 4 experts, with a tokenizer."""
    return saved_model(tmp_path_factory.mktemp("models") / "some-moe", "qwen3_moe")


@pytest.fixture
def opened(dashboard: Open, tmp_path: Path) -> Open:
    """The dashboard started with `-- --model ...`, without a run, at a page."""

    def open_page(*arguments: str, page: str = "overview", **query: str) -> AppTest:
        return dashboard(tmp_path / "none", page, arguments, **query)

    return open_page


def test_a_model_opens_without_a_run_on_every_page_that_needs_no_training(model_dir: Path, opened: Open) -> None:
    at = opened("--model", str(model_dir))
    assert at.title[0].value.replace("\\", "") == f"What is {NAME}, and is its routing healthy?"
    assert "2 MoE layers of 4 experts, 2 for each token" in shown(at)
    assert at.session_state["layer"] == 2
    assert at.session_state["run"] == NAME
    assert "float32 on cpu" in "".join(caption.value for caption in at.sidebar.caption)
    for page in ("domains", "experts", "flow", "compare"):
        at.switch_page(f"app_pages/{page}.py").run()
        assert not at.exception
        assert not at.error, (page, [error.value for error in at.error])
    at.switch_page("app_pages/time.py").run()
    assert "which only a run that was trained here has" in shown(at)
    assert "What the model shows" in [link.label for link in at.main.get("page_link")]


def test_typed_text_goes_through_the_model(model_dir: Path, opened: Open) -> None:
    at = opened("--model", str(model_dir), page="tokens")
    assert payload_of(at)["domains"] == ["finance", "legal", "code", "general"]
    at.segmented_control(key="text").select("Your own text").run()
    at.text_area(key="tokens_text").set_value("The café <|endoftext|> 日本").run()
    assert not at.exception
    payload = payload_of(at)
    assert "The café" in text_of(payload)
    assert payload["layers"] == [1, 2]
    assert payload["experts"] == 4


def test_the_model_writes(model_dir: Path, opened: Open) -> None:
    at = opened("--model", str(model_dir), page="generation")
    at.slider(key="generation_tokens").set_value(10)
    at.button(key="generation_write").click().run()
    job = at.session_state["generation_job"]
    job.wait(60)
    assert job.error is None
    at.run()
    assert not at.exception
    assert not at.error
    assert payload_of(at)["layers"] == [1, 2]
    assert "finished" in shown(at)


def test_switching_an_expert_off_is_measured_live(model_dir: Path, opened: Open) -> None:
    at = opened("--model", str(model_dir), page="interventions", layer="1", expert="3")
    assert not at.error, [error.value for error in at.error]
    assert "without expert 3 of layer 1" in shown(at).lower()
    assert "This text's loss changes by" in shown(at)


def ended(at: AppTest) -> None:
    """Wait for what is measured in the background, and draw the page again."""
    for job in list(measuring_job._jobs.values()):
        assert job.wait(SOON)
    at.run()
    assert not at.exception
    assert not at.error, [error.value for error in at.error]


def test_the_map_and_the_curves_of_a_model_are_measured_on_demand(model_dir: Path, opened: Open) -> None:
    at = opened("--model", str(model_dir), page="interventions", layer="1", mode="Let the router choose again")
    button = at.button(key="measure_map")
    assert button.label == "Switch off each of 8 experts"
    assert "about" in shown(at)
    button.click().run()
    ended(at)
    assert not [button for button in at.main.button if button.key == "measure_map"]
    assert "Without each expert: all text (reroute)" in shown(at)
    # By the long way: one expert, rerouted, token by token.
    subject = OPENED.find(NAME)
    assert isinstance(subject, ForeignModel)
    model = language_model(load(str(model_dir)))
    effects = token_effects(model, effect_loaders.ablated_text(subject), Intervention(ablate=((2, 1),), mode="reroute"))
    known = effect_loaders.remembered_effects(subject, "reroute")
    assert known is not None
    assert set(zip(known["layer"], known["expert"], strict=True)) == {(layer, e) for layer in (1, 2) for e in range(4)}
    (row,) = known[(known["layer"] == 2) & (known["expert"] == 1) & (known["domain"] == "all")].to_dict("records")
    assert row["delta_nats"] == pytest.approx(np.nanmean(effects.delta), abs=1e-4)

    at.button(key="measure_curves").click().run()
    ended(at)
    kept = effect_loaders.curves(subject)
    assert kept is not None
    assert kept.curves.criteria == ["reap", "load", "effect", "random"]
    assert pruning_verdict(kept.curves) in shown(at)


def test_a_large_model_is_measured_in_parts() -> None:
    large = SimpleNamespace(moe_layers=range(48), num_experts=128)
    layer, sample, everything = parts_of(large, 7)  # type: ignore[arg-type]
    assert (layer.label, layer.count) == ("layer 7", 128)
    assert (sample.label, sample.count) == ("1 expert of every layer", 48)
    assert (everything.label, everything.count) == ("all layers", 6144)
    small = SimpleNamespace(moe_layers=range(4), num_experts=8)
    assert [part.count for part in parts_of(small, 0)] == [32]  # type: ignore[arg-type]


def test_a_model_without_tokenizer_is_read_in_token_ids(tmp_path: Path, opened: Open) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "mute")
    at = opened("--model", str(tmp_path / "mute"), page="tokens")
    assert at.segmented_control(key="text").options == ["Your own text"]
    at.text_area(key="tokens_text").set_value("17 4 256").run()
    assert not at.exception
    assert payload_of(at)["count"] == 3
    at.text_area(key="tokens_text").set_value("seventeen").run()
    assert "is no token id" in at.info[0].value
    at.switch_page("app_pages/overview.py").run()
    assert "came without a tokenizer" in shown(at)


def test_the_path_field_opens_a_model_or_says_what_is_wrong(model_dir: Path, tmp_path: Path, opened: Open) -> None:
    at = opened()
    at.text_input(key=in_box(at, "open_path")).set_value(str(model_dir))
    at.button(key="open_button").click().run()
    assert at.title[0].value.replace("\\", "").startswith(f"What is {NAME}")
    (tmp_path / "model.safetensors").touch()
    for wrong, said in ((tmp_path / "nowhere", "nothing at"), (tmp_path, "no config.json")):
        with pytest.raises(UsageError, match=said):
            open_path(str(wrong), Said())
    dense = tmp_path / "dense"
    dense.mkdir()
    (dense / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1}))
    with pytest.raises(MoescopeError):
        open_path(str(dense), Said())
    assert [one.name for one in OPENED.all()] == [NAME]


def test_a_model_that_cannot_be_loaded_is_one_line_on_its_pages(tmp_path: Path, opened: Open) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    at = opened("--model", str(broken))
    assert len(at.main.error) == 1
    assert "\n" not in at.main.error[0].value


def test_a_warm_page_computes_nothing_again(model_dir: Path, opened: Open) -> None:
    at = opened("--model", str(model_dir))
    work = work_of_a_rerun(at)
    assert work["forward"] == 0
    assert work["calls"] < 250_000


def test_a_base_and_its_fine_tuned_copy_are_compared_with_one_click(
    model_dir: Path, opened: Open, tmp_path: Path
) -> None:
    shutil.copytree(model_dir, tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    gates = [name for name in weights if name.endswith("mlp.gate.weight")]
    assert gates
    for name in gates:
        weights[name] += 0.05 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    at = opened("--model", str(model_dir), page="compare", compare_kind="Runs, steps or traces")
    at.text_input(key="fine_tuned_base").set_value(str(model_dir))
    at.text_input(key="fine_tuned_copy").set_value(str(model_dir))
    at.button(key="fine_tuned_start").click().run()
    assert "expected a model and its fine-tuned copy" in at.error[0].value.replace("\\", "")
    at.text_input(key="fine_tuned_copy").set_value(str(tmp_path / "tuned"))
    at.button(key="fine_tuned_start").click().run()
    assert not at.exception
    assert not at.error
    assert (at.session_state["run"], at.session_state["compare"]) == (NAME, "model tuned")
    text = shown(at)
    assert f"A is {NAME}, B is model tuned. Different: " in text
    assert "If B was fine-tuned from A: After fine-tuning " in text
    assert [metric.label for metric in at.metric] == ["Identical choices", "Identical first choices"]
    at.segmented_control(key="compare_kind").select("Two precisions").run()
    at.button(key="precisions_start").click().run()
    ended(at)
    assert f"A is {NAME} in float32, B is {NAME} in bfloat16" in shown(at)
    at.button(key="report_button").click().run()
    assert not at.exception
    assert f"The report on {NAME} holds" in shown(at)
