"""Change: what happens when an expert is switched off, or forced?"""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.page import header
from moe_core.figures.run_figures import load_map_figure

run = state.selected_run()
header("What happens without an expert?")
routing = loaders.probe_routing(run)
show_figure(load_map_figure(routing.load, routing.balance), key="expert_load", terms=["expert load", "lift"])
st.caption("The experts that can be switched off, and what each of them does now.")
