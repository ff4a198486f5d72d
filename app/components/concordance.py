"""Where an expert is chosen: its tokens in their contexts, one a line, as concordances of books are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from moe_core.figures.tokens import visible

if TYPE_CHECKING:
    from moe_core.routing.contexts import Context

CHARACTERS = 60
"""Shown on either side of the token."""


def concordance(contexts: Sequence[Context]) -> pd.DataFrame:
    """Columns before, token, after, domain, weight; the text in one line, with signs for line breaks and tabs."""
    return pd.DataFrame(
        {
            "before": [_line("".join(context.before))[-CHARACTERS:] for context in contexts],
            "token": [visible(context.token) for context in contexts],
            "after": [_line("".join(context.after))[:CHARACTERS] for context in contexts],
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
        height=36 * (min(len(table), 12) + 1),
        column_config={
            "before": text("Before", alignment="right", width="large"),
            "token": text("Token", alignment="center", width="small"),
            "after": text("After", width="large"),
            "domain": text("Domain", width="small"),
            "weight": st.column_config.NumberColumn(
                "Weight", format="%.2f", width="small", help="How strongly the router lets this expert's output count."
            ),
        },
    )


def _line(text: str) -> str:
    return text.replace("\n", "↵").replace("\t", "⇥")
