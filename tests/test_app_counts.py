"""The dashboard opened on counts and on recordings, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from app_support import Open, shown
from streamlit.testing.v1 import AppTest

from moe_core.errors import TraceError
from moe_core.inference.subjects import Registry
from moe_core.routing import RoutingCounts, metrics
from moe_core.routing.measured import Measured

pytestmark = pytest.mark.usefixtures("dashboard")  # closes what was opened, also without a page


def small_counts() -> RoutingCounts:
    """Layers 1 and 3 of 6 experts, 2 for each of 400 tokens at 2 steps."""
    counts = np.random.default_rng(0).multinomial(400, [1 / 6] * 6, size=(2, 2))
    return RoutingCounts.from_arrays(counts, top_k=2, layers=[1, 3], steps=[10, 20], source="an engine elsewhere")


@pytest.fixture(scope="module")
def counts_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counts") / "engine.counts.parquet"
    small_counts().save(path)
    return path


@pytest.fixture(scope="module")
def recording_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An answer of a server with the experts of 12 tokens in 2 layers."""
    path = tmp_path_factory.mktemp("recordings") / "answers.jsonl"
    experts = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(8), (12, 2, 8)), axis=2)[:, :, :2]
    answer = {"prompt_token_ids": list(range(13)), "routed_experts": experts.tolist()}
    path.write_text("".join(json.dumps(answer) + "\n" for _ in range(3)), encoding="utf-8")
    return path


@pytest.fixture
def opened(dashboard: Open, tmp_path: Path) -> Open:
    """The dashboard started with `-- --trace ...`, without a run, at a page."""

    def open_page(*arguments: str, page: str = "overview", **query: str) -> AppTest:
        return dashboard(tmp_path, page, arguments, **query)

    return open_page


def test_counts_open_without_a_run_and_are_described(counts_path: Path, opened: Open) -> None:
    at = opened("--trace", str(counts_path))
    assert at.title[0].value.replace("\\", "").startswith("What are counts engine.counts.parquet")
    assert at.session_state["layer"] == 3
    assert "400 tokens at 2 steps, from an engine elsewhere" in at.sidebar.caption[0].value.replace("\\", "")


def test_a_recording_opens_as_its_trace(recording_path: Path, opened: Open) -> None:
    at = opened("--trace", str(recording_path))
    assert not at.error, [error.value for error in at.error]
    assert at.title[0].value.replace("\\", "").startswith("What is trace answers.jsonl")
    assert "36 tokens of 3 documents" in shown(at)


def test_the_subject_of_a_recording_knows_what_it_was_made_of(recording_path: Path, counts_path: Path) -> None:
    registry = Registry()
    trace, counts = registry.open_file(recording_path), registry.open_file(counts_path)
    assert (trace.holds, counts.holds) == ("tokens", "counts")
    assert trace.opened == recording_path.resolve() != trace.path
    assert counts.opened == counts.path
    assert registry.open_file(recording_path) == trace
    assert len(registry.all()) == 2


def test_measured_counts_have_no_tokens_but_every_measure_of_counts(counts_path: Path) -> None:
    counts = RoutingCounts.load(counts_path)
    measured = Measured(counts)
    assert not measured.is_sampled
    assert measured.get(metrics.expert_load)["layer"].unique().tolist() == [1, 3]
    with pytest.raises(TraceError, match="without single tokens"):
        _ = measured.tokens
    with pytest.raises(TraceError, match="without single tokens"):
        measured.look(lambda tokens: tokens.num_tokens)
    part = measured.part([3])
    assert part is measured.part([3])
    assert part.trace.layers == [3]
    whole = metrics.expert_load(counts)
    assert part.get(metrics.expert_load).equals(whole[whole["layer"] == 3].reset_index(drop=True))
    assert measured.part([1, 3]) is measured
