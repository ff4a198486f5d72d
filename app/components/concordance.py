"""Where an expert is chosen: its tokens in their contexts, one a line, as concordances of books are printed.

All its tokens are looked through on the server; the browser gets a page of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from app.components.goto import go_to_token
from app.components.page import plain
from moe_core.data.tokenizer import END_OF_TEXT, joined
from moe_core.figures.tokens import visible
from moe_core.inference.text_search import searchable_text
from moe_core.routing.measures.concordance import Context, contexts_of_tokens, tokens_of_expert
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.routing.measured import Measured
    from moe_core.routing.trace.types import Float64Array, Int64Array

START = "(start)"
CHARACTERS = 32
"""Shown on either side of the token, for the usual context."""
WINDOWS = {"usual": 20, "long": 60, "longest": 200}
"""Tokens on either side. The usual ones fill CHARACTERS also where tokens are short."""
USUAL_WIDTH = 165
"""Points of the usual context on either side: all columns fit a window of 1024 points."""
PAGE_ROWS = 40
ROWS_SHOWN = 12
SAMPLE, STRONGEST = "A sample", "Strongest first"
ALL_DOMAINS = "all domains"
TABLE, FOUND, DOMAIN, LENGTH, ORDER, PAGE, ROW = (
    f"contexts_{name}" for name in ("table", "found", "domain", "length", "order", "page", "row")
)
"""Keys of this part of the page. What is looked for is text, so it does not stand in the URL."""


def concordance(contexts: Sequence[Context], characters: int | None = CHARACTERS) -> pd.DataFrame:
    """Columns before, token, after, domain, weight; the text in one line, with signs for line breaks and tabs.

    `characters` on either side, None = all.
    """
    return pd.DataFrame(
        {
            "before": [_one_line(joined(context.before))[-(characters or 0) :] for context in contexts],
            "token": [shown_token(context.token) for context in contexts],
            "after": [_one_line(joined(context.after))[:characters] for context in contexts],
            "domain": [context.domain for context in contexts],
            "weight": [float(context.score) for context in contexts],
        }
    )


def show_contexts(measured: Measured, layer: int, expert: int, wanted: str) -> None:
    """The places where the expert is chosen that have `wanted` in their context: a page of them, and one in full."""
    trace = measured.tokens
    tokens, scores = measured.look(tokens_of_expert, layer, expert)
    if not len(tokens):
        st.caption("No token of this text chose it.")
        return
    window = _pick_length()
    fits = measured.look(searchable_text).near(tokens, wanted, window)
    domain = st.session_state.get(DOMAIN, ALL_DOMAINS)
    if domain in trace.domains:
        fits &= trace.domain_ids[tokens] == trace.domains.index(domain)
    places, is_sample = _order(np.flatnonzero(fits), scores)
    pages = -(-len(places) // PAGE_ROWS)
    page = min(st.session_state.get(PAGE, 1), max(pages, 1))
    shown = places[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    found = contexts_of_tokens(trace, tokens[shown], scores[shown], window=window)
    if not found:
        st.caption(f"None of its {count_of(len(tokens), 'token')} has that in its context.")
        return
    _show_table(found, CHARACTERS * window // WINDOWS["usual"])
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        first = (page - 1) * PAGE_ROWS + 1
        rows = f"{first:,} to {first + len(shown) - 1:,} of " if pages > 1 else ""
        rows = f"{len(shown)} at random of " if is_sample else rows
        holding = int(fits.sum())
        of = "" if holding == len(tokens) else f", of {len(tokens):,} in all"
        st.caption(f"{rows}{count_of(holding, 'place')}{of}. A cell shows its whole row; a tick opens it in Tokens.")
        if pages > 1:
            st.pagination(pages, key=PAGE)
    _show_row(found)


def look_for() -> str:
    """The piece of text that an expert's tokens and contexts are narrowed to; "" = all."""
    wanted = st.text_input(
        "Find", key=FOUND, placeholder="text in its tokens and contexts", on_change=_first_page, width=240,
        max_chars=200, icon=":material/search:",
    )  # fmt: skip
    return wanted or ""


def filters(measured: Measured) -> None:
    """Which contexts, in what order and how long."""
    domains = measured.tokens.domains
    if len(domains) > 1:
        if st.session_state.get(DOMAIN) not in {ALL_DOMAINS, *domains}:
            st.session_state[DOMAIN] = ALL_DOMAINS  # a domain of another run
        st.selectbox("Domain", [ALL_DOMAINS, *domains], key=DOMAIN, on_change=_first_page, width=150)
    st.segmented_control(
        "Order", [SAMPLE, STRONGEST], default=SAMPLE, required=True, key=ORDER, on_change=_first_page,
        help="A sample shows what the expert mostly does; the strongest, where the router is surest of it.",
    )  # fmt: skip
    st.segmented_control(
        "Context", list(WINDOWS), default="usual", required=True, key=LENGTH, on_change=_first_page,
        help=f"{', '.join(map(str, WINDOWS.values()))} tokens on either side.",
    )  # fmt: skip


def shown_token(text: str) -> str:
    """A token in a cell: white space as signs, and a word for the one that stands before every text."""
    return START if text == END_OF_TEXT else visible(text)


def _pick_length() -> int:
    return WINDOWS.get(st.session_state.get(LENGTH, "usual"), WINDOWS["usual"])


def _order(places: Int64Array, scores: Float64Array) -> tuple[Int64Array, bool]:
    """The places that are shown, the strongest first, and whether they are a sample: as many as a page has, at random
    but always the same."""
    is_sample = st.session_state.get(ORDER) != STRONGEST and len(places) > PAGE_ROWS
    if is_sample:
        places = np.sort(np.random.default_rng(0).choice(places, PAGE_ROWS, replace=False))
    return places[np.argsort(-scores[places], kind="stable")], is_sample


def _first_page() -> None:
    st.session_state[PAGE] = 1


def _show_table(found: Sequence[Context], characters: int) -> None:
    """What stands before is set flush right, so that the tokens stand below each other. Text stays text."""
    text = st.column_config.TextColumn
    width = USUAL_WIDTH * max(1, characters // CHARACTERS)
    st.dataframe(
        concordance(found, characters),
        hide_index=True,
        key=TABLE,
        on_select=partial(_clicked, found),
        selection_mode=["single-row", "single-cell"],
        height=36 * (min(len(found), ROWS_SHOWN) + 1),
        column_config={
            "before": text("Before", alignment="right", width=width),
            "token": text("Token", alignment="center", width=75),
            "after": text("After", width=width),
            "domain": text("Domain", width=72),
            "weight": st.column_config.NumberColumn(
                "Weight", format="%.2f", width=60, help="How strongly the router lets this expert's output count."
            ),
        },
    )


def _clicked(found: Sequence[Context]) -> None:
    """For the callback of the table: a ticked row leads to Tokens, a cell shows its row in full."""
    selection = st.session_state[TABLE].selection
    st.session_state[ROW] = None
    if rows := selection.get("rows"):
        go_to_token(found[rows[0]].document_id, found[rows[0]].position)
    elif cells := selection.get("cells"):
        chosen = found[cells[0][0]]
        st.session_state[ROW] = (chosen.document_id, chosen.position)


def _show_row(found: Sequence[Context]) -> None:
    """The chosen context in full, as text, with a way to it."""
    chosen = next((one for one in found if (one.document_id, one.position) == st.session_state.get(ROW)), None)
    if chosen is None:
        return
    before, token, after = concordance([chosen], None).iloc[0, :3]
    with st.container(border=True):
        st.markdown(f"{plain(before)}:primary-background[{plain(token)}]{plain(after)}")
        st.button(
            "Open in Tokens", icon=":material/text_fields:", key="contexts_open", type="tertiary",
            on_click=go_to_token, args=(chosen.document_id, chosen.position),
        )  # fmt: skip


def _one_line(text: str) -> str:
    return text.replace(END_OF_TEXT, f"{START} ").replace("\n", "↵").replace("\t", "⇥")
