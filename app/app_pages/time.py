"""Follow: when did each expert become what it is? The routing at every snapshot of training."""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.page import header
from moe_core.figures.run_figures import load_map_figure
from moe_core.routing import metrics

run = state.selected_run()
steps = run.probe_steps()
loaders.probe_step(run)  # says what to do before the first
header("When did each expert become what it is?")
step = st.select_slider("Training step", steps, value=steps[-1], key="time_step") if len(steps) > 1 else steps[-1]
probe = loaders.probe(run, step)
figure = load_map_figure(probe.get(metrics.expert_load), probe.get(metrics.load_balance))
show_figure(figure, key="expert_load", title=f"Load of every expert at step {step:,}", terms=["expert load", "lift"])
