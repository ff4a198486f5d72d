"""Two texts, or one under two models, as two coloured views: side by side, below each other where there is no room."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import streamlit as st

from app import loaders, state
from app.components.page import plain, prose
from app.components.text_choice import OWN, TextChoice, type_text
from app.components.token_view import token_view, view_payload
from moe_core.errors import UsageError
from moe_core.figures.sides import Comparison, TextPairView, side_by_side, texts_of_both
from moe_core.inference.passages import arrays_of, trace_passages
from moe_core.inference.subjects import Live
from moe_core.routing.measures.comparison import rename_experts
from moe_core.routing.token_arrays import TokenArrays
from moe_core.words import sentence

RECORDED = "Text that both have read"
# Keys: the two views; which text; what is typed, its name in the URL; its routing, kept for this session.
VIEW, TEXT, TYPED, TRACED = "compare_view_{}", "compare_text", "compare_typed", "compare_traced"
SAVED = "compare_saved"
LEAST_WIDTH = 430
"""Of a view, in points: in a window below 1,024 the two stand below each other."""


@st.fragment
def show_views(comparison: Comparison, layer: int, models: tuple[Live, Live] | None) -> None:
    """Draw both. `models`: what reads a text of one's own, where both sides can."""
    st.markdown("#### The same text in both" if comparison.same_tokens or models else "#### The two texts")
    options = ([RECORDED] if comparison.has_tokens else []) + ([OWN] if models else [])
    chosen = options[0]
    if len(options) > 1:
        state.preset(TEXT, options, options[0])
        chosen = state.present(
            st.segmented_control("Text", options, required=True, key=TEXT, bind="query-params",
                                 label_visibility="collapsed")
        )  # fmt: skip
    if chosen == OWN and models is not None:
        try:
            pair = _of_own_text(comparison, models)
        except UsageError as error:
            st.info(prose(sentence(str(error))), icon=":material/edit:")
            return
    else:
        pair = comparison.first.measured.keep(("texts", comparison.second.measured), lambda: texts_of_both(comparison))
    st.markdown(plain(pair.words(layer)))
    grid = st.grid(2, min_column_width=LEAST_WIDTH)
    for (letter, side), arrays in zip(comparison.sides, (pair.first, pair.second), strict=True):
        with grid, st.container():
            st.markdown(f"**{letter}: {plain(side.name)}**")
            key = VIEW.format(letter.lower())
            payload = view_payload(arrays, series=f"{id(pair)}-{letter}")
            shown = layer if layer in arrays.layers else arrays.layers[0]
            choice = token_view(payload, layer=shown, key=key, on_layer=partial(state.follow_layer, key))
            if choice.layer is not None and choice.layer != layer:
                st.rerun()


def _of_own_text(comparison: Comparison, models: tuple[Live, Live]) -> TextPairView:
    """What is typed, read by both models once for each text. Raises UsageError where nothing is typed."""
    text = TextChoice(OWN, type_text(TYPED, SAVED, height=100))
    key = (text.digest, comparison.first.name, comparison.second.name, comparison.experts)
    kept = st.session_state.get(TRACED)
    if kept is None or kept[0] != key:
        with st.spinner("Reading the text with both models ..."):
            first, second = (_read(model, text) for model in models)
            if comparison.matches is not None:
                second = _read(models[1], text, comparison)
        kept = st.session_state[TRACED] = (key, side_by_side(first, second, comparable=comparison.comparable))
    pair: TextPairView = kept[1]
    return pair


def _read(model: Live, text: TextChoice, comparison: Comparison | None = None) -> TokenArrays:
    """`comparison`: whose names of experts the model is given."""
    traced = trace_passages(loaders.language_model(model), text.passages(model))
    if comparison is not None and comparison.matches is not None:
        traced = replace(traced, trace=rename_experts(traced.trace, comparison.matches))
    return arrays_of(traced)
