"""Look: what this run or trace is, and whether its routing is healthy, in plain words. Nothing here loads a model."""

from __future__ import annotations

from pathlib import PurePosixPath

import streamlit as st

from app import loaders, state
from app.components.experts_to_look_at import show_experts_to_look_at
from app.components.figure import show_figure
from app.components.goto import go_to_cell
from app.components.key_figures import key_figures
from app.components.map_view import map_places, pick_map_view
from app.components.no_run import need
from app.components.page import (
    CHAT,
    COMPARE,
    DOMAINS,
    EXPERTS,
    FLOW,
    GENERATION,
    INTERVENTIONS,
    LONG_CONTEXT,
    PLACEMENT,
    TIME,
    TOKENS,
    TRAINING,
    header,
    plain,
    show_notes,
)
from app.components.routing_text import first_routing, independence_warning, text_caption, watched_routing
from app.components.token_cost import show_token_cost
from app.components.watched_run import watch_counts
from app.components.what_can_be_told import counting_notes, show_what_can_be_told
from moe_core.data.windows import window_words
from moe_core.figures.load import load_map_figure
from moe_core.inference.subjects import ForeignModel, RoutingFile
from moe_core.program import program
from moe_core.routing.measures.against_chance import FEW_DOCUMENTS
from moe_core.routing.measures.capability import MODEL
from moe_core.routing.measures.domains import domain_cells, domain_nmi_test, domain_verdict
from moe_core.routing.measures.health import describe_routing, health
from moe_core.routing.measures.load import expert_load, extremes, load_balance, load_bounds
from moe_core.routing.measures.standouts import standouts
from moe_core.runs import RunFolder

LOOK = (
    (TOKENS, "Where does each token of my text go?", "text_fields"),
    (DOMAINS, "Which experts prefer which kind of text?", "category"),
    (EXPERTS, "What does each expert do, and what is it worth?", "hub"),
    (FLOW, "How do tokens travel through the layers?", "alt_route"),
    (PLACEMENT, "Which experts are hot, and where should they go?", "memory"),
    (LONG_CONTEXT, "Does it read beyond its trained length?", "straighten"),
)
CHANGE = (
    (GENERATION, "Which experts write which words?", "edit_note"),
    (CHAT, "Which experts write the answers?", "forum"),
    (INTERVENTIONS, "What changes without an expert?", "switch_access_shortcut"),
    (TIME, "When did each expert become what it is?", "timeline"),
    (COMPARE, "What changed between two runs, steps or texts?", "compare_arrows"),
    (TRAINING, "How did it learn, and how do I train my own?", "model_training"),
)

subject = state.subject()
is_watched = isinstance(subject, RunFolder) and subject.is_watched()
if isinstance(subject, RunFolder) and is_watched:
    measured, text = watched_routing(subject)
    of_domains = loaders.probe(subject) if subject.probe_steps() else measured
else:
    measured, text = first_routing(subject)
    of_domains = measured
trace = measured.trace
load, balance = measured.get(expert_load), measured.get(load_balance)
nmi = of_domains.get(domain_nmi_test)

# The answer: what it is, is it healthy, do experts know domains.
verdict = health(balance)
too_few = (nmi["verdict"] == FEW_DOCUMENTS).any()
domain = "Whether experts know domains takes more text to tell: see Domains."
is_plural = subject.name.startswith("counts ")
header(
    f"What {'are' if is_plural else 'is'} {subject.name}, and is {'their' if is_plural else 'its'} routing healthy?",
    f"{describe_routing(trace)} {verdict.sentence} {domain if too_few else domain_verdict(nmi)}",
)

if isinstance(subject, RunFolder):
    show_notes(subject.name)
    if is_watched:
        watch_counts(subject.name)
else:
    counting_notes(measured)
independence_warning(measured)

key_figures(subject, measured, verdict, nmi)
view = pick_map_view(measured)
show_figure(
    load_map_figure(load, balance, view, map_places(measured, view)),
    key="expert_load",
    on_cell=go_to_cell,
    terms=["expert load", "lift", "load imbalance", "dead expert"],
)
st.caption(plain(extremes(load)))
text_caption(measured, text)
if isinstance(subject, RunFolder) and not is_watched:
    show_token_cost(subject, balance)
    st.caption(f"How the loss is scored: {window_words(loaders.config(subject).training.seq_len)}")

effects, unmeasured = None, f"What is lost without an expert takes {MODEL}."
if isinstance(subject, RunFolder) and not is_watched:
    effects = loaders.ablation(subject)
    unmeasured = (
        f"Not measured yet: `{program()} ablate --run {subject.name}` does, and so does the Interventions page."
    )
elif isinstance(subject, ForeignModel):
    unmeasured = "Not measured: the Interventions page switches single experts off."
show_experts_to_look_at(standouts(measured.get(load_bounds), of_domains.get(domain_cells), nmi, effects, unmeasured))

st.markdown("#### What to ask next")
columns = st.container(horizontal=True)  # below each other where a window is narrow: two would cut the questions
for questions in (LOOK, CHANGE):
    column = columns.container(width=400)
    for page, question, icon in questions:
        if need(PurePosixPath(page).stem, subject) is None:
            if page == TRAINING and not isinstance(subject, RunFolder):
                question = "How do I train a model of my own?"
            column.page_link(page, label=question, icon=f":material/{icon}:")
if isinstance(subject, RoutingFile):
    show_what_can_be_told(measured)
