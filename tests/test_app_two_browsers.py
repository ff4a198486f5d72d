"""Two browsers on one server open and close at once: each goes back to where it came from, and is told what is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is missing: pip install -r requirements-huggingface.txt")

from app_support import Open, in_box, settled
from huggingface_support import saved_model
from streamlit.testing.v1 import AppTest

COUNTS = Path(__file__).parent / "fixtures" / "recordings" / "llama.cpp-imatrix.gguf"
FILE, MODEL = "counts llama.cpp-imatrix.gguf", "model some-moe"


def open_in(at: AppTest, path: Path) -> None:
    """By the box in the side bar, which folds itself up and is empty again once that is done."""
    at.session_state["open_other"] = True  # unfolded, as by a click
    at.text_input(key=in_box(at, "open_path")).set_value(str(path))
    at.button(key="open_button").click()
    settled(at)
    assert not at.session_state["open_other"]
    assert at.text_input(key=in_box(at, "open_path")).value == ""
    assert not at.sidebar.error


def shown_by(at: AppTest) -> str:
    """What the side bar has chosen, once the title of the page says the same."""
    name = str(at.session_state["run"])
    assert name in at.title[0].value.replace("\\", "")
    return name


def test_each_browser_lands_where_it_came_from(own_root: Path, tmp_path: Path, dashboard: Open) -> None:
    for name in ("other", "third"):
        shutil.copytree(own_root / "tiny", own_root / name)
    first, second = (dashboard(own_root, run=name) for name in ("tiny", "other"))
    open_in(first, COUNTS)
    open_in(second, saved_model(tmp_path / "some-moe", "qwen3_moe"))
    assert (shown_by(first), shown_by(second)) == (FILE, MODEL)

    # Each sees what the other has opened; both look at the file now, and the first closes it.
    second.run()
    second.selectbox(key="run").select(FILE).run()
    first.button(key="close_opened").click().run()
    assert shown_by(first) == "tiny"
    assert not first.sidebar.warning

    # The second is told, and is back at the model; it closes that, and is back at its run.
    second.run()
    assert shown_by(second) == MODEL
    said = second.sidebar.warning[0].value.replace("\\", "")
    assert said == f"{FILE[:1].upper()}{FILE[1:]} is not open any more: open it again. This is {MODEL}."
    second.button(key="close_opened").click().run()
    assert shown_by(second) == "other"
    assert MODEL not in first.run().selectbox(key="run").options
    assert not [box.value for at in (first, second) for box in (*at.error, *at.exception)]
