"""What a file of routing can answer, and what would be needed for the rest: the table that `open` prints."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.components.page import prose
from moe_core.program import program
from moe_core.routing.measured import Measured
from moe_core.routing.measures.capability import capabilities, remedies
from moe_core.words import sentence


def show_what_can_be_told(measured: Measured) -> None:
    """Every question with its answer, and the commands that bring what is missing; folded."""
    found = capabilities(measured.trace)
    told = sum(one.answer != "no" for one in found)
    with st.expander(f"{told} of {len(found)} questions can be told; what would the others take?",
                     icon=":material/checklist:", key="what_can_be_told"):  # fmt: skip
        st.dataframe(
            pd.DataFrame(
                {
                    "question": [one.measure.question for one in found],
                    "answer": [one.answer for one in found],
                    "needs": [one.needs for one in found],
                }
            ),
            hide_index=True,
            key="capabilities",
            height=36 * (len(found) + 1),
            column_config={
                "question": st.column_config.TextColumn("Question", width="large"),
                "answer": st.column_config.TextColumn("Can be told", width="small"),
                "needs": st.column_config.TextColumn("For the rest it takes", width="large"),
            },
        )
        st.caption('"As counted" is the figure, without a word on whether it is more than chance.')
        for command, needs in remedies(found).items():
            st.caption(prose(f"{needs[:1].upper()}{needs[1:]}:"))
            st.code(f"{program()} {command}", language=None)


def counting_notes(measured: Measured) -> None:
    """What a reader of these counts must know; a trace has no such notes. Text from a file: shown as written."""
    for note in getattr(measured.trace, "notes", ()):
        st.caption(prose(sentence(note)))
