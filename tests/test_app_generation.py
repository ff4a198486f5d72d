"""The Generation page: text is written in the background, stops when told, and shows how it was routed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_support import SOON, Open, payload_of, shown, text_of, wait_until
from generation_support import generate
from streamlit.testing.v1 import AppTest

from app import loaders
from moe_core.errors import RunError
from moe_core.inference.job import GenerationJob, arrays_of_job, trace_of_job
from moe_core.inference.sampling import SamplingConfig
from moe_core.runs import RunFolder
from moe_core.runs.checkpoint import LoadedRun, load_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


@pytest.fixture
def page(dashboard: Open, trained_root: Path) -> AppTest:
    return dashboard(trained_root, "generation")


def test_the_page_offers_a_prompt_from_text_the_run_never_saw(page: AppTest) -> None:
    assert page.title[0].value == "Which experts write which words?"
    assert page.text_area(key="generation_prompt").value
    assert page.button(key="generation_write").label == "Write"


def test_an_example_is_written_already_and_ones_own_text_takes_its_place(page: AppTest, trained_root: Path) -> None:
    example = loaders.example_place(RunFolder("tiny", trained_root)).made
    assert example is not None
    wait_until(lambda: not example.is_running)
    page.run()
    assert not page.exception
    text = shown(page)
    assert "An example, written by run tiny, step 40 on from the first words of a held-out text" in text
    assert "at most 120 tokens, temperature 0.8, top-k 50, top-p 0.95, seed 0" in text
    assert "is the first choice of" in text
    assert example.prompt == page.text_area(key="generation_prompt").value
    assert text_of(payload_of(page)) == example.prompt + example.text
    page.slider(key="generation_tokens").set_value(10)
    page.button(key="generation_write").click().run()
    assert "An example" not in shown(page)
    assert page.session_state["generation_job"] is not example


def test_writing_shows_tokens_speed_and_the_routing(page: AppTest) -> None:
    page.slider(key="generation_tokens").set_value(40)
    page.button(key="generation_write").click().run()
    assert not page.exception
    job: GenerationJob = page.session_state["generation_job"]
    wait_until(lambda: not job.is_running)
    page.run()
    assert not page.exception
    text = shown(page)
    assert "finished · 40 of at most 40 tokens" in text
    assert "tokens/s" in text
    assert "is the first choice of" in text
    assert len(page.get("vega_lite_chart")) == 1
    assert "generation_stop" not in [button.key for button in page.main.button]


def test_stop_ends_writing(page: AppTest) -> None:
    page.slider(key="generation_tokens").set_value(1000)
    page.button(key="generation_write").click().run()
    job: GenerationJob = page.session_state["generation_job"]
    page.button(key="generation_stop").click().run()
    wait_until(lambda: not job.is_running)
    assert len(job.written) < 1000
    page.run()
    assert "stopped ·" in shown(page)
    assert not page.exception


def test_writing_again_replaces_the_job(page: AppTest) -> None:
    page.slider(key="generation_tokens").set_value(1000)
    page.button(key="generation_write").click().run()
    first: GenerationJob = page.session_state["generation_job"]
    page.button(key="generation_write").click().run()
    second: GenerationJob = page.session_state["generation_job"]
    assert second is not first
    wait_until(lambda: not first.is_running)
    second.stop()
    second.wait(SOON)


def test_a_pasted_megabyte_as_prompt_is_cut_and_the_limit_is_said(page: AppTest) -> None:
    page.slider(key="generation_tokens").set_value(10)
    page.text_area(key="generation_prompt").set_value("The quick brown fox. " * 50_000)
    page.button(key="generation_write").click().run()
    job: GenerationJob = page.session_state["generation_job"]
    wait_until(lambda: not job.is_running)
    page.run()
    assert not page.exception
    assert len(job.loaded.tokenizer.encode(job.prompt)) <= 500
    assert "Only the first 500 tokens" in shown(page)


def test_a_job_writes_what_generate_writes(loaded: LoadedRun) -> None:
    sampling = SamplingConfig(max_new_tokens=12, seed=3)
    job = GenerationJob(loaded, "The court", sampling)
    job.wait(SOON)
    expected = list(generate(loaded, "The court", sampling))
    assert [token.token_id for token in job.written] == [token.token_id for token in expected]
    assert job.text == "".join(token.text for token in expected)
    assert not job.is_running
    assert job.tokens_per_second is not None
    assert job.seconds > 0
    job.raise_error()


def test_prompt_tokens_have_no_expert_and_written_ones_have(loaded: LoadedRun) -> None:
    job = GenerationJob(loaded, "ab", SamplingConfig(max_new_tokens=5, temperature=0))
    job.wait(SOON)
    arrays = arrays_of_job(job)
    before = len(loaded.tokenizer.encode("ab"))
    assert b"".join(token or b"" for token in arrays.tokens[:before]) == b"ab"
    assert (arrays.indices[:, :before] == -1).all()
    assert (arrays.indices[:, before:] >= 0).all()
    assert arrays.losses is not None
    assert np.isnan(arrays.losses[:before]).all()
    trace = trace_of_job(job)
    assert trace is not None
    assert trace.num_tokens == len(job.written)
    assert (trace.router_indices == arrays.indices[:, before:]).all()


def test_before_the_first_token_there_is_nothing_to_show_but_the_prompt(loaded: LoadedRun) -> None:
    job = GenerationJob(loaded, "ab", SamplingConfig(max_new_tokens=1))
    job.wait(SOON)
    job.written.clear()
    assert trace_of_job(job) is None
    assert job.tokens_per_second is None
    assert arrays_of_job(job).indices.shape[1] == len(loaded.tokenizer.encode("ab"))


def test_an_error_in_the_background_reaches_the_reader(trained_root: Path) -> None:
    import torch

    broken = load_run("tiny", trained_root)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    job = GenerationJob(broken, "ab", SamplingConfig(max_new_tokens=5))
    job.wait(SOON)
    with pytest.raises(RunError, match="not finite"):
        job.raise_error()


def test_reruns_do_not_collect_all_garbage() -> None:
    """With it, each rerun of the live text held up the writing thread: 2 instead of 80 tokens a second."""
    assert "postScriptGC = false" in (ROOT / "app" / ".streamlit" / "config.toml").read_text(encoding="utf-8")
