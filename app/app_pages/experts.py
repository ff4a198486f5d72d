"""Look: what does each expert do, and what is it worth?"""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.page import header

run, layer = state.selected_run(), state.selected_layer()
routing = loaders.probe_routing(run)
header("What does each expert do?")

# One line an expert: its load, and the domain it takes the most often beyond its even share.
strongest = routing.specialization.sort_values("lift", ascending=False, kind="stable").drop_duplicates(
    ["layer", "expert"]
)
table = routing.load.merge(strongest[["layer", "expert", "domain", "lift", "uncertain"]], on=["layer", "expert"])
st.dataframe(table, hide_index=True, key="experts_table")
