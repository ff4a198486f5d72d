"""Look: which experts prefer which kind of text, and is that more than chance?"""

from __future__ import annotations

import time

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.page import answer, errors_as_boxes, header
from app.components.progress import progress_bar
from moe_core.figures.run_figures import domain_map_figure, domain_nmi_figure
from moe_core.routing.baselines import FEW_DOCUMENTS

# Some 25 documents of each domain, and some seconds of a small model's time.
MORE_TOKENS_PER_DOMAIN = 4_096

run, layer = state.selected_run(), state.selected_layer()
header("Which experts prefer which kind of text?")
place = st.empty()
routing = loaders.probe_routing(run)
text = f"the same held-out text at every evaluation, last at step {loaders.probe_step(run):,}"

# The probe is small. Where it cannot tell, or on demand, more held-out text goes through the model.
too_few = bool((routing.nmi["verdict"] == FEW_DOCUMENTS).any())
more = too_few or st.session_state.get(state.MORE_TEXT) == run.name
if more:
    with errors_as_boxes("More text could not be used"), progress_bar("Sending held-out text through the model") as bar:
        routing = loaders.held_out_routing(run, MORE_TOKENS_PER_DOMAIN, bar)
        clock = time.strftime("%H:%M", time.localtime(routing.measured_at))
        text = f"beginnings of held-out documents, sent through the newest checkpoint at {clock}"

figure = domain_map_figure(routing.specialization, routing.nmi, layer)
with place:
    answer(f"Layer {layer}: {figure.verdict}")
if len(routing.trace.domains) > 1:
    show_figure(figure, key=figure.name, terms=["domain", "lift", "interval", "domain specialization"])
documents = len(set(routing.trace.document_ids.tolist()))
with st.container(horizontal=True, vertical_alignment="center"):
    st.caption(f"{routing.trace.num_tokens:,} tokens of {documents:,} documents: {text}. Faded cells are uncertain.")
    if not more:
        st.button(
            "Use more text",
            icon=":material/add_circle:",
            key="use_more_text",
            help=f"Sends up to {MORE_TOKENS_PER_DOMAIN:,} held-out tokens of each domain through the model: "
            "narrower intervals, a surer verdict.",
            on_click=st.session_state.__setitem__,
            args=(state.MORE_TEXT, run.name),
        )

show_figure(
    domain_nmi_figure(routing.nmi),
    key="domain_nmi",
    title="Is it more than chance, in every layer?",
    terms=["NMI", "null", "p-value", "effect"],
)
st.dataframe(
    routing.nmi[["layer", "nmi", "null_mean", "null_p99", "p_adjusted", "verdict"]],
    hide_index=True,
    column_config={
        "layer": st.column_config.NumberColumn("Layer"),
        "nmi": st.column_config.NumberColumn("NMI", format="%.3f"),
        "null_mean": st.column_config.NumberColumn("by chance", format="%.3f"),
        "null_p99": st.column_config.NumberColumn("by chance at most (99 %)", format="%.3f"),
        "p_adjusted": st.column_config.NumberColumn("p (adjusted over layers)", format="%.3f"),
        "verdict": st.column_config.TextColumn("One expert choice ...", width="large"),
    },
)
