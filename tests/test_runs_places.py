"""A run that comes with Moescope is read in the package; what is found out about it goes to the working folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import Run, assert_one_line

from moe_core.runs import RunFolder, list_runs, places
from moe_core.runs.checkpoint import load_run
from moe_core.runs.evaluation import evaluation_from_json
from moe_core.runs.places import SHIPPED


@pytest.fixture
def shipped(own_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained run "tiny" as one that comes with the package."""
    folder = tmp_path / "package" / "shipped"
    shutil.copytree(own_root, folder)
    shutil.rmtree(own_root)
    monkeypatch.setattr(places, "SHIPPED", folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_found_where_no_run_has_its_name(shipped: Path, tmp_path: Path) -> None:
    root = tmp_path / "work"
    run = RunFolder("tiny", root)
    assert run.exists()
    assert run.is_shipped()
    assert run.config() == RunFolder("tiny", shipped).config()
    assert run.probe_steps() == RunFolder("tiny", shipped).probe_steps() != []
    assert run.metric_records() == RunFolder("tiny", shipped).metric_records() != []
    assert run.held_out("unseen") == RunFolder("tiny", shipped).held_out("unseen")
    assert run.domains() == RunFolder("tiny", shipped).domains()
    assert load_run("tiny", root).step == 40
    assert [(one.name, one.state) for one in list_runs(root)] == [("tiny", "finished")]
    assert not root.exists()


def test_a_run_of_ones_own_hides_it(shipped: Path, tmp_path: Path) -> None:
    root = tmp_path / "work"
    shutil.copytree(shipped, root)
    (root / "tiny" / "metrics.jsonl").unlink()
    run = RunFolder("tiny", root)
    assert not run.is_shipped()
    assert run.metric_records() == []
    assert len(list_runs(root)) == 1


def test_what_is_found_out_goes_to_the_working_folder(shipped: Path, tmp_path: Path, cli: Run) -> None:
    before, root = files_of(shipped), tmp_path / "work"
    code, _, err = cli(root, "--evaluate", "--run", "tiny")
    assert code == 0, err
    code, out, err = cli(root, "ablate", "--run", "tiny", "--layer", "0", "--expert", "1")
    assert code == 0, err
    assert str(root / "tiny" / "analysis") in out
    assert files_of(shipped) == before
    written = files_of(root / "tiny")
    assert {"evaluation.json", "report.md"} < set(written)
    assert len([name for name in written if name.startswith("analysis/ablation_zero_")]) == 1
    run = RunFolder("tiny", root)
    assert run.is_shipped()
    assert run.evaluation() == evaluation_from_json(written["evaluation.json"], "evaluation.json")
    assert load_run("tiny", root).step == 40


def test_an_ablation_that_was_begun_in_the_package_is_gone_on_with_in_a_copy(
    shipped: Path, tmp_path: Path, cli: Run
) -> None:
    assert cli(shipped, "ablate", "--run", "tiny", "--layer", "0", "--expert", "1")[0] == 0
    before, root = files_of(shipped), tmp_path / "work"
    assert cli(root, "ablate", "--run", "tiny", "--layer", "0", "--expert", "1")[0] == 0
    assert not (root / "tiny").exists(), "what is known is not measured again"
    assert cli(root, "ablate", "--run", "tiny", "--layer", "0", "--expert", "2")[0] == 0
    assert files_of(shipped) == before
    (journal,) = (root / "tiny" / "analysis").glob("ablation_zero_*.jsonl")
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    assert "of" in lines[0]
    assert [line["rows"][0]["expert"] for line in lines[1:]] == [1, 2]


@pytest.mark.parametrize(
    "arguments", [("--run", "tiny", "--quick"), ("--run", "tiny", "--resume"), ("slim", "--run", "tiny")]
)
def test_it_is_never_trained_on_or_changed(arguments: tuple[str, ...], shipped: Path, tmp_path: Path, cli: Run) -> None:
    before, root = files_of(shipped), tmp_path / "work"
    code, _, err = cli(root, *arguments)
    assert code == 2
    assert_one_line(err, "comes with Moescope", "--init-from tiny")
    assert files_of(shipped) == before
    assert not (root / "tiny").exists()


def test_the_demo_lies_in_the_package_and_what_is_found_out_about_it_does_not() -> None:
    assert (SHIPPED / "demo" / "config.json").is_file()
    place = places.place_of("demo", "checkpoints")
    assert place.written == Path("checkpoints/demo")
