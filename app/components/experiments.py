"""What `compare-dense` and `compare-routers` found: the mixture against dense models, routers against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import streamlit as st

from app import state
from app.components.figure import show_figure
from app.components.page import answer, plain, prose
from moe_core.experiments.comparison_result import ComparisonResult
from moe_core.experiments.library import Found, find_results
from moe_core.experiments.verdicts import headline, losses_verdict, shortcomings, where_measured
from moe_core.figures.figure import Figure
from moe_core.figures.quality import figure_pairs
from moe_core.program import program
from moe_core.reports.comparison_report import notes, result_table

CHOSEN = "experiment"
"""Key of the picker, in the URL: the title of the result that is shown."""
TERMS = {"dense": ["loss", "unseen", "interval"], "routers": ["loss", "unseen", "interval", "dead expert"]}
TREND_TERMS = ["loss", "unseen"]
CURVE_TERMS = ["loss", "unseen", "FLOPs per token"]
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
    show_result(found[state.present(chosen)])


def by_title(found: Mapping[str, Found]) -> dict[str, Found]:
    """The results by what people read; where two read alike, their names tell them apart."""
    times = Counter(one.title for one in found.values())
    return {one.title if times[one.title] == 1 else f"{one.title} ({name})": one for name, one in found.items()}


def show_result(found: Found) -> None:
    """One result: every picture of the unseen split beside that of the other one."""
    result = found.result
    for paragraph in headline(result):
        answer(paragraph)
    if lacking := shortcomings(result):
        st.info(prose(lacking), icon=":material/history:")
    first, *others = figure_pairs(result)
    show_pair(first, TERMS[result.kind], beside=result.kind == "dense")  # routers write a long line each
    if result.longer:
        trend, *others = others
        show_pair(trend, TREND_TERMS)
    if others:
        show_curves(result, others)
    st.caption(prose(notes(result)))
    if result.speed is not None:
        st.caption(plain(where_measured(result.speed)))
    with st.expander("All numbers"):
        st.markdown(result_table(result))
    st.caption(plain(f"From {found.path.name}, plan {result.plan_hash[:12]}."))


def show_curves(result: ComparisonResult, pairs: Sequence[Sequence[Figure]]) -> None:
    """Loss against what is chosen."""
    titles = {pair[0].title.partition(":")[0]: pair for pair in pairs}
    chosen = st.segmented_control("Curves", list(titles), default=next(iter(titles)), required=True, key="curves")
    pair = titles[str(chosen)]
    show_pair(pair, CURVE_TERMS)
    if pair[0].verdict != losses_verdict(result, "unseen"):
        st.caption(prose(pair[0].verdict))


def show_pair(pair: Sequence[Figure], terms: Sequence[str], *, beside: bool = True) -> None:
    """Figures of both splits side by side, or one below the other where the window is narrow or they are wide."""
    places = st.columns(len(pair)) if beside else [st.container() for _ in pair]
    for figure, column in zip(pair, places, strict=True):
        with column:
            show_figure(figure, key=figure.name, terms=terms)
