"""The Long context page: empty, while it measures, and with what was kept beside the run."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

from app_support import Open, shown

from moe_core.evaluation.long_context import measure_long_context
from moe_core.figures.figure import figure_bytes
from moe_core.figures.run_figures import sections_of_run
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.runs.record import read_run


def test_the_page_offers_the_reading_and_shows_what_was_kept(
    trained_root: Path, tmp_path: Path, dashboard: Open
) -> None:
    copytree(trained_root / "tiny", tmp_path / "tiny")
    at = dashboard(tmp_path, "long_context")
    assert "Can this model read beyond the length" in at.title[0].value
    text = shown(at)
    assert "It is not measured yet at factor 4" in text
    assert "context --run tiny --factor 4" in text
    assert at.main.button(key="read_longer").label == "Read longer texts"
    run = RunFolder("tiny", tmp_path)
    kept = measure_long_context(run, load_run("tiny", tmp_path), 2, texts=4)
    assert kept.found.texts == 4
    again = dashboard(tmp_path, "long_context", factor="2", layer="1", scheme="yarn")
    text = shown(again)
    assert "trained 32 tokens" in text
    assert "512 tokens in 4 texts of 128" in text
    assert "under yarn" in text
    assert "When not to conclude" in text
    assert len(again.main.get("vega_lite_chart")) == 3
    assert again.main.button(key="read_longer").label == "Measure again"
    again.selectbox(key="factor").set_value(4).run()
    assert "It is not measured yet at factor 4" in shown(again)
    assert not again.exception
    (section,) = (one for one in sections_of_run(read_run(run)) if "beyond the length" in one.question)
    assert figure_bytes(section.figures[0], "csv").startswith(b"scheme,")
    assert section.figures[1].name.startswith("flips_by_position")


def test_without_a_run_the_page_says_how_to_make_one(tmp_path: Path, dashboard: Open) -> None:
    assert "There is no run yet" in shown(dashboard(tmp_path, "long_context", ()))
