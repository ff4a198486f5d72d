"""Starting a training from the dashboard: what is refused, with which words, and one that really starts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest
from training_support import write_corpus

from app.components.new_run import PATH, SIZES, UPLOAD, keep_upload
from app.components.page import plain
from app.components.router_choice import balancings
from moe_core.config import load_config
from moe_core.config.router import BALANCING_MEANINGS, BALANCINGS, ROUTER_FACTS, ROUTER_KINDS, RouterKind
from moe_core.data.shards.preparation import prepare_shards
from moe_core.errors import UsageError
from moe_core.runs import RunFolder, list_runs
from moe_core.words import sentence

ENTRY = Path(__file__).resolve().parent.parent / "app" / "streamlit_app.py"
# The quick preset, made tiny by the environment, which a trainer inherits.
TINY = {
    "MODEL__VOCAB_SIZE": 300, "MODEL__DIM": 16, "MODEL__NUM_LAYERS": 1, "MODEL__NUM_HEADS": 1, "MODEL__NUM_KV_HEADS": 1,
    "MODEL__HEAD_DIM": 16, "MODEL__NUM_EXPERTS": 4, "MODEL__EXPERT_HIDDEN_DIM": 16, "MODEL__MAX_SEQ_LEN": 64,
    "DATA__DOCUMENTS": 10, "TRAINING__STEPS": 100000, "TRAINING__BATCH_SIZE": 2, "TRAINING__SEQ_LEN": 16,
    "TRAINING__EVALUATION_INTERVAL": 50, "TRAINING__EVALUATION_TOKENS": 64, "TRAINING__PROBE_TOKENS": 64,
    "TRAINING__THREADS": 1, "TRAINING__TIME_BUDGET_SECONDS": 600,
}  # fmt: skip


@pytest.fixture
def form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The Training page of an empty checkpoints folder."""
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    at = AppTest.from_file(str(ENTRY), default_timeout=240).run()
    return at.switch_page("app_pages/training.py").run()


def start(at: AppTest) -> str:
    """Click, and return the one error shown, without Markdown escapes."""
    at.button(key="start_training").click().run()
    assert not at.exception
    assert len(at.error) == 1
    return str(at.error[0].value).replace("\\", "")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "nul\0", ".hidden"])
def test_bad_names_are_refused_in_one_line(form: AppTest, name: str) -> None:
    form.text_input(key="new_name").set_value(name)
    message = start(form)
    assert "Run name" in message
    assert "is not allowed" in message
    assert list_runs() == []


def test_an_upload_with_a_fault_shows_its_line(form: AppTest) -> None:
    form.get("segmented_control")[0].set_value(UPLOAD).run()
    assert "no file is chosen" in start(form).lower()
    lines = [json.dumps({"text": "a good line"})] * 6 + ['{"text": 7}']
    form.file_uploader(key="new_upload").upload("mine.jsonl", "\n".join(lines).encode()).run()
    assert "line 7" in start(form)
    assert list_runs() == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [("empty.csv", b"", "empty"), ("none.csv", b"a,b\n1,2\n", "Text"), ("bad.txt", b"caf\xe9 " * 50, "UTF-8")],
)
def test_files_without_usable_text_are_refused(form: AppTest, name: str, content: bytes, expected: str) -> None:
    form.get("segmented_control")[0].set_value(UPLOAD).run()
    form.file_uploader(key="new_upload").upload(name, content).run()
    assert expected in start(form)
    assert list_runs() == []


@pytest.mark.parametrize(("path", "expected"), [("", "No path"), ("/no/such/file.txt", "/no/such/file.txt")])
def test_a_path_must_lead_to_text(form: AppTest, path: str, expected: str) -> None:
    form.get("segmented_control")[0].set_value(PATH).run()
    form.text_input(key="new_path").set_value(path)
    assert expected in start(form)


def test_a_prepared_folder_is_text_that_says_what_it_holds(
    form: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tmp_path / "shards"
    prepare_shards([write_corpus(tmp_path / "text.jsonl")], prepared, vocab_size=300)
    started: list[list[str]] = []
    monkeypatch.setattr("moe_core.training.launch.start_training", lambda arguments: started.append([*arguments]))
    form.get("segmented_control")[0].set_value(PATH).run()
    form.text_input(key="new_path").set_value(str(prepared)).run()
    said = "".join(str(caption.value) for caption in form.caption).replace("\\", "")
    assert "in a vocabulary of 300 ids, which the run takes over" in said
    form.button(key="start_training").click().run()
    assert not form.error
    assert started[0][-2:] == ["--data", str(prepared)]
    (prepared / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in start(form)


def test_uploads_are_kept_once_and_never_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path))
    path = keep_upload("../../etc/p a$$wd.TXT", b"text")
    assert path.read_bytes() == b"text"
    assert path.is_relative_to(tmp_path / ".uploads")
    assert path.name == "p-a-wd.txt"
    assert keep_upload("../../etc/p a$$wd.TXT", b"text") == path
    assert list_runs() == []
    with pytest.raises(UsageError, match=r"\.exe"):
        keep_upload("virus.exe", b"")


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_balancing_is_offered_exactly_where_the_configuration_takes_it(kind: RouterKind) -> None:
    offered = balancings(kind)
    for balancing in BALANCINGS:
        overrides = {"model.router.kind": kind, "model.router.balancing": balancing}
        if balancing in offered:
            load_config("quick", environment={}, overrides=overrides)
        else:
            with pytest.raises(UsageError, match="balancing"):
                load_config("quick", environment={}, overrides=overrides)
    usual = load_config("quick", environment={}, overrides={"model.router.kind": kind})
    assert usual.model.router.balances_by == offered[0]


def test_each_choice_of_router_and_balancing_is_explained_in_a_line(form: AppTest) -> None:
    def captions() -> str:
        return "\n".join(str(caption.value) for caption in form.caption).replace("\\", "")

    router = form.selectbox(key="new_router")
    assert len(router.options) == len(ROUTER_KINDS)
    assert sentence(ROUTER_FACTS["softmax"].meaning) in captions()
    assert sentence(BALANCING_MEANINGS["layer"]) in captions()
    form.selectbox(key="new_balancing").select("none").run()
    assert sentence(BALANCING_MEANINGS["none"]) in captions()
    form.selectbox(key="new_router").select("hash").run()
    assert sentence(ROUTER_FACTS["hash"].meaning) in captions()
    assert form.selectbox(key="new_balancing").options == ["none"]
    assert not form.exception


@pytest.mark.slow
def test_a_training_starts_shows_itself_as_live_stops_and_can_be_resumed(
    form: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in TINY.items():
        monkeypatch.setenv(f"MOESCOPE_{key}", str(value))
    form.selectbox(key="new_router").select("sigmoid").run()
    form.selectbox(key="new_balancing").select("layer").run()
    form.text_input(key="new_name").set_value("mine")
    form.button(key="start_training").click().run()
    assert not form.error, form.error[0].value
    assert form.session_state["run"] == "mine"
    run = RunFolder("mine")
    try:
        _wait(lambda: _state(run) == "running" and bool(run.probe_steps()))
        router = run.config().model.router
        assert (router.kind, router.balancing) == ("sigmoid", "layer")
        time.sleep(1.1)  # the list of runs is up to a second old
        form.run()
        assert "Now at step" in "".join(str(part.value) for part in form.markdown)
        form.button(key="stop_training").click().run()
        _wait(lambda: _state(run) == "stopped")
    finally:
        run.request_stop()
    _wait(lambda: not run.is_locked())
    time.sleep(1.1)
    form.run()
    assert "and saved; resume continues from there" in "".join(str(part.value) for part in form.markdown)
    assert form.button(key="resume_training").label == "Resume"


def _state(run: RunFolder) -> str:
    status = run.status() if run.exists() else None
    return status.state if status is not None else ""


def _wait(condition: object, seconds: float = 240.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@given(st.text())
def test_plain_text_has_no_markdown_left(text: str) -> None:
    escaped = plain(text)
    assert escaped.replace("\\", "") == text.replace("\\", "")
    for mark in "*_`[]$:<>#|~":
        assert escaped.count(mark) == escaped.count("\\" + mark)


def test_any_field_can_be_changed_and_what_it_costs_is_said_before_the_start(
    form: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost() -> str:
        return next(text for text in map(str, (c.value for c in form.caption)) if "of memory" in text)

    assert len(form.radio(key="new_preset").options) >= 5
    assert cost().startswith("4 layers of 8 experts, 2 for each token")
    assert "At most 2 min 25 s of training." in cost()
    form.multiselect(key="new_fields").set_value(["model.num_experts", "training.optimizer"]).run()
    form.text_input(key="new_fields_quick_model.num_experts").set_value("6").run()
    form.selectbox(key="new_fields_quick_training.optimizer").select("adamw").run()
    assert cost().startswith("4 layers of 6 experts")
    started: list[list[str]] = []
    monkeypatch.setattr("moe_core.training.launch.start_training", lambda arguments: started.append([*arguments]))
    form.button(key="start_training").click().run()
    assert not form.exception
    assert started[0][-2:] == ["--model.num_experts=6", "--training.optimizer=adamw"]


def test_what_does_not_fit_together_is_refused_before_the_start(form: AppTest) -> None:
    form.multiselect(key="new_fields").set_value(["model.top_k"]).run()
    form.text_input(key="new_fields_quick_model.top_k").set_value("9").run()
    assert "odel.top_k = 9 is more than model.num_experts = 8" in str(form.error[0].value).replace("\\", "")
    assert form.button(key="start_training").disabled


@pytest.mark.parametrize("name", SIZES)
def test_every_size_that_the_form_offers_ends_by_itself(name: str) -> None:
    budget = load_config(name, environment={}).training.time_budget_seconds
    assert budget is not None
    assert budget <= 3600
