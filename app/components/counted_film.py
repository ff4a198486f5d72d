"""Counts of several steps as a film: the load over the steps, and the map at the one that is chosen."""

from __future__ import annotations

import streamlit as st

from app import state
from app.components.figure import show_figure
from app.components.page import answer, errors_as_boxes, header, prose
from app.components.routing_text import text_caption
from moe_core.figures.domains import domain_map_figure
from moe_core.figures.load import MAX_STEPS, load_map_figure, load_over_time_figure
from moe_core.routing.measured import Measured
from moe_core.routing.measures.capability import SNAPSHOTS
from moe_core.routing.measures.domains import domain_cells, domain_nmi_test
from moe_core.routing.measures.health import UNKNOWN_SPREAD
from moe_core.routing.measures.load import expert_load, load_balance, load_by_step
from moe_core.routing.trace.routing_counts import RoutingCounts

NEWEST, VIEW = "time_newest", "time_counted"
"""Session keys: the newest step when the film was drawn last; what is shown of a step."""
LOAD, DOMAINS = "Load", "Domains"


def film_of_counts(measured: Measured, text: str, layer: int) -> None:
    """The Time page of a file of counts; of more than MAX_STEPS steps, neighbouring ones together."""
    counts = measured.trace
    assert isinstance(counts, RoutingCounts)
    joined = measured.keep(("joined",), lambda: counts.joined(MAX_STEPS))
    over_time = measured.keep(
        ("load over time", layer), lambda: load_over_time_figure(load_by_step(joined.of_layers([layer])), layer)
    )
    header("How did the load change from step to step?", over_time.verdict)
    show_figure(over_time, key="load_over_time", title="", terms=["expert load", "load imbalance"])
    if joined is not counts:
        st.caption(f"Of {len(counts.steps):,} steps, neighbouring ones are drawn together, named by the last of them.")
    st.markdown("#### What the experts took at each step")
    step_of_counts(joined, layer)
    st.caption(prose(f"Which tokens an expert took, and when it became what it is, takes {SNAPSHOTS}."))
    text_caption(measured, text)


OF_ONE_STEP = "Whether the routing of one step is healthy cannot be told, as its sources are not told apart; as counted"


@st.fragment
def step_of_counts(counts: RoutingCounts, layer: int) -> None:
    """One step, chosen by a slider: the load of all layers, or the domains of one. A fragment: it reruns by itself."""
    with errors_as_boxes():
        steps = [step for step, tokens_G in zip(counts.steps, counts.tokens, strict=True) if tokens_G.any()]
        step, what = steps[-1], LOAD
        if len(steps) > 1:
            if st.session_state.get(NEWEST) == st.session_state.get(state.STEP, st.query_params.get(state.STEP)):
                st.session_state[state.STEP] = step  # who looks at the newest goes on doing so
            st.session_state[NEWEST] = step
            state.preset(state.STEP, steps, step, in_link=False)
            step = st.select_slider("Step", steps, step, key=state.STEP, bind="query-params")
        if len(counts.domains) > 1:
            what = st.segmented_control("Show", [LOAD, DOMAINS], default=LOAD, required=True, key=VIEW)
        found = counts.at(step)
        if what == LOAD:
            figure = load_map_figure(expert_load(found), load_balance(found))
            answer(f"Step {step:,}: {figure.verdict.replace(UNKNOWN_SPREAD, OF_ONE_STEP)}")
            show_figure(figure, key="expert_load", title="", terms=["expert load", "lift", "load imbalance"])
        else:
            own = found.of_layers([layer])
            figure = domain_map_figure(domain_cells(own), domain_nmi_test(own), layer)
            answer(f"Step {step:,}, layer {layer}: {figure.verdict}")
            show_figure(figure, key="domains_of_step", title="", terms=["domain", "lift", "interval"])
