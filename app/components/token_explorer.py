"""The token view with the figures below it: all layers of the tokens around the selected one, and its path."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import state
from app.components.figure import show_figure
from app.components.page import errors_as_boxes
from app.components.token_view import token_view
from moe_core.figures.tokens import WINDOW, token_map_figure, token_path_figure

if TYPE_CHECKING:
    from moe_core.routing import RoutingTrace

VIEW = "tokens_view"
_TERMS = ["token", "layer", "expert", "router score", "router entropy", "loss"]


@st.fragment
def explore(
    trace: RoutingTrace,
    payload: dict[str, Any],
    layer: int,
    *,
    selected: int | None = None,
    link_from: int | None = None,
) -> None:
    """The tokens of `trace` as `payload` shows them; selecting one reruns only this. See token_view."""
    with errors_as_boxes():
        choice = token_view(
            payload,
            layer=layer,
            key=VIEW,
            on_layer=partial(state.follow_layer, VIEW),
            selected=selected,
            link_from=link_from,
        )
        if choice.layer is not None and choice.layer != layer:
            st.rerun()
        start = (choice.token or 0) - WINDOW // 2
        show_figure(token_map_figure(trace, start, layer), key="token_layer_map", terms=_TERMS)
        if choice.token is not None:
            path = token_path_figure(trace, choice.token, layer)
            show_figure(path, key="token_path", title=path.verdict, terms=["expert", "router score", "top-k"])
