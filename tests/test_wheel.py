"""What runs from a checkout runs from the installed wheel, in an empty folder. tests/browser/test_installed.py has the
dashboard."""

from __future__ import annotations

import json

import pytest
from wheel_support import ROOT, Installed

import moe_core
from moe_core.runs.places import SHIPPED

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def test_it_holds_what_the_dashboard_and_the_demo_need_and_nothing_else(installed: Installed) -> None:
    names = set(installed.files())
    for folder in ("app", "data_gen", "moe_core"):
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {name for name in wanted if "__pycache__" not in name} <= names
    assert {path.name for path in installed.packages.iterdir()} == {
        "app", "data_gen", "moe_core", "of_the_tests.pth", f"moescope-{moe_core.__version__}.dist-info",
    }  # fmt: skip


def test_the_command_says_its_own_name_and_version(installed: Installed) -> None:
    done = installed.run("moescope", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: moescope [-h]")
    assert "  moescope --quick --run mine" in done.stdout
    assert "main.py" not in done.stdout
    assert installed.run("moescope", "--version").stdout == f"moescope {moe_core.__version__}\n"
    assert installed.run("python", "-m", "moe_core", "--version").stdout == f"moescope {moe_core.__version__}\n"


def test_bench_says_that_it_needs_a_checkout(installed: Installed) -> None:
    done = installed.run("moescope", "bench", "--smoke")
    assert done.returncode == 2
    assert "needs a checkout" in done.stderr
    assert done.stderr.count("\n") == 1


def test_shipped_results_are_found(installed: Installed) -> None:
    script = "from moe_core.experiments.library import find_results; print(*find_results())"
    assert installed.run("python", "-c", script).stdout.split() == sorted(
        path.stem for path in (ROOT / "moe_core" / "experiments" / "shipped").glob("*.json")
    )


def test_the_demo_is_scored_and_the_package_stays_as_it_is(installed: Installed) -> None:
    before = installed.files()
    done = installed.run("moescope", "--evaluate", "--run", "demo", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    shipped = json.loads((SHIPPED / "demo" / "evaluation.json").read_text(encoding="utf-8"))
    for split in ("validation", "unseen"):
        assert found[split]["nats_per_token"] == pytest.approx(shipped[split]["nats_per_token"], rel=1e-4)
    done = installed.run("moescope", "ablate", "--run", "demo", "--layer", "0", "--expert", "3", "--mode", "reroute")
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(installed.work)) for path in installed.work.rglob("*.*") if path.is_file()}
    assert {"checkpoints/demo/evaluation.json", "checkpoints/demo/report.md"} < written
    assert [name for name in written if name.startswith("checkpoints/demo/analysis/ablation_reroute_")]
    report = (installed.work / "checkpoints" / "demo" / "report.md").read_text(encoding="utf-8")
    assert "`moescope --evaluate --run demo`" in report
    assert installed.files() == before
    listed = installed.run("moescope", "runs").stdout
    assert "demo  finished" in listed
