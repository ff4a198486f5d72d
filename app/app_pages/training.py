"""Follow: is the run learning, and are its experts forming? And start a new one."""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.live_run import follow, log_tail
from app.components.new_run import new_run_form
from app.components.page import header, prose
from moe_core.runs import RunFolder
from moe_core.words import sentence

runs = loaders.runs()
chosen = next((run for run in runs if run.name == st.session_state.get(state.RUN)), None)

if chosen is None:
    none = "There is no run yet" if not runs else "What is chosen in the side bar was not trained here"
    header("Train a model and watch its experts form", f"{none}; the quick size is done in three minutes.")
    new_run_form()
else:
    header(f"Is {chosen.name} learning, and are its experts forming?")
    state.preset_new_run()
    label = "Train another run while this one goes on" if chosen.is_live else "Train a new run"
    with st.expander(label, icon=":material/add:", key=state.NEW_RUN, on_change="rerun") as form:
        if form.open:
            new_run_form()
    if chosen.error is not None:
        st.error(prose(sentence(chosen.error)), icon=":material/broken_image:")
        log = log_tail(RunFolder(chosen.name))
        if log:
            st.caption("The last lines of its log")
            st.code(log, language=None, wrap_lines=True)
    else:
        follow(RunFolder(chosen.name), chosen)
