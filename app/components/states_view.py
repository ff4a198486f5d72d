"""Do states of one text lie together? Halves of held-out documents on a plane, read when it is asked for."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import effect_loaders, state
from app.components.figure import show_figure
from app.components.measuring import SOON_SECONDS, show_measuring
from app.components.page import prose
from app.effect_loaders import StatesOfHalves
from moe_core.figures.state_plane import states_figure
from moe_core.inference.measuring_job import start_measuring
from moe_core.once import Once
from moe_core.progress import Progress
from moe_core.runs import RunFolder

DOMAIN, EXPERT = COLOURS = "Domain", "Expert"
COLOUR = "states_colour"  # key, in the URL
_FAILED = "The states could not be read"


def show_states(run: RunFolder, layer: int) -> None:
    """The section, with a button before the first reading."""
    st.markdown("#### Do states of one text lie together?")
    place = effect_loaders.states_place(run)
    if place.made is None:
        _offer(place, run)
    if (made := place.made) is None:
        return
    state.preset(COLOUR, COLOURS, DOMAIN)
    by = state.present(st.segmented_control("Colour", COLOURS, required=True, key=COLOUR, bind="query-params"))
    moe_layers = [int(name.removeprefix("layer_")) for name in map(str, made.frame) if name.startswith("layer_")]
    chosen = layer if by == EXPERT and layer in moe_layers else None
    st.markdown(prose(made.verdict))
    figure = states_figure(made.frame, made.domains, made.verdict, chosen)
    show_figure(figure, key=figure.name, title="", terms=["domain", "expert", "interval"])
    st.caption(
        prose(
            "A point is the mean of the last states of half a document (circle: first half, triangle: second) "
            f"that was read alone; the plane shows what differs most. Alignment {made.alignment:.2f}, uniformity "
            f"{made.uniformity:.2f}: the smaller, the nearer are two halves and the more evenly spread are all."
        )
    )


def _offer(place: Once[StatesOfHalves], run: RunFolder) -> None:
    """The button that starts it, or the bar while it runs."""
    key = f"states {effect_loaders.key_of(run)}"
    if show_measuring(key, _FAILED):
        return
    offer = st.empty()
    with offer.container():
        st.markdown(
            "Both halves of each held-out document are read apart. Does the model put them nearer to each other "
            "than to other documents, and do domains and experts lie apart?"
        )
        is_wanted = st.button("Read the halves", key="states_start", type="primary", icon=":material/play_arrow:")
    if is_wanted:
        offer.empty()
        job = start_measuring(key, f"states of {run.name}", partial(_measure, place, run))
        job.wait(SOON_SECONDS)
        if job.is_running or job.error is not None:
            show_measuring(key, _FAILED)


def _measure(place: Once[StatesOfHalves], run: RunFolder, progress: Progress) -> None:
    place.once(lambda: effect_loaders.read_states(run, progress))
