"""Look: which experts prefer which kind of text, and is that more than chance?"""

from __future__ import annotations

import time

import streamlit as st

from app import loaders, state
from app.components.experts_per_token_view import show_experts_per_token
from app.components.figure import show_figure
from app.components.goto import go_to_cell
from app.components.label_view import DOMAIN, labelled_by, pick_labelling, show_labels
from app.components.map_view import map_places, pick_map_view
from app.components.page import answer, errors_as_boxes, header, prose
from app.components.progress import progress_bar
from app.components.routing_text import amount, first_routing, independence_warning
from app.components.states_view import show_states
from moe_core.figures.domains import domain_map_figure, preferred_domains_figure
from moe_core.figures.measures import chance_figure
from moe_core.routing.measures.against_chance import FEW_DOCUMENTS
from moe_core.routing.measures.capability import capability
from moe_core.routing.measures.domains import domain_cells, domain_nmi_test
from moe_core.routing.measures.registry import DOMAIN_CELLS, DOMAIN_NMI
from moe_core.runs import RunFolder

TERMS = ["domain", "lift", "interval", "domain specialization", "Benjamini-Hochberg"]
subject, layer = state.subject(), state.selected_layer()
header("Which experts prefer which kind of text?")
choice, place, picture = st.container(), st.empty(), st.container()
below = st.container(horizontal=True, vertical_alignment="center")
measured, text = first_routing(subject)

# The probe is small. Where it cannot tell, or on demand, more held-out text goes through the model.
too_few = bool((measured.get(domain_nmi_test)["verdict"] == FEW_DOCUMENTS).any())
has_more = isinstance(subject, RunFolder) and not subject.is_watched()
if has_more and not too_few:
    with below:
        wanted = st.toggle(
            "Use more text",
            key=state.MORE_TEXT,
            bind="query-params",
            help="Sends more held-out text of each domain through the model: narrower intervals, a surer verdict.",
        )
if isinstance(subject, RunFolder) and has_more and (too_few or wanted):
    with errors_as_boxes("More text could not be used"), progress_bar("Sending held-out text through the model") as bar:
        measured = loaders.deep_routing(subject, bar)
        clock = time.strftime("%H:%M", time.localtime(measured.made_at))
        text = f"beginnings of held-out documents, sent through the newest checkpoint at {clock}"

with choice:
    labelling = pick_labelling(measured)
if labelling != DOMAIN:
    with picture:
        independence_warning(measured)
        show_labels(labelled_by(measured, labelling), layer, text)
        show_experts_per_token(labelled_by(measured, labelling), layer, by_label=True)
else:
    nmi, cells = measured.get(domain_nmi_test), measured.get(domain_cells)
    with picture:
        independence_warning(measured)
    if several := len(measured.trace.domains) > 1:
        with picture:
            view = pick_map_view(measured)
            places = map_places(measured, view)
            figure = domain_map_figure(cells, nmi, layer, view, places)
            show_figure(figure, key=figure.name, on_cell=go_to_cell, terms=TERMS)
    else:
        figure = domain_map_figure(cells, nmi, layer)
    with place:
        answer(f"Layer {layer}: {figure.verdict}")
    with below:
        told = capability(DOMAIN_CELLS, measured.trace)
        faded = "Faded: not distinguishable from text of any domain, or too little text to test."
        if told.answer == "as counted":
            faded = f"All is faded, as counted: a test takes {told.needs}."
        if len(measured.trace.domains) == 1:
            faded = ""
        st.caption(prose(f"{amount(measured)}: {text}. {faded}".strip()))

    if several and measured.trace.num_layers > 1:
        everywhere = preferred_domains_figure(cells, nmi, view, places)
        show_figure(everywhere, key=everywhere.name, title="All layers at once", on_cell=go_to_cell, terms=TERMS)
        st.caption(prose(everywhere.verdict))
    if nmi["nmi"].notna().any():  # of one domain there is nothing to draw, and the answer says so
        show_figure(
            chance_figure(DOMAIN_NMI, nmi),
            key="domain_nmi",
            title="Is it more than chance, in every layer?",
            terms=["NMI", "null", "p-value", "effect"],
        )
        number = st.column_config.NumberColumn
        st.dataframe(
            nmi[["layer", "verdict", "estimate", "low", "high", "nmi", "null_mean", "null_p99", "p_adjusted"]].dropna(
                axis="columns", how="all"
            ),
            hide_index=True,
            column_config={
                "layer": number("Layer", width=55, pinned=True),
                "verdict": st.column_config.TextColumn("One expert choice ...", width=330),
                "estimate": number("NMI", format="%.3f", width=55),
                "low": number("95 % from", format="%.3f", width=72),
                "high": number("to", format="%.3f", width=55),
                "nmi": number("as counted", format="%.3f", width=78),
                "null_mean": number("by chance", format="%.3f", width=75),
                "null_p99": number("at most", format="%.3f", width=65, help="What chance reaches in 99 of 100 cases."),
                "p_adjusted": number("p", format="%.3f", width=55, help="Adjusted over the layers."),
            },
        )
    show_experts_per_token(measured, layer, by_label=False)
if isinstance(subject, RunFolder) and not subject.is_watched():
    show_states(subject, layer)
