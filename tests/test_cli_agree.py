"""`agree` from the command line: files, snapshots, a model read twice or against a recording; what is refused."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_support import Run, assert_one_line
from huggingface_support import saved_model

from moe_core.routing import RoutingTrace
from moe_core.routing.measures.agreement import routing_agreement
from moe_core.runs import RunFolder
from moe_core.runs.places import SHIPPED

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra low-precision")


@pytest.fixture(scope="module")
def probe(trained_root: Path) -> RoutingTrace:
    run = RunFolder("tiny", trained_root)
    return RoutingTrace.load(run.probe_path(run.probe_steps()[-1]))


def test_two_snapshots_of_a_run(cli: Run, trained_root: Path, probe: RoutingTrace, tmp_path: Path) -> None:
    pictures = ["--out", str(tmp_path / "plots"), "--format", "svg", "--format", "csv"]
    code, out, err = cli(trained_root, "agree", "tiny@20", "tiny@40", "--json", "-", *pictures)
    assert code == 0
    found = json.loads(out)
    names = [name for figure in found["figures"] for name in figure["files"]]
    assert names == ["agreement.svg", "agreement.csv", "flip_margins.svg", "flip_margins.csv"]
    assert "identical choices" in (tmp_path / "plots" / "agreement.svg").read_text()
    run = RunFolder("tiny", trained_root)
    expected = routing_agreement(RoutingTrace.load(run.probe_path(20)), probe)
    assert found["agreement"]["all_choices"]["value"] == pytest.approx(expected.all_choices.value)
    assert [one["layer"] for one in found["agreement"]["layers"]] == list(probe.layers)
    assert found["margins"]["experts"]["basis"] == "last weight"
    assert found["documents"] > 1
    assert set(found["verdicts"]) == {"agreement", "margins", "accumulation"}
    assert "closer than others" in err  # the words go elsewhere where JSON alone is asked for


def test_files_that_are_the_same_and_files_that_are_not(
    cli: Run, trained_root: Path, probe: RoutingTrace, tmp_path: Path
) -> None:
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("a", "longer", "layers", "experts", "counts")}
    probe.save(paths["a"])
    code, out, _ = cli(trained_root, "agree", paths["a"], paths["a"])
    assert code == 0
    assert "Identical: all " in out
    assert "No token goes to other experts" in out
    replace(probe, token_ids=probe.token_ids[::-1].copy()).save(paths["longer"])
    code, _, err = cli(trained_root, "agree", paths["a"], paths["longer"])
    assert code == 1
    assert_one_line(err, "different tokens, first at token ", "expected traces of the same text")
    replace(probe, layers=[layer + 5 for layer in probe.layers]).save(paths["layers"])
    _, _, err = cli(trained_root, "agree", paths["a"], paths["layers"])
    assert_one_line(err, "have layers [0, 1] and [5, 6]")
    replace(probe, num_experts=6).save(paths["experts"])
    _, _, err = cli(trained_root, "agree", paths["a"], paths["experts"])
    assert_one_line(err, "have 4 and 6 experts")
    probe.counts().save(paths["counts"])
    _, _, err = cli(trained_root, "agree", paths["a"], paths["counts"])
    assert_one_line(err, "holds counts, without single tokens")


def test_two_runs_read_the_text_of_the_first_and_experts_may_be_matched(
    cli: Run, trained_root: Path, probe: RoutingTrace, tmp_path: Path
) -> None:
    code, out, _ = cli(trained_root, "agree", "tiny", "tiny")
    assert code == 0
    assert "Identical: all " in out
    turned = replace(probe, router_indices=((probe.router_indices + 1) % probe.num_experts).astype(np.int16))
    for name, trace in (("a", probe), ("b", turned)):
        trace.save(tmp_path / f"{name}.parquet")
    paths = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    assert "Identical" not in cli(trained_root, "agree", *paths)[1]
    assert "Identical: all " in cli(trained_root, "agree", *paths, "--match-experts")[1]


def test_a_model_reads_the_tokens_of_a_routing_again(
    cli: Run, trained_root: Path, probe: RoutingTrace, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    replace(probe, router_logits=None, router_scores=np.full_like(probe.router_scores, 0.5)).save(path)
    code, out, _ = cli(trained_root, "agree", str(path), "--run", "tiny", "--json", "-")
    assert code == 0
    assert json.loads(out)["agreement"]["same_choices"] == json.loads(out)["agreement"]["choices"]
    code, out, _ = cli(trained_root, "agree", str(path), "--run", "tiny", "--dtype", "bfloat16", "--json", "-")
    found = json.loads(out)
    assert found["b"] == "tiny in bfloat16"
    assert found["margins"]["of"] == "B"  # A kept nothing but the choice


def test_what_vllm_recorded_of_the_demo_is_what_the_demo_chooses(cli: Run) -> None:
    recorded = Path(__file__).parent / "fixtures" / "recordings" / "vllm-0.30-serve.jsonl"
    code, out, _ = cli(SHIPPED, "agree", str(recorded), "--run", "demo", "--device", "cpu")
    assert code == 0
    assert "162 tokens of 6 documents from 5 sources." in out  # one answer is read behind the prompt of another
    assert "Identical: all 1,296 choices of 162 tokens are the same, in 5 sources" in out


@needs_torchao
def test_a_run_and_a_model_in_fewer_bits(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    given = ["--quantise", "2", "--group-size", "16", "--tokens-per-domain", "200"]
    folder = tmp_path / "traces"
    code, out, _ = cli(trained_root, "agree", "--run", "tiny", *given, "--save-traces", str(folder), "--json", "-")
    assert code == 0
    found = json.loads(out)
    assert found["a"] == "tiny in float32"
    assert found["b"] == "tiny in float32, 2 bits"
    assert (found["second"]["rounding"]["bits"], found["second"]["rounding"]["group_size"]) == (2, 16)
    assert [row["group"] for row in found["loss"]["groups"]] == ["all", "flipped", "kept"]
    kept = [RoutingTrace.load(folder / f"{letter}.parquet") for letter in "AB"]
    assert routing_agreement(*kept).same_choices == found["agreement"]["same_choices"]
    model = saved_model(tmp_path / "model", "olmoe")
    given = [
        "--text",
        "The café opened at nine.",
        "--quantise",
        "4",
        "--quantise-what",
        "experts",
        "--dtype",
        "bfloat16",
    ]
    code, out, _ = cli(trained_root, "agree", "--model", str(model), "--device", "cpu", *given)
    assert code == 0
    assert "in bfloat16, 4 bits in experts" in out
    assert "weights (experts) were rounded to 4 bits in groups of 32" in out
    assert "cannot be told" in out  # one source


def test_what_does_not_go_together_is_refused(cli: Run, trained_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: str) -> str:
        code, _, err = cli(trained_root, "agree", *given)
        assert code == 2, err
        assert_one_line(err)
        return err

    assert "expected A and B" in refused()
    assert "expected A and B" in refused("a.parquet")
    assert "expected A and B" in refused("a", "b", "--run", "tiny")
    assert "say how the second time" in refused("--run", "tiny")
    assert "give --run or --model" in refused("tiny@20", "tiny@40", "--dtype", "bfloat16")
    assert "--data and --text go with" in refused("tiny@20", "tiny@40", "--text", "x")
    assert "--quantise BITS" in refused("--run", "tiny", "--dtype", "bfloat16", "--group-size", "8")
    assert "neither a file nor a run" in refused("nothing.parquet", "tiny")
    assert "no snapshot of step '7'; expected one of 0, 20, 40" in refused("tiny@7", "tiny@40")
    assert "'17'" in refused("--run", "tiny", "--quantise", "17")
    monkeypatch.setattr("moe_core.inference.rounding.missing_library", lambda: True)
    assert "moescope[low-precision]" in refused("--run", "tiny", "--quantise", "4")
