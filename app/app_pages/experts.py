"""Look: what does each expert do, and what is it worth?"""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import loaders, state
from app.components.expert_card import load_while_training, neighbours, pick_expert, tokens_taken, where_chosen, worth
from app.components.expert_name import name_field
from app.components.expert_table import expert_table, most_telling, pick_from_table
from app.components.figure import show_figure
from app.components.goto import go_to_cell
from app.components.page import INTERVENTIONS, answer, header, prose
from app.components.routing_text import deep_or_probe, independence_warning, measure_all, text_caption
from moe_core.data.tokenizer import END_OF_TEXT
from moe_core.figures.experts import expert_domains_figure, expert_history_figure, layer_load_figure
from moe_core.inference.subjects import RoutingFile
from moe_core.program import program
from moe_core.routing.measures.capability import COMMANDS, MODEL, TOKENS, capability
from moe_core.routing.measures.domains import domain_cells
from moe_core.routing.measures.experts import expert_sentence
from moe_core.routing.measures.formation import formation, formed_at
from moe_core.routing.measures.load import expert_load
from moe_core.routing.measures.registry import COACTIVATION_PAIRS, VOCABULARY
from moe_core.routing.measures.vocabulary import token_experts, vocabulary_test
from moe_core.runs import RunFolder

subject, layer = state.subject(), state.selected_layer()
header("What does this expert do, and what is it worth?")
place = st.container()
measured, text = deep_or_probe(subject)
independence_warning(measured)
own = measured.part([layer])
tests = [one.null for one in (VOCABULARY, COACTIVATION_PAIRS) if capability(one, measured.trace).answer == "yes"]
measure_all(own, [(test, ()) for test in tests if test], "Choosing experts at random, to compare with")

load, cells = measured.get(expert_load), measured.get(domain_cells)
run = subject if isinstance(subject, RunFolder) else None  # what only a run of ours knows is left out for others
is_elsewhere = run is not None and run.is_watched()
effects = loaders.ablation(run) if run else None
formed = formed_at(loaders.over_time(run, formation)) if run and run.probe_steps() else None
table = expert_table(load, cells, formed, effects)
with place:
    said = st.empty()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        expert = pick_expert(measured.trace.num_experts, most_telling(table, layer))
        names = name_field(subject, layer, expert)
    with st.expander("All experts", icon=":material/table_rows:", key="experts_all", on_change="rerun") as every:
        if every.open:
            pick_from_table(table, names)
words = follows = None
if vocabulary_test in tests:
    tokens = measured.get(token_experts, layer, expert)
    words = tokens[tokens["text"] != END_OF_TEXT]  # every text begins with it, so it says little of an expert
    follows = own.get(vocabulary_test)
with said:
    answer(
        expert_sentence(
            layer, expert, load=load, cells=cells, tokens=words, vocabulary=follows, effects=effects,
            name=names.name(layer, expert),
        )
    )  # fmt: skip

left, right = st.columns(2)
with left:
    if len(measured.trace.domains) > 1:
        figure = measured.keep(("domains", layer, expert), lambda: expert_domains_figure(cells, layer, expert))
        show_figure(figure, key=figure.name, title="The text it takes", terms=["domain", "lift", "interval"])
    else:
        st.caption(
            "All text is of one domain, as far as is known: whether this expert prefers a kind of text cannot be told."
        )
with right:
    loads = load_while_training(run, own.trace)
    if loads is not None and len(loads):
        history = partial(expert_history_figure, loads, layer, expert)
        figure = measured.keep(("history", layer, expert, len(loads)), history)
        title = "Its load on the probe text, while training" if run and not is_elsewhere else "Its load at each step"
        show_figure(figure, key=figure.name, title=title, terms=["expert load"])
    else:
        figure = measured.keep(("layer load", layer, expert), lambda: layer_load_figure(load, layer, expert))
        title, terms = "Its load, among its layer's", ["expert load", "lift"]
        show_figure(figure, key=figure.name, title=title, terms=terms, on_cell=go_to_cell)
left, right = st.columns([5, 4]) if follows is None else (st.container(), st.container())
if follows is not None:
    with left:
        wanted = where_chosen(measured, layer, expert)
        beside, left = st.columns([2, 3])
    with beside:
        tokens_taken(measured, layer, expert, follows, wanted)
with left:
    neighbours(run, own, layer, expert, names)
with right:
    if run and not is_elsewhere:
        worth(run, effects, layer, expert)
    else:
        st.markdown("#### What it is worth")
        if is_elsewhere:
            st.caption("What is lost without an expert is measured on a model, which is in another training loop.")
        elif isinstance(subject, RoutingFile):
            st.caption(f"What is lost without an expert takes {MODEL}.")
        else:
            st.page_link(INTERVENTIONS, label="Switch it off and see", icon=":material/switch_access_shortcut:")
if follows is None:
    st.caption(prose(f"Its words, and where it is chosen, take {TOKENS}:"))
    st.code(f"{program()} {COMMANDS[TOKENS]}", language=None)
text_caption(measured, text)
