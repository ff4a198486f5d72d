"""Where an expert is chosen: its tokens in their contexts, one a line, as concordances of books are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from moe_core.data.tokenizer import END_OF_TEXT, joined
from moe_core.figures.tokens import visible

if TYPE_CHECKING:
    from moe_core.routing.measures.concordance import Context

START = "(start)"
CHARACTERS = 32
"""Shown on either side of the token."""
WINDOW = 20
"""Tokens on either side that fill them, also where tokens are short."""
ROWS_SHOWN = 12


def concordance(contexts: Sequence[Context]) -> pd.DataFrame:
    """Columns before, token, after, domain, weight; the text in one line, with signs for line breaks and tabs."""
    return pd.DataFrame(
        {
            "before": [_one_line(joined(context.before))[-CHARACTERS:] for context in contexts],
            "token": [shown_token(context.token) for context in contexts],
            "after": [_one_line(joined(context.after))[:CHARACTERS] for context in contexts],
            "domain": [context.domain for context in contexts],
            "weight": [float(context.score) for context in contexts],
        }
    )


def show_concordance(table: pd.DataFrame, key: str) -> None:
    """Draw it: what stands before is set flush right, so that the tokens stand below each other. Text stays text."""
    text = st.column_config.TextColumn
    st.dataframe(
        table,
        hide_index=True,
        key=key,
        height=36 * (min(len(table), ROWS_SHOWN) + 1),
        column_config={
            "before": text("Before", alignment="right", width=215),
            "token": text("Token", alignment="center", width=80),
            "after": text("After", width=215),
            "domain": text("Domain", width=72),
            "weight": st.column_config.NumberColumn(
                "Weight", format="%.2f", width=60, help="How strongly the router lets this expert's output count."
            ),
        },
    )


def shown_token(text: str) -> str:
    """A token in a cell: white space as signs, and a word for the one that stands before every text."""
    return START if text == END_OF_TEXT else visible(text)


def _one_line(text: str) -> str:
    return text.replace(END_OF_TEXT, f"{START} ").replace("\n", "↵").replace("\t", "⇥")
