"""Follow: what changed between two runs, two steps of one run, or two texts?"""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.page import header, plain
from moe_core.errors import RunError

run = state.selected_run()
other = state.compared()
header("What changed?")
first = run.probe_steps()[:1]
loaders.probe_step(run)
if other is None and len(run.probe_steps()) > 1:
    other = state.Compared(run, first[0])
if other is None:
    raise RunError(f"run {run.name!r} has one snapshot only; choose another run to compare with in the side bar")
when = "its newest state" if other.step is None else f"step {other.step:,}"
st.markdown(plain(f"{run.name}, held against {other.run.name} at {when}."))
