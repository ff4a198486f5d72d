"""Follow: what is different between two runs or traces, two steps of one run, or two texts?"""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import state
from app.components.comparison_sides import against_other, against_text
from app.components.experiments import show_experiments
from app.components.figure import show_figure
from app.components.map_view import pick_map_view
from app.components.page import answer, header, plain, prose
from app.components.routing_text import independence_warning
from app.components.token_view import token_view, view_payload
from moe_core.errors import UsageError
from moe_core.figures.sides import (
    Comparison,
    domains_figure,
    load_figure,
    relation,
    texts_of_both,
)
from moe_core.routing.measures.domains import domain_nmi_test, domain_verdict
from moe_core.runs import RunFolder

RUNS, TEXTS, EXPERIMENTS = KINDS = "Runs, steps or traces", "Two texts", "Dense models and routers"
MOVER_TERMS = ["expert", "domain", "interval"]
DIFF_TERMS = ["token", "top-k", "interval"]
MAP_TERMS = {"domains": ["domain", "lift", "interval"], "load": ["expert load", "lift"]}
MATCH_COLUMNS = {
    "layer": st.column_config.NumberColumn("Layer"),
    "expert_a": st.column_config.NumberColumn("Number here, and in A"),
    "expert_b": st.column_config.NumberColumn("Its own number in B"),
    "overlap": st.column_config.ProgressColumn("Tokens in common", min_value=0, max_value=100, format="%.0f %%"),
}
# Keys of this page: what is compared, in the URL; the two token views.
KIND, VIEW = "compare_kind", "compare_view_{}"


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
    if comparison.comparable:
        show_figure(comparison.movers(), key="movers", terms=MOVER_TERMS)
        if comparison.same_tokens:
            st.caption(plain(comparison.movers().verdict))
    show_maps(comparison)
    if comparison.comparable and comparison.same_tokens:
        show_figure(comparison.diff(), key="flips", terms=DIFF_TERMS)
        show_texts(comparison)
    if not comparison.has_tokens:
        st.caption(
            "Which tokens go elsewhere, and which expert is which, takes a trace of the same text on both sides."
        )
    if comparison.matches is not None:
        st.markdown("#### Which expert is which?")
        matches = comparison.matches.assign(overlap=100 * comparison.matches["overlap"])
        st.dataframe(matches, hide_index=True, key="matches", column_config=MATCH_COLUMNS)


def show_maps(comparison: Comparison) -> None:
    """Domains of the chosen layer's experts, and the load of all layers, on the same scales side by side."""
    view = pick_map_view(comparison.first.measured)
    for (letter, side), column in zip(comparison.sides, st.columns(2), strict=True):
        with column:
            st.markdown(f"#### {letter}: {plain(side.name)}")
            measured = side.measured
            figures = {"domains": measured.get(domains_figure, layer, view), "load": measured.get(load_figure, view)}
            for name, figure in figures.items():
                if figure is not None:
                    st.caption(plain(figure.title))
                    show_figure(figure, key=f"{letter.lower()}_{name}", title="", terms=MAP_TERMS[name])


@st.fragment
def show_texts(comparison: Comparison) -> None:
    """One document of each domain, coloured by both sides' experts; tokens that go elsewhere are dotted."""
    st.markdown("#### The same text in both")
    columns, views = st.columns(2), texts_of_both(comparison)
    for (letter, side), column, arrays in zip(comparison.sides, columns, views, strict=True):
        with column:
            st.markdown(f"**{letter}: {plain(side.name)}**")
            key = VIEW.format(letter.lower())
            payload = view_payload(arrays, series=f"{id(comparison.first.measured)}-{id(side.measured)}")
            choice = token_view(payload, layer=layer, key=key, on_layer=partial(state.follow_layer, key))
            if choice.layer is not None and choice.layer != layer:
                st.rerun()


subject, layer = state.subject(), state.selected_layer()
head = st.container()
with head:
    header("What is different?")
at_first = RUNS if isinstance(subject, RunFolder) or state.compared() else TEXTS  # a trace has no other steps
state.preset(KIND, KINDS, at_first)
kind = state.present(st.segmented_control("Compare", KINDS, required=True, key=KIND, bind="query-params"))
if kind == EXPERIMENTS:
    show_experiments()
    st.stop()
try:
    comparison = against_text(subject) if kind == TEXTS else against_other(subject)
except UsageError as error:
    st.info(f"{str(error)[:1].upper()}{str(error)[1:]}.", icon=":material/edit:")
else:
    show(comparison)
