"""Follow: when did each expert become what it is? The routing at every snapshot of training."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.page import answer, errors_as_boxes, header
from app.components.snapshots import snapshot_payload, watch_snapshots
from app.components.token_view import token_view
from moe_core.figures.formation import formation_figure
from moe_core.figures.run_figures import domain_map_figure, load_map_figure
from moe_core.routing import baselines, metrics
from moe_core.runs import RunFolder

TEXT, DOMAINS, LOAD = "Text", "Domains", "Load"
SHOWN, VIEW = "time_shown", "time_view"


@st.fragment
def film(run: RunFolder, steps: list[int], layer: int) -> None:
    """One snapshot, chosen by the slider; moving it reruns only this."""
    with errors_as_boxes():
        with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
            state.preset(state.STEP, steps, steps[-1])
            step = steps[-1]
            if len(steps) > 1:
                step = st.select_slider("Training step", steps, key=state.STEP, bind="query-params", width="stretch")
            what = st.segmented_control("Show", [TEXT, DOMAINS, LOAD], default=TEXT, required=True, key=SHOWN)
        snapshot = loaders.probe(run, step)
        if what == TEXT:
            payload = snapshot_payload(snapshot.trace, series=f"{run.path}")
            choice = token_view(payload, layer=layer, key=VIEW, on_layer=partial(state.follow_layer, VIEW))
            if choice.layer is not None and choice.layer != layer:
                st.rerun()
        elif what == DOMAINS:
            specialization = snapshot.get(metrics.domain_specialization)
            figure = domain_map_figure(specialization, snapshot.get(baselines.domain_nmi), layer)
            answer(f"Step {step:,}, layer {layer}: {figure.verdict}")
            if len(snapshot.trace.domains) > 1:
                show_figure(figure, key=figure.name, title="", terms=["domain", "lift", "interval"])
        else:
            figure = load_map_figure(snapshot.get(metrics.expert_load), snapshot.get(metrics.load_balance))
            answer(f"Step {step:,}: {figure.verdict}")
            show_figure(figure, key="expert_load", title="", terms=["expert load", "lift", "load imbalance"])


run, layer = state.selected_run(), state.selected_layer()
loaders.probe_step(run)  # says what to do before the first
steps = run.probe_steps()
formation = loaders.over_time(run, metrics.formation)
figure = formation_figure(formation, layer)
header("When did each expert become what it is?", figure.verdict)
if any(item.is_live and item.name == run.name for item in loaders.runs()):
    watch_snapshots(run.name, len(steps))
    st.caption(
        "The run is being trained: what it is now need not be what it will be. New snapshots appear by themselves."
    )
if len(steps) > 1:
    show_figure(figure, key=figure.name, title="", terms=["expert", "layer"])

st.markdown("#### What the experts took at each step")
film(run, steps, layer)
events = loaders.metrics(run, "event")
if len(events):
    st.markdown("#### What became of them, in words")
    st.dataframe(
        events[["step", "message"]].iloc[::-1],
        hide_index=True,
        key="time_events",
        height=min(36 * (len(events) + 1), 320),
        column_config={"step": st.column_config.NumberColumn("Step", width="small"), "message": "What happened"},
    )
