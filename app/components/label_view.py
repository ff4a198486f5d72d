"""Tokens by what they are themselves: which experts prefer which node type of code, or which label of the user's."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import state
from app.components.figure import show_figure
from app.components.goto import go_to_cell
from app.components.map_view import map_places, pick_map_view
from app.components.page import answer, prose
from app.components.routing_text import amount
from moe_core.data.syntax import LANGUAGE_OF_DOMAIN, NODE_TYPE
from moe_core.figures.domains import label_map_figure
from moe_core.figures.measures import chance_figure
from moe_core.routing.measured import Measured
from moe_core.routing.measures.domains import preferred
from moe_core.routing.measures.labelled_tokens import beyond_token_words, label_cells, label_nmi_test, label_verdict
from moe_core.routing.measures.registry import LABEL_NMI
from moe_core.routing.measures.token_kinds import KIND, kind_labelled
from moe_core.routing.trace.routing_counts import RoutingCounts

TOKENS_BY, DOMAIN = "tokens_by", "domain"
"""Session key, in the URL, and the choice that is always there."""
MOST_CELLS = 200
"""Rows of the table of preferences."""


def pick_labelling(measured: Measured) -> str:
    """Draw the choice of what tokens are told apart by, where there is one; and what is chosen."""
    options = _labellings(measured)
    state.preset(TOKENS_BY, options, DOMAIN)
    if len(options) == 1:
        return DOMAIN
    return state.present(
        st.segmented_control(
            "Tokens by",
            options,
            required=True,
            key=TOKENS_BY,
            bind="query-params",
            help="A domain is of a whole text. A node type, of code, is of one token: the part of the syntax tree that "
            "it begins in. A kind of token is told by its text. The command `label` gives tokens labels of your own.",
        )
    )


def _labellings(measured: Measured) -> Sequence[str]:
    trace = measured.trace
    if isinstance(trace, RoutingCounts):
        return [DOMAIN]
    own = [trace.labelling] if trace.labelling else []
    has_code = bool(trace.vocabulary) and any(name in LANGUAGE_OF_DOMAIN for name in trace.domains)
    return list(
        dict.fromkeys([DOMAIN, *own, *([NODE_TYPE] if has_code else []), *([KIND] if trace.vocabulary else [])])
    )


def labelled_by(measured: Measured, labelling: str) -> Measured:
    """The routing with these labels: its own ones, node types or kinds of token. Raises UsageError where tree-sitter is
    missing."""
    if getattr(measured.trace, "labelling", "") == labelling:
        return measured
    if labelling == KIND:
        return measured.keep(("kinds",), lambda: Measured(kind_labelled(measured.tokens), measured.made_at))
    from moe_core.inference.token_labels import languages_of, syntax_labelled

    languages = languages_of(measured.trace.domains)
    return measured.keep(("syntax",), lambda: Measured(syntax_labelled(measured.tokens, languages), measured.made_at))


def show_labels(measured: Measured, layer: int, text: str) -> None:
    """The answer, the map of one layer, the test of every layer and the table of preferences."""
    test, cells = measured.get(label_nmi_test), measured.get(label_cells)
    place = st.empty()
    view = pick_map_view(measured, layers=False)
    figure = label_map_figure(cells, test, layer, view, map_places(measured, view))
    with place:
        answer(f"Layer {layer}: {figure.verdict}")
    terms = ["label of a token", "lift", "interval", "null of labels", "Benjamini-Hochberg"]
    show_figure(figure, key=figure.name, on_cell=go_to_cell, terms=terms)
    labelled = f"{int(test['tokens'].iloc[0]):,} of them with one of {len(set(cells['domain']))} labels"
    st.caption(prose(f"{amount(measured)}: {text}; {labelled}. Faded: not distinguishable from its documents."))
    st.dataframe(_preferences(cells, layer, str(test["labelling"].iloc[0])), hide_index=True)
    show_figure(
        chance_figure(LABEL_NMI, test),
        key="label_nmi",
        title="Is it more than chance, in every layer?",
        terms=["NMI", "null of labels", "p-value", "effect", "token share"],
    )
    st.caption(prose(" ".join(filter(None, [label_verdict(test), beyond_token_words(test)]))))


def _preferences(cells: pd.DataFrame, layer: int, what: str) -> pd.DataFrame:
    """The sure preferences of a layer, the surest first, as a table."""
    own = preferred(cells[cells["layer"] == layer]).head(MOST_CELLS)
    return pd.DataFrame(
        {
            what: own["domain"],
            "expert": own["expert"],
            "tokens": own["domain_tokens"],
            "takes": own["share"].round(3),
            "its documents do": own["expected"].round(3),
            "lift": own["lift"].round(2),
            "p": own["p_adjusted"].round(4),
        }
    )
