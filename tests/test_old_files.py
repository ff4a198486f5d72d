"""What the former tree wrote opens as before: one fixture of each kind, see tests/fixtures/old/README.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from app_support import Open, shown

from moe_core.experiments.comparison_result import read_result
from moe_core.experiments.library import find_results
from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.trace.trace import StoredTrace
from moe_core.runs.analysis import read_ablation_map, read_table
from moe_core.runs.checkpoint import load_run, load_trainer_state
from moe_core.runs.folder import RunFolder
from moe_core.runs.listing import list_runs

OLD = Path(__file__).resolve().parent / "fixtures" / "old"
TRACE = OLD / "trace.parquet"
STEP = 35
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old checkpoints folder, and the working folder that its run names its text from."""
    shutil.copytree(OLD / "runs", tmp_path / "runs")
    shutil.copy(OLD / "corpus.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_an_old_run_is_listed_and_loaded(root: Path) -> None:
    (summary,) = list_runs(root)
    assert (summary.name, summary.state, summary.step, summary.steps) == ("old", "stopped", STEP, 40)
    loaded = load_run("old", root)
    assert loaded.step == STEP
    assert loaded.run.domains() == ("code", "law", "news")
    logits = loaded.model(torch.tensor([loaded.tokenizer.encode("The party shall pay.")])).logits
    assert torch.isfinite(logits).all()
    assert load_trainer_state(loaded.run)[1]["step"] == STEP


def test_metrics_and_probes_of_an_old_run_are_read(root: Path) -> None:
    run = RunFolder("old", root)
    assert run.metrics("train")["step"].max() == STEP
    assert run.metrics("evaluation")["nats_per_token"].gt(0).all()
    assert run.probe_steps() == [0, 20]
    for step in run.probe_steps():
        assert set(metrics.load_balance(RoutingTrace.load(run.probe_path(step)))["layer"]) == {0, 1}


def test_an_old_run_goes_on(root: Path, cli: Run) -> None:
    code, out, err = cli(root, "--run", "old", "--resume")
    assert code == 0, err
    assert "40" in out
    run = RunFolder("old", root)
    assert load_run("old", root).step == 40
    steps = run.metrics("train")["step"].tolist()
    assert steps == sorted(set(steps)), "the old lines are kept and none is written twice"
    assert steps[-1] == 40


def test_an_old_run_is_evaluated_as_before(root: Path, cli: Run) -> None:
    before = json.loads((OLD / "runs" / "old" / "evaluation.json").read_text())
    code, out, err = cli(root, "--evaluate", "--run", "old", "--json")
    assert code == 0, err
    after = json.loads(out)
    assert before.keys() <= after.keys()
    assert after["unseen"]["nats_per_token"] == pytest.approx(before["unseen"]["nats_per_token"], rel=2e-2)


def test_what_an_old_ablation_found_is_read(root: Path) -> None:
    run = RunFolder("old", root)
    effects = read_ablation_map(run)
    assert effects is not None
    assert len(effects[["layer", "expert"]].drop_duplicates()) == 8
    for name in ("saliency", "similarity", "importance", "correlations"):
        table = read_table(run, name)
        assert table is not None, name
        assert len(table)


def test_an_old_trace_opens_in_memory_and_on_disk() -> None:
    trace, stored = RoutingTrace.load(TRACE), StoredTrace.open(TRACE)
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (2, 4, 2)
    assert trace.num_tokens == stored.num_tokens == trace.router_indices.shape[1]
    assert trace.layers == stored.layers
    assert metrics.load_balance(trace).equals(metrics.load_balance(stored))


def test_an_old_comparison_is_found_and_read() -> None:
    assert "dense-synthetic-smoke" in find_results([OLD])
    result = read_result(OLD / "dense-synthetic-smoke.json")
    assert result.kind == "dense"
    assert len(result.arms) == 3
    assert result.to_bytes() == (OLD / "dense-synthetic-smoke.json").read_bytes()


def test_the_dashboard_opens_an_old_run(root: Path, dashboard: Open) -> None:
    at = dashboard(root)
    assert at.title[0].value.startswith("What is old")
    assert "2 MoE layers of 4 experts" in shown(at)
    assert "Stopped at step 35 of 40" in shown(dashboard(root, "training"))
    for page in ("domains", "experts", "interventions", "time"):
        at = dashboard(root, page)
        assert not at.exception
        older = any("Measured by an older rule" in caption.value for caption in at.caption)
        assert older == (page in ("experts", "interventions")), "what ablate found before has the rule of its time"


def test_the_dashboard_opens_an_old_trace(root: Path, dashboard: Open) -> None:
    at = dashboard(root, arguments=("--trace", str(TRACE)))
    assert "trace" in at.title[0].value
    assert not at.exception


@pytest.mark.slow
def test_an_old_run_is_plotted_and_reported(root: Path, cli: Run, tmp_path: Path) -> None:
    code, _, err = cli(root, "plots", "--run", "old", "--out", str(tmp_path / "plots"), "--format", "csv")
    assert code == 0, err
    code, _, err = cli(root, "report", "--run", "old", "--out", str(tmp_path / "report.html"))
    assert code == 0, err
    html = (tmp_path / "report.html").read_text()
    assert "token_accuracy" in html or "next token" in html.lower(), "the old suite.json is part of it"
