"""Flow of single experts: the strongest streams as rows, and where the tokens of one expert come from and go to."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from app import state
from app.components.expert_card import pick_expert
from app.components.figure import show_figure
from app.components.goto import go_to_expert, go_to_row
from app.components.page import answer
from app.components.routing_text import measure_all
from moe_core.figures.flow_bars import expert_flow_figure
from moe_core.routing.measured import Measured
from moe_core.routing.measures.expert_flow import Direction, expert_flow, expert_flow_verdict, strongest_streams
from moe_core.routing.measures.flow import layer_flow, layer_flow_test

STREAMS = "flow_streams"
_DIRECTIONS: tuple[Direction, Direction] = ("from", "to")
_TITLES = {"from": "Where its tokens come from", "to": "Where they go"}


def show_streams(flow: pd.DataFrame, test: pd.DataFrame) -> None:
    """The strongest streams beyond chance; a selected row goes to the expert that it comes from. Bands of a Sankey
    report no click."""
    streams = strongest_streams(flow, test)
    if streams.empty:
        return
    number = st.column_config.NumberColumn
    with st.expander("Strongest streams, and the experts they come from", icon=":material/table_rows:"):
        st.dataframe(
            streams[["layer", "expert", "next_layer", "next_expert", "probability", "lift"]],
            hide_index=True,
            key=STREAMS,
            on_select=partial(go_to_row, STREAMS, streams[["layer", "expert"]]),
            selection_mode="single-row",
            column_config={
                "layer": number("From layer"),
                "expert": number("From expert"),
                "next_layer": number("To layer"),
                "next_expert": number("To expert"),
                "probability": st.column_config.ProgressColumn(
                    "Share of its tokens", format="percent", min_value=0, max_value=float(streams["probability"].max())
                ),
                "lift": number(
                    "× chance", format="%.1f", help="Times the share that independence of the layers gives."
                ),
            },
        )
        st.caption("Select a row to go to the expert that its stream comes from: the bands above cannot be clicked.")


def show_expert_flow(measured: Measured, around: Measured, layer: int) -> None:
    """One expert of the layer: a picker, its streams on both sides, and the way to its page. A click on a bar follows
    the tokens to the expert there."""
    layers = measured.trace.layers
    place = layers.index(layer)
    needed = layers[max(0, place - 1) : place + 2]
    if not {*needed} <= {*around.trace.layers}:
        around = measured.part(needed)
    measure_all(around, [(layer_flow, ()), (layer_flow_test, ())], "Following tokens through the layers")
    flow, test = around.get(layer_flow), around.get(layer_flow_test)
    streams = strongest_streams(flow[flow["layer"] == layer], test, 1)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        expert = pick_expert(measured.trace.num_experts, 0 if streams.empty else int(streams["expert"].iloc[0]))
        st.button(
            "What does it do?", icon=":material/hub:", key="flow_expert_page", on_click=go_to_expert,
            args=(layer, expert), help=f"Go to expert {expert} of layer {layer}",
        )  # fmt: skip
    for direction, column in zip(_DIRECTIONS, st.columns(2), strict=True):
        frame = expert_flow(flow, test, layer, expert, direction)
        with column:
            st.markdown(f"#### {_TITLES[direction]}")
            answer(expert_flow_verdict(frame, direction))
            if frame["share"].notna().any():
                figure = expert_flow_figure(frame, layer, expert, direction)
                key = f"flow_{direction}"
                show_figure(figure, key=key, title="", on_cell=_follow, terms=["cross-layer flow", "lift"])


def _follow(cell: dict[str, int]) -> None:
    state.open_expert(int(cell["layer"]), int(cell["expert"]))
