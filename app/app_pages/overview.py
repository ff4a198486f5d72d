"""Look: what this run is, and whether its routing is healthy, in plain words. Nothing here loads the model."""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure, term_help
from app.components.page import (
    COMPARE,
    DOMAINS,
    EXPERTS,
    FLOW,
    GENERATION,
    INTERVENTIONS,
    TIME,
    TOKENS,
    TRAINING,
    header,
)
from moe_core.figures.run_figures import load_map_figure
from moe_core.routing import verdicts
from moe_core.routing.baselines import FEW_DOCUMENTS
from moe_core.runs import RunSummary

run = state.selected_run()
model = loaders.config(run).model
routing = loaders.probe_routing(run)
summary = next((item for item in loaders.runs() if item.name == run.name), RunSummary(run.name, "broken"))

# The answer: what it is, is it healthy, do experts know domains.
made_of = verdicts.describe_model(layers=len(model.moe_layers), experts=model.num_experts, top_k=model.top_k)
health = verdicts.routing_health(routing.balance)
too_few = (routing.nmi["verdict"] == FEW_DOCUMENTS).any()
domain = "Whether experts know domains takes more text to tell: see Domains."
header(
    f"What is {run.name}, and is its routing healthy?",
    f"{made_of} {health} {domain if too_few else verdicts.domain_verdict(routing.nmi)}",
)

# Four figures, each beside its chance or target.
loss, busiest, dead, domains = st.columns(4)
nats, unigram = summary.unseen_nats, summary.unigram_nats
loss.metric(
    "Loss on unseen text",
    "–" if nats is None else f"{nats:.2f} nats",
    None if nats is None or unigram is None else f"{nats - unigram:+.2f}",
    delta_color="inverse",
    delta_description=None if unigram is None else f"vs guessing, {unigram:.2f}",
    help=term_help("loss"),
    border=True,
    height="stretch",
)
worst = routing.balance.iloc[int(routing.balance["load_imbalance"].argmax())]
busiest.metric(
    "Busiest expert",
    f"{worst['load_imbalance']:.2f} × mean",
    delta_description=f"1 is even, {verdicts.IMBALANCE_LIMIT:.0f} still fine",
    help=term_help("load imbalance"),
    border=True,
    height="stretch",
)
dead.metric(
    "Dead experts",
    f"{routing.balance['dead_experts'].sum():.0f} of {len(routing.load)}",
    delta_description="0 is the target",
    help=term_help("dead expert"),
    border=True,
    height="stretch",
)
known = routing.nmi.dropna(subset=["p_value"])
best = known.iloc[int(known["effect"].argmax())] if len(known) else None
domains.metric(
    "Experts know domains",
    "–" if best is None else f"NMI {verdicts.number(best['nmi'])}",
    delta_description="too little text to tell" if best is None else f"by chance {verdicts.number(best['null_mean'])}",
    help=term_help("NMI"),
    border=True,
    height="stretch",
)

show_figure(
    load_map_figure(routing.load, routing.balance),
    key="expert_load",
    terms=["expert load", "lift", "load imbalance", "dead expert"],
)
st.caption(
    f"Measured on {routing.trace.num_tokens:,} tokens of held-out text that stay the same all through training, "
    f"at step {loaders.probe_step(run):,}."
)

st.markdown("#### What to ask next")
left, right = st.columns(2)
left.page_link(TOKENS, label="Where does each token of my text go?", icon=":material/text_fields:")
left.page_link(DOMAINS, label="Which experts prefer which kind of text?", icon=":material/category:")
left.page_link(EXPERTS, label="What does each expert do, and what is it worth?", icon=":material/hub:")
left.page_link(FLOW, label="How do tokens travel through the layers?", icon=":material/alt_route:")
right.page_link(GENERATION, label="Which experts write which words?", icon=":material/edit_note:")
right.page_link(INTERVENTIONS, label="What changes without an expert?", icon=":material/switch_access_shortcut:")
right.page_link(TIME, label="When did each expert become what it is?", icon=":material/timeline:")
right.page_link(COMPARE, label="What changed between two runs, steps or texts?", icon=":material/compare_arrows:")
right.page_link(TRAINING, label="How did it learn, and how do I train my own?", icon=":material/model_training:")
