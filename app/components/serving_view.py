"""What `compare-serving` measured: how fast a mixture serves, beside a dense model of equal active size."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from app import state
from app.components.figure import show_figure
from app.components.page import answer, plain, prose
from moe_core.errors import UsageError
from moe_core.experiments.serving_result import (
    HEADER,
    OWN,
    ServingResult,
    find_serving,
    read_serving,
    serving_rows,
    serving_verdict,
    where_served,
)
from moe_core.figures.served_clients import serving_figure
from moe_core.program import program

CHOSEN, FILE = "serving", "serving_file"
"""Keys of the picker, in the URL, and of the path of a file that lies elsewhere, which is not."""
EMPTY = (
    f"Nothing was measured yet. `{program()} compare-serving` asks a mixture and a dense model of equal active size, "
    f"under 1, 4 and 16 clients, and writes what it finds into {OWN}, which is shown here."
)


def show_serving() -> None:
    """Choose a result; its answer, its figure, all its numbers."""
    found = find_serving()
    if found:
        names = list(found)
        state.preset(CHOSEN, names, names[0])
        chosen = st.selectbox("Result", names, index=None, required=True, key=CHOSEN, bind="query-params")
    else:
        st.info(prose(EMPTY), icon=":material/speed:")
    path = st.text_input(
        "A result file that lies elsewhere", key=FILE, placeholder="path/to/serving.json",
        help="What `compare-serving --output FILE` wrote.",
    )  # fmt: skip
    if path.strip():
        if "\0" in path:
            raise UsageError("a path has no NUL character; expected one such as out/serving/serving.json")
        show_result(read_serving(Path(path.strip()).expanduser()))
    elif found:
        show_result(found[state.present(chosen)])


def show_result(result: ServingResult) -> None:
    """One result."""
    answer(serving_verdict(result))
    show_figure(serving_figure(result), key="serving_figure", named=False)
    rows = pd.DataFrame(serving_rows(result), columns=[name[:1].upper() + name[1:] for name in HEADER])
    st.dataframe(rows, hide_index=True, key="serving_rows")
    st.caption(plain(where_served(result)))
