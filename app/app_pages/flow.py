"""Look: how do tokens travel from layer to layer, and which experts work together?"""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.page import header
from moe_core.figures.run_figures import token_map_figure

run = state.selected_run()
header("How do tokens travel through the layers?")
trace = loaders.probe(run).trace
show_figure(token_map_figure(trace), key="token_layer_map", terms=["token", "layer", "expert"])
st.caption(f"The first tokens of {trace.num_tokens:,} of the probe text, at step {loaders.probe_step(run):,}.")
