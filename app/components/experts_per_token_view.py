"""How many experts tokens of each class take, where that varies; with a fixed number, one line that says so."""

from __future__ import annotations

import streamlit as st

from app.components.figure import show_figure
from app.components.page import prose
from moe_core.figures.experts_of_classes import experts_per_token_figure
from moe_core.figures.measures import chance_figure
from moe_core.routing.measured import Measured
from moe_core.routing.measures.class_sums import By
from moe_core.routing.measures.experts_per_token import (
    MIN_TYPE_TOKENS,
    experts_per_token_classes,
    experts_per_token_of_types,
    experts_per_token_test,
    experts_per_token_verdict,
    fixed_words,
    varies,
)
from moe_core.routing.measures.registry import EXPERTS_PER_TOKEN
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.words import count_of

LISTED = 12
"""Token types of each end of the list."""


def show_experts_per_token(measured: Measured, layer: int, *, by_label: bool) -> None:
    """The answer, the classes of one layer, every layer against chance, and the tokens that skip most."""
    st.markdown("#### How many experts does each kind of token take?")
    trace = measured.trace
    if not varies(trace):
        st.caption(prose(fixed_words(trace)))
        return
    if isinstance(trace, RoutingCounts):
        st.caption("Which tokens take how many takes a trace of text: counts do not tell tokens apart.")
        return
    by: By = "label" if by_label else "domain"
    test = measured.keep(("experts per token", by), lambda: experts_per_token_test(trace, by=by))
    classes = measured.keep(("experts per token, classes", by), lambda: experts_per_token_classes(trace, by=by))
    figure = experts_per_token_figure(classes, test, layer)
    st.markdown(prose(figure.verdict))
    terms = ["experts per token", "explained variance", "interval", "Benjamini-Hochberg"]
    show_figure(figure, key="experts_per_token", title="", terms=terms)
    if test["p_value"].notna().any():
        show_figure(
            chance_figure(EXPERTS_PER_TOKEN, test),
            key="experts_per_token_explained",
            title="Does the number follow it more than chance, in every layer?",
            terms=["explained variance", "null of labels" if by_label else "null of domains", "p-value", "effect"],
        )
        st.caption(prose(experts_per_token_verdict(test)))
    _show_types(measured)


def _show_types(measured: Measured) -> None:
    types = measured.get(experts_per_token_of_types)
    if types.empty:
        return
    st.markdown("#### Which tokens skip most?")
    ends = types if len(types) <= 2 * LISTED else types.iloc[[*range(LISTED), *range(len(types) - LISTED, len(types))]]
    number = st.column_config.NumberColumn
    st.dataframe(
        ends.assign(token=[repr(str(text)) for text in ends["token"]])[["token", "experts", "low", "high", "tokens"]],
        hide_index=True,
        column_config={
            "token": st.column_config.TextColumn("Token", width=150, pinned=True),
            "experts": number("Experts a token", format="%.2f", help="Mean of all layers."),
            "low": number("95 % from", format="%.2f"),
            "high": number("to", format="%.2f"),
            "tokens": number("Tokens", format="%d"),
        },
    )
    ends_words = f"the {LISTED} with fewest and the {LISTED} with most experts of " if len(ends) < len(types) else ""
    st.caption(
        prose(
            f"Tokens that occur {MIN_TYPE_TOKENS} times or more: {ends_words}{count_of(len(types), 'token type')}. "
            "No test: each interval is of that token alone, and the ends of a long list lie further out by chance."
        )
    )
