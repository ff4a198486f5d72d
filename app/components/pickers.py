"""The side bar: which run, which layer, compared with what. Chosen once, kept on every page and in the URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import streamlit as st

from app import loaders, state
from app.components.open_other import offer_again
from app.components.opened_facts import describe_opened
from app.components.page import ago, plain
from moe_core.errors import MoescopeError
from moe_core.inference.subjects import OPENED, Opened, RoutingFile
from moe_core.routing.measures.domains import domain_nmi_test, strongest_layer
from moe_core.runs import RunFolder, RunSummary
from moe_core.runs.names import is_run_name
from moe_core.words import percent

REFRESH_SECONDS = 3.0
# More layers than this do not fit side by side in the side bar.
BUTTON_LAYERS = 8
_Colour = Literal["green", "blue", "gray", "orange", "red"]
_BADGES: dict[str, tuple[str, _Colour, str]] = {
    "running": ("live", "green", ":material/radio_button_checked:"),
    "preparing": ("preparing", "green", ":material/hourglass_top:"),
    "scoring": ("scoring", "green", ":material/hourglass_bottom:"),
    "finished": ("finished", "blue", ":material/check:"),
    "stopped": ("stopped", "gray", ":material/stop_circle:"),
    "interrupted": ("interrupted", "orange", ":material/power_off:"),
    "failed": ("failed", "red", ":material/error:"),
    "broken": ("broken", "red", ":material/broken_image:"),
}


def pick_subject(runs: list[RunSummary], first: str | None = None) -> RunSummary | Opened | None:
    """Draw the picker of runs and opened traces, with what the chosen one is. None when there is nothing at all.

    `first`: what is chosen where neither the session nor the URL says otherwise; None = the first sound run.
    """
    opened = OPENED.all()
    offered = {one.name: one for one in (*opened, *runs)}
    names = list(offered)
    if not names:
        st.caption("No runs yet.")
        return None
    sound = [run.name for run in runs if run.error is None] or names
    state.preset_run(names, first if first in names else sound[0])
    if state.RUN not in st.query_params:
        _preset_layer(offered[st.session_state[state.RUN]])
        state.write_link(state.RUN, state.LAYER)
    # A label of its own: the box's would read "Run (required)".
    st.markdown(":small[Run, file or model]" if opened else ":small[Run]")
    name = state.present(st.selectbox(
        "Run", names, index=None, required=True, key=state.RUN, bind="query-params", label_visibility="collapsed",
        on_change=state.forget_missing_run,
    ))  # fmt: skip
    if missing := state.missing_run():
        st.warning(_missing(missing, name))
        offer_again(missing)
    state.remember_shown(name)
    run = offered.get(name, offered[names[0]])
    if not isinstance(run, RunSummary):
        describe_opened(run)
        return run
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


def _missing(asked: str, shown: str) -> str:
    if is_run_name(asked) or " " not in asked:
        return f"There is no run {plain(asked)} here. This is {plain(shown)}."
    return f"{plain(asked[:1].upper() + asked[1:])} is not open any more: open it again. This is {plain(shown)}."


def _describe(name: str) -> None:
    """State, age and key figure; a fragment, so that those of a live run stay true."""
    run = next((run for run in loaders.runs() if run.name == name), None)
    if run is None:
        return
    label, colour, icon = _BADGES[run.state]
    if run.is_live and run.steps and run.state != "scoring":
        label = f"live, {percent(run.step / run.steps)}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(label, color=colour, icon=icon)
        if run.updated_at:
            st.caption(ago(run.updated_at))
    if run.unseen_nats is not None and run.state != "scoring":
        st.caption(
            f"{run.unseen_nats:.2f} nats/token on unseen text",
            help="Loss on documents whose templates or sources the run never saw; lower is better.",
        )


def pick_layer(chosen: RunSummary | Opened | None) -> None:
    """Draw the layer picker for the MoE layers of what is chosen; nothing when they cannot be read."""
    layers = _preset_layer(chosen)
    if not layers:
        return
    state.write_link(state.LAYER)
    about = "Layers are counted from 0 at the bottom, where the text comes in."
    state.present(
        st.segmented_control("Layer", layers, required=True, key=state.LAYER, bind="query-params", help=about)
        if len(layers) <= BUTTON_LAYERS
        else st.selectbox("Layer", layers, index=None, required=True, key=state.LAYER, bind="query-params", help=about)
    )


def _preset_layer(chosen: RunSummary | Opened | None) -> Sequence[int]:
    """Its layers, of which one is chosen now; none where they cannot be read, and of a dense model."""
    if chosen is None or (isinstance(chosen, RunSummary) and chosen.error is not None):
        return []
    try:
        layers = _layers(chosen)
        if layers and state.needs_layer(chosen.name, layers):
            st.session_state[state.LAYER] = _layer_at_first(chosen, layers)
    except MoescopeError:
        return []  # a run that is being prepared has no configuration yet
    if layers:
        state.preset(state.LAYER, layers, layers[-1], in_link=state.RUN in st.query_params)  # else both at once
    return layers


def _layer_at_first(chosen: RunSummary | Opened, layers: Sequence[int]) -> int:
    """Of a file the layer that its verdict calls the strongest; the last where it calls none, and of a model."""
    if not isinstance(chosen, RoutingFile):
        return layers[-1]
    with st.spinner("Looking for the layer that tells most ..."):
        layer = strongest_layer(loaders.trace(chosen).get(domain_nmi_test))
    return layers[-1] if layer is None else layer


def _layers(chosen: RunSummary | Opened) -> Sequence[int]:
    if isinstance(chosen, RunSummary):
        return loaders.moe_layers(RunFolder(chosen.name))
    if isinstance(chosen, RoutingFile):
        return loaders.trace(chosen).trace.layers
    return loaders.language_model(chosen).moe_layers


def pick_comparison(chosen: RunSummary | Opened | None, runs: list[RunSummary]) -> None:
    """Draw "compare with": the other sound runs, what is open, and the snapshots of a chosen run; nothing where there
    is none of them."""
    if chosen is None or (isinstance(chosen, RunSummary) and chosen.error is not None):
        return
    is_run = isinstance(chosen, RunSummary)
    steps = [state.step_option(step) for step in RunFolder(chosen.name).probe_steps()[:-1]] if is_run else []
    others = [run.name for run in runs if run.error is None] + [one.name for one in OPENED.all()]
    options = [name for name in others if name != chosen.name] + steps
    if not options:
        return
    state.preset_comparison(options)
    st.selectbox(
        "Compare with",
        options,
        index=None,
        key=state.COMPARE,
        bind="query-params",
        placeholder="first snapshot" if steps else "choose one",
        help="What the Compare page holds this against: another run or trace, or this run at an earlier step.",
    )
