"""Look: can this model read beyond the length it was trained on, and does its routing hold there?"""

from __future__ import annotations

import streamlit as st

from app import effect_loaders, state
from app.components.figure import show_figure
from app.components.long_context_view import offer_reading, show_when
from app.components.one_choice import pick
from app.components.page import answer, header, plain
from moe_core.config.rope_schemes import ROPE_SCHEMES
from moe_core.figures.beyond_length import (
    QUANTITIES,
    load_by_position_figure,
    loss_by_position_figure,
    routing_by_position_figure,
)
from moe_core.routing.measures.beyond_length import reading_verdict, routing_verdict, when_not_to_conclude

FACTOR, SCHEME, ROUTING = "factor", "scheme", "routing_by_position"  # keys, in the URL
run, layer = state.selected_run(), state.selected_layer()
header("Can this model read beyond the length it was trained on, and does its routing hold there?")
place = st.empty()
factor = pick("Stretch by", FACTOR, [2, 4, 8], 4, "How many times the trained length each RoPE scheme is made for.")
kept = effect_loaders.long_context(run, factor)
if kept is None:
    offer_reading(run, factor, None)
else:
    found = kept.found
    with place.container():
        answer(reading_verdict(found))
        answer(routing_verdict(found))
    figure = loss_by_position_figure(found)
    show_figure(figure, key=figure.name, terms=["trained length", "RoPE scheme", "loss", "interval"], named=False)
    st.caption("Upright grey line: the trained length. 0: as good as windows of that length. Bars: 95 % intervals.")
    show_when(run, kept)
    st.markdown(f"#### Routing of layer {layer} by position")
    names = {title: quantity for quantity, title in QUANTITIES.items()}
    state.preset(ROUTING, list(names), next(iter(names)))
    title = state.present(
        st.segmented_control("What of the routing", list(names), required=True, key=ROUTING, bind="query-params")
    )
    figure = routing_by_position_figure(found, layer, names[title])
    show_figure(
        figure, key=figure.name, title="", terms=["flips by position", "router entropy", "expert load"], named=False
    )
    scheme = pick("Load under", SCHEME, list(ROPE_SCHEMES), "none", "Under which RoPE scheme the text was read.")
    figure = load_by_position_figure(found, layer, scheme)
    answer(figure.verdict)
    show_figure(figure, key=figure.name, terms=["expert load", "NMI with position", "p-value"])
    st.markdown("#### When not to conclude")
    st.markdown(plain(when_not_to_conclude(found)))
    offer_reading(run, factor, kept)
