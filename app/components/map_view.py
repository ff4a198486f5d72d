"""The order of experts and the part of a map that is shown: one choice for the maps of all pages, in the URL."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import state
from moe_core.figures.expert_order import ORDERS, MapView, Order, expert_places
from moe_core.routing.measured import Measured
from moe_core.routing.measures.domains import domain_cells
from moe_core.routing.measures.load import expert_load

ORDER, LAYERS, EXPERTS, RANKS = "order", "layers", "experts", "ranks"
"""Session keys, in the URL. A part of the ranks is not one of the numbers: each has its own key."""
FEW_LAYERS, FEW_EXPERTS = 8, 16
"""Up to so many of both, a map is large enough as it is."""
_ABOUT = (
    "Of every map of experts. By load and by preferred domain each layer's experts stand by rank: a column is then a "
    "place and not one expert, and a cell says its expert when you point at it."
)


def pick_map_view(measured: Measured, *, layers: bool = True) -> MapView:
    """Draw the picker of the order and, of a large model, that of the part; and what is chosen. `layers`: the map shows
    several layers, so that a part of them can be chosen."""
    trace = measured.trace
    orders = ORDERS if len(trace.domains) > 1 else ORDERS[:-1]
    state.preset(ORDER, orders, orders[0])
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        order: Order = state.present(
            st.segmented_control(
                "Order of experts",
                orders,
                required=True,
                key=ORDER,
                bind="query-params",
                persist_state="session",
                help=_ABOUT,
            )
        )
        view = MapView(order)
        if trace.num_experts > FEW_EXPERTS or (layers and trace.num_layers > FEW_LAYERS):
            with st.popover("Part of the map", icon=":material/zoom_in:"):
                view = _pick_part(order, trace.layers if layers else [], trace.num_experts)
    return view


def map_places(measured: Measured, view: MapView) -> pd.DataFrame:
    """Where the experts of this routing stand in the view's order: see expert_order.expert_places."""
    is_domain = view.order == "preferred domain" and len(measured.trace.domains) > 1
    cells = measured.get(domain_cells) if is_domain else None
    load = measured.get(expert_load)
    return measured.keep(("places", view.order), lambda: expert_places(load, view.order, cells))


def _pick_part(order: Order, layers: Sequence[int], experts: int) -> MapView:
    drawn = _pick_range("Layers", LAYERS, layers) if len(layers) > 1 else None
    if order == "number":
        places = _pick_range("Experts, by number", EXPERTS, range(experts))
    else:
        ranks = _pick_range("Ranks within the layer", RANKS, range(1, experts + 1))
        places = None if ranks is None else (ranks[0] - 1, ranks[1] - 1)
    return MapView(order, drawn, places)


def _pick_range(label: str, key: str, options: Sequence[int]) -> tuple[int, int] | None:
    """The first and the last of the chosen ones; None where all are."""
    whole = (options[0], options[-1])
    chosen = st.session_state.get(key)
    if chosen is not None and not {*chosen} <= {*options}:
        st.session_state[key] = whole  # of another model
    found = state.present(
        st.select_slider(label, list(options), whole, key=key, bind="query-params", persist_state="session")
    )
    return None if found == whole else found
