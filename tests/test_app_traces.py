"""The dashboard opened on a trace in a file, without a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_support import ENTRY, SOON, Open, in_box, payload_of, shown, text_of
from streamlit.testing.v1 import AppTest

from app.components.open_other import open_path
from app.components.trace_text import document_titles
from moe_core.errors import TraceError, UsageError
from moe_core.files import private_folder
from moe_core.inference import subjects
from moe_core.inference.command_line_subjects import Named, open_from_command_line
from moe_core.inference.kept_files import Said
from moe_core.inference.opening_job import OpeningJob
from moe_core.inference.subjects import OPENED, Registry
from moe_core.inference.uploaded import Upload, open_uploads
from moe_core.routing import RoutingTrace
from moe_core.routing.measured import Measured

pytestmark = pytest.mark.usefixtures("dashboard")  # closes what was opened, also without a page
PAGES = ("overview", "tokens", "domains", "experts", "flow", "compare")
HOSTILE = "<img src=x onerror=alert(1)> :red[x] $x$"
WORDS = ["the ", "court ", "return ", "x", "\n", HOSTILE]


def small_trace(seed: int = 0, documents: int = 24, source: str = "model elsewhere") -> RoutingTrace:
    """Layers 1 and 3 of 6 experts, 2 for each token; in layer 3 experts 0 to 2 take legal text, the others code."""
    rng = np.random.default_rng(seed)
    document_ids = np.repeat(np.arange(documents), 40)
    domain_ids = document_ids % 2
    first = np.stack([rng.integers(0, 3, document_ids.size), rng.integers(0, 3, document_ids.size) + 3 * domain_ids])
    second = (first + 1 + rng.integers(0, 4, first.shape)) % 6
    return RoutingTrace.from_arrays(
        router_indices=np.stack([first, second], axis=2), router_scores=np.full((2, document_ids.size, 2), (0.6, 0.4)),
        num_experts=6, token_ids=rng.integers(0, len(WORDS), document_ids.size), document_ids=document_ids,
        domain_ids=domain_ids, domains=["legal", "code"], layers=[1, 3], source=source,
        vocabulary=dict(enumerate(WORDS)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "recorded.parquet"
    small_trace().save(path)
    return path


@pytest.fixture
def opened(dashboard: Open, tmp_path: Path) -> Open:
    """The dashboard started with `-- --trace ...`, without a run, at a page."""

    def open_page(*arguments: str, page: str = "overview", root: Path | None = None, **query: str) -> AppTest:
        return dashboard(root or tmp_path, page, arguments, **query)

    return open_page


def test_a_trace_opens_without_a_run_and_is_described(trace_path: Path, opened: Open) -> None:
    at = opened("--trace", str(trace_path))
    assert at.title[0].value.replace("\\", "") == "What is trace recorded.parquet, and is its routing healthy?"
    text = shown(at)
    assert "2 MoE layers of 6 experts, 2 for each token" in text
    assert "960 tokens of 24 documents: what the trace holds, of model elsewhere" in text
    assert at.metric[0].label == "Tokens"
    assert at.session_state["layer"] == 3
    links = [getattr(link, "label", "") for link in at.main.get("page_link")]
    assert "Which experts write which words?" not in links
    assert "Where does each token of my text go?" in links
    assert not at.error


def test_a_trace_opens_at_the_layer_its_verdict_calls_strongest(
    own_root: Path, trace_path: Path, tmp_path: Path, opened: Open
) -> None:
    trace = small_trace()
    swapped = {name: np.ascontiguousarray(getattr(trace, name)[::-1]) for name in ("router_indices", "router_scores")}
    path = tmp_path / "first_layer.parquet"
    replace(trace, **swapped).save(path)
    at = opened("--trace", str(path))
    assert "layer 1 most" in shown(at)
    assert at.session_state["layer"] == 1
    assert opened("--trace", str(path), layer="3").session_state["layer"] == 3  # a link says which

    at = opened("--trace", str(path), root=own_root, run="tiny", layer="0")
    assert at.session_state["layer"] == 0
    at.selectbox(key="run").select("trace first_layer.parquet").run()
    assert at.session_state["layer"] == 1
    at.segmented_control(key="layer").set_value(3).run()
    at.switch_page("app_pages/domains.py").run()
    assert at.session_state["layer"] == 3
    at.selectbox(key="run").select("tiny").run()
    at.selectbox(key="run").select("trace first_layer.parquet").run()
    assert at.session_state["layer"] == 1  # tiny has a layer 1 too: not its is shown, but the strongest
    OPENED.open_file(trace_path)
    at.run()
    at.selectbox(key="run").select("trace recorded.parquet").run()
    assert at.session_state["layer"] == 3


@pytest.mark.parametrize("page", PAGES)
def test_every_page_that_needs_no_model_shows_the_trace(trace_path: Path, opened: Open, page: str) -> None:
    at = opened("--trace", str(trace_path), page=page)
    assert not at.error, [error.value for error in at.error]
    assert len(at.main.get("vega_lite_chart")) + len(at.main.get("plotly_chart")) >= 1


@pytest.mark.parametrize("page", ["generation", "chat", "interventions", "time"])
def test_the_others_say_in_one_sentence_what_they_need(trace_path: Path, opened: Open, page: str) -> None:
    at = opened("--trace", str(trace_path), page=page)
    assert "A trace keeps where tokens went and nothing else" in shown(at)
    assert not at.error
    assert len(at.main.get("page_link")) == 2


def test_the_training_page_opens_as_ever(trace_path: Path, opened: Open) -> None:
    at = opened("--trace", str(trace_path), page="training")
    assert at.button(key="start_training").label == "Start training"


def test_domains_finds_what_is_planted_in_layer_3(trace_path: Path, opened: Open) -> None:
    at = opened("--trace", str(trace_path), page="domains")
    table = at.dataframe[0].value
    assert table["p_adjusted"].tolist()[1] < 0.05 < table["p_adjusted"].tolist()[0]


def test_tokens_shows_a_chosen_document_as_text(trace_path: Path, opened: Open) -> None:
    at = opened("--trace", str(trace_path), page="tokens")
    assert payload_of(at)["count"] == 80  # one document of each domain
    titles = document_titles(small_trace())
    assert len(titles) == 24
    assert titles[5].startswith("5 · ")
    at.selectbox(key="trace_document").select(5).run()
    assert at.query_params["document"] == "5", "the number alone: no text stands in the URL"
    payload = payload_of(at)
    trace = small_trace().select(small_trace().document_ids == 5)
    expected = "".join(trace.token_text(i) for i in range(40))
    assert text_of(payload) == expected
    assert payload["layers"] == [1, 3]
    assert (payload["selected"], payload["link_from"]) == (None, 0)


@pytest.mark.parametrize(
    ("link", "count", "selected"),
    [
        ({"document": "5", "token": "7"}, 40, 7),
        ({"document": "5 · code · first words", "token": "39"}, 40, 39),  # as links were written before
        ({"document": "5", "token": "40"}, 40, None),
        ({"document": "99", "token": "1"}, 80, None),
        ({"token": "1"}, 80, None),
        ({"document": "<img>", "token": "-1"}, 80, None),
    ],
)
def test_a_link_opens_a_document_at_a_token(
    trace_path: Path, opened: Open, link: dict[str, str], count: int, selected: int | None
) -> None:
    at = opened("--trace", str(trace_path), page="tokens")
    for key, value in link.items():
        at.query_params[key] = value
    payload = payload_of(at.run())
    assert (payload["count"], payload["selected"]) == (count, selected)


def test_two_traces_are_compared_and_a_model_is_told_by_its_source(
    tmp_path: Path, trace_path: Path, opened: Open
) -> None:
    other = tmp_path / "later.parquet"
    small_trace(seed=1, source="another model").save(other)
    at = opened("--trace", str(trace_path), "--trace", str(other), page="compare")
    assert at.segmented_control(key="compare_kind").value == "Two texts"
    at.selectbox(key="compare").select("trace later.parquet").run()
    at.segmented_control(key="compare_kind").select("Runs, steps or traces").run()
    assert not at.exception
    assert not at.error
    assert "Experts of separately trained models have nothing in common" in at.info[0].value


def test_a_trace_and_a_run_are_both_offered(trace_path: Path, trained_root: Path, opened: Open) -> None:
    at = opened("--trace", str(trace_path), root=trained_root)
    assert at.selectbox(key="run").options == ["trace recorded.parquet", "tiny"]
    at.selectbox(key="run").select("tiny").run()
    assert at.title[0].value == "What is tiny, and is its routing healthy?"
    assert at.session_state["layer"] in (0, 1)
    at.selectbox(key="run").select("trace recorded.parquet").run()
    at.button(key="close_opened").click().run()
    assert at.selectbox(key="run").options == ["tiny"]
    assert at.title[0].value == "What is tiny, and is its routing healthy?"


def test_close_goes_back_to_the_run_that_was_shown_before(own_root: Path, trace_path: Path, opened: Open) -> None:
    for name in ("other", "third"):
        shutil.copytree(own_root / "tiny", own_root / name)
    at = opened("--trace", str(trace_path), root=own_root)
    first = next(name for name in at.selectbox(key="run").options if " " not in name)
    came_from = "tiny" if first != "tiny" else "other"  # not the one that is chosen where nothing is said
    at.selectbox(key="run").select(first).run()
    at.selectbox(key="run").select(came_from).run()
    at.selectbox(key="run").select("trace recorded.parquet").run()
    at.button(key="close_opened").click().run()
    assert at.session_state["run"] == came_from
    assert not at.sidebar.warning  # whoever closes it knows that it is closed


def test_a_link_to_a_trace_that_is_not_open_says_so(trained_root: Path, opened: Open) -> None:
    at = opened(root=trained_root, run="trace gone.parquet")
    assert "is not open any more" in at.sidebar.warning[0].value
    assert at.title[0].value == "What is tiny, and is its routing healthy?"


def test_the_path_field_opens_a_trace_and_names_what_is_none(trace_path: Path, tmp_path: Path, opened: Open) -> None:
    at = opened()
    for wrong, said in (("", "No path is given"), (str(tmp_path), "folder"), (str(ENTRY), "streamlit_app.py")):
        at.text_input(key=in_box(at, "open_path")).set_value(wrong)
        at.button(key="open_button").click().run()
        assert said in at.sidebar.error[0].value.replace("\\", "")
        assert "\n" not in at.sidebar.error[0].value
    at.text_input(key=in_box(at, "open_path")).set_value(str(trace_path))
    at.button(key="open_button").click().run()
    assert at.title[0].value.replace("\\", "").startswith("What is trace recorded.parquet")


def test_an_upload_is_kept_under_its_content_and_shown_by_its_name(trace_path: Path) -> None:
    content = trace_path.read_bytes()

    def opened(name: str, content: bytes) -> OpeningJob:
        job = open_uploads(OPENED, [Upload(name, content)], Said())
        assert job.wait(SOON)
        return job

    first = opened("../../etc/mine.parquet", content).result
    assert first is not None
    assert first.name == "trace mine.parquet"
    assert first.path.parent == private_folder("converted")
    assert first.path.read_bytes() == content
    assert opened("mine.parquet", content).result == first
    broken = opened("broken <img>.parquet", content[:100]).error
    assert isinstance(broken, TraceError)
    assert "broken _img_.parquet' is no readable Parquet file" in str(broken)
    with pytest.raises(UsageError, match="null byte"):
        open_path("a\0b", Said())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--frace", "x"], "--frace"), (["--trace"], "--trace"), (["--trace", "/nowhere.parquet"], "/nowhere.parquet")],
)
def test_wrong_arguments_are_named_and_the_rest_still_works(opened: Open, arguments: list[str], said: str) -> None:
    at = opened(*arguments)
    assert said in at.sidebar.error[0].value.replace("\\", "")
    assert "There is no run yet" in shown(at)


def test_arguments_of_another_program_are_left_alone() -> None:
    assert open_from_command_line(["pytest", "--trace"]) == Named()


def test_names_are_unique_and_the_oldest_goes(tmp_path: Path, trace_path: Path) -> None:
    registry, content = Registry(), trace_path.read_bytes()
    paths: list[Any] = []
    for number in range(subjects.MAX_OPENED + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(folder / "same.parquet")
        paths[-1].write_bytes(content)
        registry.open_file(paths[-1])
    names = [one.name for one in registry.all()]
    assert len(set(names)) == subjects.MAX_OPENED
    assert "trace same.parquet" not in names
    assert names[0] == f"trace same.parquet ({subjects.MAX_OPENED + 1})"


def test_a_trace_on_disk_gives_the_same_answers_as_in_memory(trace_path: Path) -> None:
    from moe_core.routing import metrics

    stored, whole = Measured(RoutingTrace.open(trace_path)), Measured(RoutingTrace.load(trace_path))
    assert stored.get(metrics.expert_load).equals(whole.get(metrics.expert_load))
    assert stored.part([1, 3]) is stored
    assert stored.part([3]).trace.layers == [3]
    assert not stored.is_sampled


def test_a_trace_larger_than_memory_is_counted_on_disk(
    opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from moe_core.routing import measured
    from moe_core.routing.trace import trace as trace_file

    large = tmp_path / "large.parquet"
    small_trace(seed=2, documents=60).save(large)
    monkeypatch.setattr(trace_file, "MAX_IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(measured, "SAMPLE_TOKENS", 1200)
    at = opened("--trace", str(large))
    for page in PAGES:
        at.switch_page(f"app_pages/{page}.py").run()
        assert not at.exception
        assert not at.error, (page, [error.value for error in at.error])
        if page in ("overview", "domains", "experts", "flow"):
            assert "2,400 tokens, counted all" in shown(at)
            assert "1,200 tokens of 30 documents" in shown(at)
