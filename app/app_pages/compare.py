"""Follow: what is different between two runs or traces, two steps of one run, or two texts?"""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import state
from app.components.agreement_view import show_agreement
from app.components.comparison_sides import (
    against_other,
    against_text,
    go_to_cell_of,
    is_fine_tuned,
    models_of_both,
)
from app.components.experiments import show_experiments
from app.components.figure import show_figure
from app.components.fine_tuned import fine_tuned_field
from app.components.map_view import pick_map_view
from app.components.page import answer, header, plain, prose
from app.components.read_twice import against_itself, show_cost
from app.components.routing_text import independence_warning
from app.components.serving_view import show_serving
from app.components.side_views import LEAST_WIDTH, show_views
from moe_core.errors import UsageError
from moe_core.figures.sides import Comparison, domains_figure, load_figure, relation
from moe_core.inference.subjects import ForeignModel, RoutingFile
from moe_core.routing.measures.domains import domain_nmi_test, domain_verdict
from moe_core.runs import RunFolder
from moe_core.words import sentence

RUNS, TEXTS, TWO_PRECISIONS = "Runs, steps or traces", "Two texts", "Two precisions"
# What commands measured and wrote down.
RESULTS = {"Dense models and routers": show_experiments, "Serving": show_serving}
MOVER_TERMS = ["expert", "domain", "interval"]
DIFF_TERMS = ["flip rate", "agreement", "token", "top-k", "interval"]
MAP_TERMS = {"domains": ["domain", "lift", "interval"], "load": ["expert load", "lift"]}
MATCH_COLUMNS = {
    "layer": st.column_config.NumberColumn("Layer"),
    "expert_a": st.column_config.NumberColumn("Number here, and in A"),
    "expert_b": st.column_config.NumberColumn("Its own number in B"),
    "overlap": st.column_config.ProgressColumn("Tokens in common", min_value=0, max_value=100, format="%.0f %%"),
}
KIND = "compare_kind"  # key, in the URL: what is compared


def sides_of(kind: str | None) -> Comparison | None:
    """What the page compares; None while it waits for a button. Raises MoescopeError."""
    if kind == TEXTS:
        return against_text(subject)
    if kind == TWO_PRECISIONS and not isinstance(subject, RoutingFile):
        return against_itself(subject)
    return against_other(subject)


def show(comparison: Comparison) -> None:
    """The answer and the main picture, then the two maps, then one text through both."""
    if comparison.comparable and comparison.same_tokens:
        verdict = comparison.diff().verdict
    elif comparison.comparable:
        verdict = comparison.movers().verdict
    elif not comparison.has_tokens:
        verdict = " ".join(f"{letter}: {side.measured.get(load_figure).verdict}" for letter, side in comparison.sides)
    else:
        nmi = [(letter, side.measured.get(domain_nmi_test)) for letter, side in comparison.sides]
        verdict = " ".join(f"{letter}: {domain_verdict(frame)}" for letter, frame in nmi)
    with head:
        answer(f"A is {comparison.first.name}, B is {comparison.second.name}. {verdict}")
    for _, side in comparison.sides:
        independence_warning(side.measured)
    if remark := relation(comparison):
        st.info(prose(remark), icon=":material/shuffle:")
    if comparison.comparable and comparison.same_tokens:
        show_agreement(comparison, is_fine_tuned=kind == RUNS and is_fine_tuned(subject))
    if kind == TWO_PRECISIONS and not isinstance(subject, RoutingFile):
        show_cost(subject)
    if kind == TEXTS:  # then they are what the page is about
        show_texts(comparison)
    if comparison.comparable:
        show_figure(comparison.movers(), key="movers", terms=MOVER_TERMS)
        if comparison.same_tokens:
            st.caption(plain(comparison.movers().verdict))
    show_maps(comparison)
    if comparison.comparable and comparison.same_tokens:
        show_figure(comparison.diff(), key="flips", terms=DIFF_TERMS)
    if kind != TEXTS:
        show_texts(comparison)
    if not comparison.has_tokens:
        st.caption(
            "Which tokens go elsewhere, and which expert is which, takes a trace of the same text on both sides."
        )
    if comparison.matches is not None:
        st.markdown("#### Which expert is which?")
        matches = comparison.matches.assign(overlap=100 * comparison.matches["overlap"])
        st.dataframe(matches, hide_index=True, key="matches", column_config=MATCH_COLUMNS)


def show_texts(comparison: Comparison) -> None:
    """Both texts, coloured; one of one's own where both sides can read it."""
    models = models_of_both(subject) if kind == RUNS else None
    if comparison.has_tokens or models is not None:
        show_views(comparison, layer, models)


def show_maps(comparison: Comparison) -> None:
    """Domains of the chosen layer's experts, and the load of all layers, on the same scales side by side."""
    view = pick_map_view(comparison.first.measured)
    grid = st.grid(2, min_column_width=LEAST_WIDTH)
    for letter, side in comparison.sides:
        with grid, st.container():
            st.markdown(f"#### {letter}: {plain(side.name)}")
            measured = side.measured
            figures = {"domains": measured.get(domains_figure, layer, view), "load": measured.get(load_figure, view)}
            for name, figure in figures.items():
                if figure is not None:
                    st.caption(plain(figure.title))
                    open_cell = partial(go_to_cell_of, comparison, letter, kind == RUNS)
                    named = letter == "A" or comparison.comparable  # else these are other experts
                    show_figure(
                        figure, key=f"{letter.lower()}_{name}", title="", terms=MAP_TERMS[name], on_cell=open_cell,
                        named=named,
                    )  # fmt: skip


subject, layer = state.subject(), state.selected_layer()
head = st.container()
with head:
    header("What is different?")
at_first = RUNS if isinstance(subject, RunFolder) or state.compared() else TEXTS  # a trace has no other steps
has_model = isinstance(subject, ForeignModel) or (isinstance(subject, RunFolder) and not subject.is_watched())
kinds = [RUNS, TEXTS, *([TWO_PRECISIONS] if has_model else []), *RESULTS]
state.preset(KIND, kinds, at_first)
kind = state.present(st.segmented_control("Compare", kinds, required=True, key=KIND, bind="query-params"))
if kind in RESULTS:
    RESULTS[kind]()
    st.stop()
if kind == RUNS:
    fine_tuned_field()
try:
    comparison = sides_of(kind)
except UsageError as error:
    st.info(prose(sentence(str(error))), icon=":material/edit:")
else:
    if comparison is not None:
        show(comparison)
