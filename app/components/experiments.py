"""What `compare-dense` and `compare-routers` found: the mixture against dense models, routers against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import streamlit as st

from app import state
from app.components.figure import show_figure
from app.components.page import answer, plain
from moe_core.experiments.library import Found, find_results
from moe_core.experiments.verdicts import losses_verdict
from moe_core.figures.quality import result_figures
from moe_core.program import program
from moe_core.reports.comparison_report import notes, result_table

CHOSEN = "experiment"
"""Key of the picker, in the URL: the title of the result that is shown."""
TERMS = {"moe_against_dense": ["loss", "unseen", "interval"], "routers": ["loss", "unseen", "interval", "dead expert"]}
EMPTY = (
    f"No comparison was run yet. `{program()} compare-dense` trains a mixture and two dense models and holds them "
    f"against each other; `{program()} compare-routers` does it with the routers."
)


def show_experiments() -> None:
    """Choose a result; its answer, its figures, its tables."""
    found = by_title(find_results())
    if not found:
        st.info(EMPTY, icon=":material/science:")
        return
    titles = list(found)
    state.preset(CHOSEN, titles, titles[0])
    # What is shown is what the URL holds: names with titles of their own would not be found again in it.
    chosen = st.selectbox("Experiment", titles, index=None, required=True, key=CHOSEN, bind="query-params")
    show_result(found[str(chosen)])


def by_title(found: Mapping[str, Found]) -> dict[str, Found]:
    """The results by what people read; where two read alike, their names tell them apart."""
    times = Counter(one.title for one in found.values())
    return {one.title if times[one.title] == 1 else f"{one.title} ({name})": one for name, one in found.items()}


def show_result(found: Found) -> None:
    """One result."""
    result = found.result
    verdict = losses_verdict(result)
    answer(verdict)
    figures = result_figures(result)
    show_figure(figures[0], key=figures[0].name, terms=TERMS[figures[0].name])
    if len(figures) > 1:
        sides = {figure.title: figure for figure in figures[1:]}
        chosen = st.segmented_control("Curves", list(sides), default=next(iter(sides)), required=True, key="curves")
        show_figure(sides[chosen], key=sides[chosen].name, title="", terms=["loss", "unseen", "FLOPs per token"])
        if sides[chosen].verdict != verdict:
            st.caption(plain(sides[chosen].verdict))
    st.caption(plain(notes(result)))
    with st.expander("All numbers"):
        st.markdown(result_table(result))
    st.caption(plain(f"From {found.path.name}, plan {result.plan_hash[:12]}."))
