"""The side bar: which run, which layer, compared with what. Chosen once, kept on every page and in the URL."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from app import loaders, state
from app.components.page import ago, plain
from moe_core.errors import MoescopeError
from moe_core.runs import RunFolder, RunSummary

REFRESH_SECONDS = 3.0
# More layers than this do not fit side by side in the side bar.
BUTTON_LAYERS = 8
_Colour = Literal["green", "blue", "gray", "orange", "red"]
_BADGES: dict[str, tuple[str, _Colour, str]] = {
    "running": ("live", "green", ":material/radio_button_checked:"),
    "preparing": ("preparing", "green", ":material/hourglass_top:"),
    "finished": ("finished", "blue", ":material/check:"),
    "stopped": ("stopped", "gray", ":material/stop_circle:"),
    "interrupted": ("interrupted", "orange", ":material/power_off:"),
    "failed": ("failed", "red", ":material/error:"),
    "broken": ("broken", "red", ":material/broken_image:"),
}


def pick_run(runs: list[RunSummary]) -> RunSummary | None:
    """Draw the run picker with the chosen run's state, age and key figure. None when there is no run at all."""
    if not runs:
        st.caption("No runs yet.")
        return None
    names = [run.name for run in runs]
    first_sound = next((run.name for run in runs if run.error is None), names[0])
    state.preset_run(names, first_sound)
    st.markdown(":small[Run]")  # a label of its own: the box's would read "Run (required)"
    name = st.selectbox(
        "Run", names, index=None, required=True, key=state.RUN, bind="query-params", label_visibility="collapsed",
        on_change=state.forget_missing_run,
    )  # fmt: skip
    run = next((run for run in runs if run.name == name), runs[0])
    if missing := state.missing_run():
        st.warning(f"There is no run {plain(missing)} here. This is {plain(run.name)}.")
    st.fragment(run_every=REFRESH_SECONDS if run.is_live else None)(_describe)(run.name)
    for other in runs:
        if other.is_live and other.name != run.name:
            st.button(
                f"{plain(other.name)} is training",
                icon=":material/radio_button_checked:",
                help="Show this run",
                on_click=state.open_run,
                args=(other.name,),
                key=f"show_{other.name}",
                type="tertiary",
            )
    return run


def _describe(name: str) -> None:
    """State, age and key figure; a fragment, so that those of a live run stay true."""
    run = next((run for run in loaders.runs() if run.name == name), None)
    if run is None:
        return
    label, colour, icon = _BADGES[run.state]
    if run.is_live and run.steps:
        label = f"live, {run.step / run.steps:.0%}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(label, color=colour, icon=icon)
        if run.updated_at:
            st.caption(ago(run.updated_at))
    if run.unseen_nats is not None:
        st.caption(
            f"{run.unseen_nats:.2f} nats/token on unseen text",
            help="Loss on documents whose templates or sources the run never saw; lower is better.",
        )


def pick_layer(run: RunSummary | None) -> None:
    """Draw the layer picker for the MoE layers of `run`; nothing when its configuration cannot be read."""
    if run is None or run.error is not None:
        return
    try:
        layers = loaders.config(RunFolder(run.name)).model.moe_layers
    except MoescopeError:
        return  # a run that is being prepared has no configuration yet
    state.preset(state.LAYER, layers, layers[-1])
    about = "Layers are counted from 0 at the bottom, where the text comes in."
    if len(layers) <= BUTTON_LAYERS:
        st.segmented_control("Layer", layers, required=True, key=state.LAYER, bind="query-params", help=about)
    else:
        st.selectbox("Layer", layers, index=None, required=True, key=state.LAYER, bind="query-params", help=about)


def pick_comparison(run: RunSummary | None, runs: list[RunSummary]) -> None:
    """Draw "compare with": the other sound runs, and the snapshots of `run`; nothing where there is neither."""
    if run is None or run.error is not None:
        return
    steps = [state.step_option(step) for step in RunFolder(run.name).probe_steps()[:-1]]
    options = [other.name for other in runs if other.name != run.name and other.error is None] + steps
    if not options:
        return
    state.preset(state.COMPARE, options, None)
    st.selectbox(
        "Compare with",
        options,
        index=None,
        key=state.COMPARE,
        bind="query-params",
        placeholder="first snapshot" if steps else "choose a run",
        help="What the Compare page holds this run against: another run, or this one at an earlier step.",
    )
