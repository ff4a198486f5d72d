"""A model without any MoE layer trains, is scored, writes and is refused in one line where routing is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from generation_support import generate
from streamlit.testing.v1 import AppTest
from training_support import make_config, tensor_hashes, timeless_metrics, write_corpus

from main import main
from moe_core.evaluation.evaluate import evaluate_run
from moe_core.inference.sampling import SamplingConfig
from moe_core.reports.run_report import write_report
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train

ENTRY = Path(__file__).resolve().parent.parent / "app" / "streamlit_app.py"


@pytest.fixture(scope="module")
def dense_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs "dense" and "again", trained alike, the second one in two sessions."""
    root = tmp_path_factory.mktemp("dense")
    config = make_config(write_corpus(root / "texts.jsonl"), model__first_dense_layers=2)
    assert config.model.moe_layers == ()
    train(RunFolder("dense", root), config)
    stops = iter([False] * 12)
    train(RunFolder("again", root), config, stop=lambda: next(stops, True))
    train(RunFolder("again", root), config, resume=True)
    return root


def test_a_dense_model_learns_and_resumes_to_the_bit(dense_root: Path) -> None:
    run, again = RunFolder("dense", dense_root), RunFolder("again", dense_root)
    nats = [record["nats_per_token"] for record in run.metric_records("evaluation") if record["split"] == "unseen"]
    assert nats[-1] < nats[0]
    assert run.probe_steps() == []
    assert tensor_hashes(run) == tensor_hashes(again)
    assert timeless_metrics(run)[-1] == timeless_metrics(again)[-1]


def test_a_dense_model_is_scored_without_routing(dense_root: Path) -> None:
    loaded = load_run("dense", dense_root)
    evaluation = evaluate_run(loaded)
    assert evaluation.routing == ()
    assert evaluation.parameters.total == evaluation.parameters.active
    assert evaluation.parameters.total == sum(weight.numel() for weight in loaded.model.parameters())
    assert "Dense, without experts; " in write_report(loaded.run, evaluation).read_text()


def test_a_dense_model_writes(dense_root: Path) -> None:
    tokens = list(generate(load_run("dense", dense_root), "The", SamplingConfig(max_new_tokens=5, temperature=0)))
    assert all(token.experts.shape == (0, 2) for token in tokens)


def test_what_needs_routing_is_refused_in_one_line(
    dense_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(dense_root))
    for arguments, words in (
        (["ablate"], "is dense; expected a model with experts"),
        (["export", "--to", str(tmp_path / "hf")], "the model is dense: it has no MoE layer to export"),
        (["trace", "--text", "The", "--out", str(tmp_path / "x.parquet")], "has no router"),
    ):
        assert main([arguments[0], "--run", "dense", *arguments[1:]]) != 0
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in line
    assert main(["plots", "--run", "dense", "--out", str(tmp_path / "plots"), "--format", "csv"]) == 0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["loss.csv"]


@pytest.mark.parametrize("page", ["overview", "tokens", "training"])
def test_pages_say_that_there_is_no_routing(dense_root: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(dense_root))
    at = AppTest.from_file(str(ENTRY), default_timeout=240)
    at.query_params["run"] = "dense"
    at.run()
    at.switch_page(f"app_pages/{page}.py").run()
    assert not at.exception
    assert not at.error
    text = "\n".join(str(part.value) for part in [*at.main.markdown, *at.main.caption])
    assert ("no experts" in text) == (page != "training")
