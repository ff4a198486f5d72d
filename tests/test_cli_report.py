"""`main.py report` and `main.py plots` on a really trained tiny run: what they write, say and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import Run

from moe_core.evaluation.evaluate import evaluate_run
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder


@pytest.mark.slow
def test_a_report_holds_training_routing_and_what_ablate_found(cli: Run, own_root: Path, tmp_path: Path) -> None:
    run = RunFolder("tiny", own_root)
    run.write_evaluation(evaluate_run(load_run("tiny", own_root)))
    assert cli(own_root, "ablate", "--run", "tiny")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    target = tmp_path / "new" / "report.html"
    code, out, err = cli(own_root, "report", "--run", "tiny", "--out", str(target), "--json", str(tmp_path / "r.json"))
    assert (code, "error" in err) == (0, False)
    figures = json.loads((tmp_path / "r.json").read_text())
    page = target.read_text(encoding="utf-8")
    assert figures["bytes"] == target.stat().st_size
    names = {figure["name"] for section in figures["sections"] for figure in section["figures"]}
    assert {"loss", "expert_load_map", "domain_nmi", "coactivation_layer_1", "flow_sankey", "flow_map_layer_0"} <= names
    assert {"persistence", "saturation", "expert_load_over_time_layer_0"} <= names
    assert {"ablation_map", "ablation_domains_layer_0", "importance", "similarity_output_cka_layer_1"} <= names
    assert figures["routing_of"].endswith("held-out documents (run tiny, step 40)")
    assert "nats a token on unseen text; guessing by token frequency" in page
    assert f"{len(names)} pictures" in out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before, "the run is only read"


def test_without_a_checkpoint_or_a_score_it_says_so_and_shows_the_probe(
    cli: Run, own_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_root / "tiny" / "weights")
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli(own_root, "report", "--run", "tiny", "--json", "r.json")
    assert code == 0
    assert "out/report-tiny.html: open it in any browser" in out
    routing_of = json.loads((tmp_path / "r.json").read_text())["routing_of"]
    assert routing_of.startswith("the probe text at step 40, as the newest checkpoint cannot be used: ")
    page = (tmp_path / "out" / "report-tiny.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "not scored yet" in page
    shutil.rmtree(own_root / "tiny" / "probes")
    code, _, err = cli(own_root, "report", "--run", "tiny")
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_report_of_a_trace_holds_what_its_routing_tells(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    trace, target = RunFolder("tiny", trained_root).probe_path(40), tmp_path / "report.html"
    code, out, _ = cli(trained_root, "report", "--trace", str(trace), "--out", str(target), "--json")
    assert code == 0
    page, figures = target.read_text(encoding="utf-8"), json.loads(out)
    assert (figures["trace"], figures["bytes"]) == (str(trace), target.stat().st_size)
    assert f"<h1>Trace {trace.name}</h1>" in page
    assert "run tiny, step 40" in page
    assert "Is the work shared evenly among the experts?" in page
    assert "The whole configuration" not in page
    assert "report --trace FILE" in page


def test_what_cannot_be_written_or_read_is_refused_in_one_line(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("--run", "nope"), "no run 'nope'"),
        (("--run", "tiny", "--out", str(tmp_path)), "is not a file name"),
        (("--run", "tiny", "--out", "/dev/null"), "device or pipe"),
        (("--run", "../tiny"), "../tiny"),
        ((), "--run"),
        (("--run", "tiny", "--trace", "x.parquet"), "not allowed with"),
        (("--trace", str(tmp_path / "none.parquet")), "none.parquet"),
    ):
        code, out, err = cli(trained_root, "report", *arguments)
        assert code in (1, 2)
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert words in err


@pytest.mark.slow
def test_plots_write_what_a_figure_can_be(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    code, out, _ = cli(trained_root, "plots", "--run", "tiny", "--out", str(tmp_path), "--format", "csv",
                       "--format", "html", "--json")  # fmt: skip
    assert code == 0
    written = json.loads(out)["figures"]
    assert {tuple(Path(name).suffix for name in figure["files"]) for figure in written} == {(".csv", ".html")}
    assert len(list(tmp_path.iterdir())) == 2 * len(written)
    assert "Plotly.newPlot(" in (tmp_path / "flow_sankey.html").read_text(encoding="utf-8")
