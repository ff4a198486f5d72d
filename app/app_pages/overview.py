"""Look: what this run or trace is, and whether its routing is healthy, in plain words. Nothing here loads a model."""

from __future__ import annotations

from math import isnan
from pathlib import PurePosixPath

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure, term_help
from app.components.no_run import need
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
    plain,
    show_notes,
)
from app.components.routing_text import first_routing, independence_warning, text_caption
from app.components.watched_run import loss_metric, watch_counts, watched_routing
from moe_core.data.windows import window_words
from moe_core.figures.load import load_map_figure
from moe_core.routing.measures.against_chance import FEW_DOCUMENTS
from moe_core.routing.measures.domains import ONE_DOMAIN, domain_nmi_test, domain_verdict
from moe_core.routing.measures.health import IMBALANCE_LIMIT, describe_model, health
from moe_core.routing.measures.load import expert_load, load_balance
from moe_core.runs import RunFolder, RunSummary
from moe_core.words import number, short_count

LOOK = (
    (TOKENS, "Where does each token of my text go?", "text_fields"),
    (DOMAINS, "Which experts prefer which kind of text?", "category"),
    (EXPERTS, "What does each expert do, and what is it worth?", "hub"),
    (FLOW, "How do tokens travel through the layers?", "alt_route"),
)
CHANGE = (
    (GENERATION, "Which experts write which words?", "edit_note"),
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
made_of = describe_model(
    layers=trace.num_layers, experts=trace.num_experts, top_k=trace.top_k, varying=trace.varying_experts
)
verdict = health(balance)
too_few = (nmi["verdict"] == FEW_DOCUMENTS).any()
domain = "Whether experts know domains takes more text to tell: see Domains."
header(
    f"What is {subject.name}, and is its routing healthy?",
    f"{made_of} {verdict.sentence} {domain if too_few else domain_verdict(nmi)}",
)

if isinstance(subject, RunFolder):
    show_notes(subject.name)
    if is_watched:
        watch_counts(subject.name)
independence_warning(measured)

# Four figures, each beside its chance or target.
loss, busiest, dead, domains = st.columns(4)
if isinstance(subject, RunFolder) and is_watched:
    loss_metric(loss, subject, border=True)
elif isinstance(subject, RunFolder):
    summary = next((item for item in loaders.runs() if item.name == subject.name), RunSummary(subject.name, "broken"))
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
else:
    of = f"{'domain' if len(trace.domains) == 1 else 'domains'}: {', '.join(trace.domains[:3])}"
    more = ", ..." if len(trace.domains) > 3 else ""
    loss.metric(
        "Tokens",
        short_count(trace.num_tokens),
        delta_description=plain(f"{len(trace.domains)} {of}{more}"),
        border=True,
        height="stretch",
    )
worst = verdict.worst
enough = f"up to {IMBALANCE_LIMIT:.0f} is fine" if verdict.state != "too little text" else "too little text to tell"
busiest.metric(
    "Busiest expert",
    "–" if isnan(worst["load_imbalance"]) else f"{number(worst['load_imbalance'])} × mean",
    delta_description=f"95 %: {number(worst['load_low'])} to {number(worst['load_high'])}; {enough}",
    help=term_help("load imbalance"),
    border=True,
    height="stretch",
)
dead.metric(
    "Dead experts",
    f"{verdict.surely_dead:,} of {len(load):,}",
    delta_description=f"{verdict.unseen} not seen in this little text" if verdict.unseen else "0 is the target",
    help=term_help("dead expert"),
    border=True,
    height="stretch",
)
known = nmi.dropna(subset=["p_value"])
best = known.iloc[int(known["effect"].argmax())] if len(known) else None
untested = "one domain only" if (nmi["verdict"] == ONE_DOMAIN).any() else "too little text to tell"
domains.metric(
    "Experts know domains",
    "–" if best is None else f"NMI {number(best['estimate'])}",
    delta_description=untested
    if best is None
    else f"as counted {number(best['nmi'])}, by chance {number(best['null_mean'])}",
    help=term_help("NMI"),
    border=True,
    height="stretch",
)

show_figure(
    load_map_figure(load, balance),
    key="expert_load",
    terms=["expert load", "lift", "load imbalance", "dead expert"],
)
text_caption(measured, text)
if isinstance(subject, RunFolder) and not is_watched:
    st.caption(f"How the loss is scored: {window_words(loaders.config(subject).training.seq_len)}")

st.markdown("#### What to ask next")
left, right = st.columns(2)
for column, questions in ((left, LOOK), (right, CHANGE)):
    for page, question, icon in questions:
        if need(PurePosixPath(page).stem, subject) is None:
            if page == TRAINING and not isinstance(subject, RunFolder):
                question = "How do I train a model of my own?"
            column.page_link(page, label=question, icon=f":material/{icon}:")
