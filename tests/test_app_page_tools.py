"""The row above every page: the report on what is open, the tour, the name; what a browser does is in tests/browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_support import Open, shown
from streamlit.testing.v1 import AppTest

from app.components.tour import STEPS
from moe_core.runs import RunFolder


def keys_of(at: AppTest) -> set[str | None]:
    return {button.key for button in at.main.button}


@pytest.mark.parametrize("page", ["overview", "compare", "training"])
def test_every_page_offers_report_and_tour(dashboard: Open, trained_root: Path, page: str) -> None:
    at = dashboard(trained_root, page)
    assert keys_of(at) >= {"report_button", "tour_button"}
    assert "tour_next" not in keys_of(at)


def test_the_tour_has_five_steps_and_ends(dashboard: Open, trained_root: Path) -> None:
    at = dashboard(trained_root)
    at.button(key="tour_button").click().run()
    for step, text in enumerate(STEPS):
        assert f"**{step + 1} of 5.** {text}" in shown(at)
        at.button(key="tour_next").click().run()
    assert "tour_next" not in keys_of(at)
    assert at.session_state["tour_seen"]
    at.button(key="tour_button").click().run()
    at.button(key="tour_next").click().run()
    at.button(key="tour_previous").click().run()
    assert "**1 of 5.**" in shown(at)
    at.button(key="tour_close").click().run()
    assert "tour_next" not in keys_of(at)
    assert not at.exception


def test_a_report_is_made_of_a_run_and_of_a_trace(dashboard: Open, trained_root: Path) -> None:
    at = dashboard(trained_root)
    at.button(key="report_button").click().run()
    assert not at.exception
    assert "The report on tiny holds" in shown(at)
    assert "held-out documents (run tiny, step 40)" in shown(at)
    (save,) = [one for one in at.get("download_button") if one.proto.id.endswith("report_save")]
    assert save.proto.label.startswith("Save it (")
    at.button(key="report_button").click().run()
    assert "The report on" not in shown(at)

    probe = RunFolder("tiny", trained_root).probe_path(40)
    at = dashboard(trained_root, arguments=("--trace", str(probe)))
    at.button(key="report_button").click().run()
    assert not at.exception
    assert f"The report on trace {probe.name} holds" in shown(at)


def test_where_nothing_can_be_reported_it_says_why(dashboard: Open, tmp_path: Path) -> None:
    at = dashboard(tmp_path)
    at.button(key="report_button").click().run()
    assert "There is no report" in at.error[0].value
    assert "Nothing is open to report on" in at.error[0].value.replace("\\", "")
    broken = tmp_path / "other" / "broken"  # another folder: the list of runs is kept for a second
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    at = dashboard(broken.parent)
    at.button(key="report_button").click().run()
    assert not at.exception
    assert any("Run broken cannot be read" in error.value.replace("\\", "") for error in at.error)
