"""The Placement page: on a run, a trace and counts, with its choices in the URL and files that engines take."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_support import Open, shown
from placement_support import write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("placement"))


def test_a_run_is_answered_with_pictures_files_and_a_cache(trained_root: Path, dashboard: Open) -> None:
    at = dashboard(trained_root, "placement")
    assert at.title[0].value == "Which experts are hot, and where should they go?"
    text = shown(at)
    assert "80 % of a layer's work" in text
    assert "busiest GPU" in text
    assert "of 4 experts used last" in text
    assert len(at.main.get("vega_lite_chart")) == 3
    assert {"For SGLang", "For TensorRT-LLM"} <= {button.label for button in at.main.get("download_button")}
    assert not at.error


def test_choices_are_those_of_the_link_and_change_the_answer(files: Path, tmp_path: Path, dashboard: Open) -> None:
    query = {"gpus": "4", "extra": "1", "placement_domain": "domain 1", "kept": "2"}
    at = dashboard(tmp_path, "placement", ("--trace", str(files / "x.parquet")), **query)
    text = shown(at)
    assert "12 physical experts a layer, 3 on each GPU" in text
    assert "--ep-num-redundant-experts 4" in text
    assert "A cache of the 2 of 8 experts" in text
    assert "2,000 tokens" not in text  # of the domain alone
    at.selectbox(key="gpus").set_value(2).run()
    assert "10 physical experts a layer, 5 on each GPU" in shown(at)
    assert not at.exception


def test_counts_are_placed_and_say_what_a_cache_takes(files: Path, tmp_path: Path, dashboard: Open) -> None:
    at = dashboard(tmp_path, "placement", ("--trace", str(files / "x.counts.parquet")))
    text = shown(at)
    assert "Placement evens the busiest GPU out" in text
    at.selectbox(key="gpus").set_value(8).run()
    assert "With one expert on each GPU there is nothing to place" in shown(at)
    assert "takes the choices token by token" in text
    assert len(at.main.get("vega_lite_chart")) == 2
    assert not at.exception


def test_without_a_run_the_page_says_how_to_make_one(tmp_path: Path, dashboard: Open) -> None:
    at = dashboard(tmp_path, "placement", ())
    assert "There is no run yet" in shown(at)
    assert not at.exception
