"""The field in which one gives an expert a name, and the names that there are."""

from __future__ import annotations

import streamlit as st

from app.components.page import prose
from moe_core.errors import MoescopeError
from moe_core.inference.named_experts import name_expert, names_of
from moe_core.inference.subjects import Subject
from moe_core.runs.expert_names import MOST_CHARACTERS, ExpertNames
from moe_core.words import sentence

_REFUSED = "expert_name_refused"
"""(key of the field, why): what was typed there last and could not be kept."""


def name_field(subject: Subject, layer: int, expert: int) -> ExpertNames:
    """Draw it for this expert; what is typed is kept with the run or the file at once. Returns all names.

    Another browser's name for it appears when the page is drawn next; what could not be kept stays to be mended.
    """
    key = f"expert_name_{subject.name}_{layer}_{expert}"
    names, wrong = names_of(subject)
    refused, why = st.session_state.get(_REFUSED, ("", ""))
    if refused != key:
        st.session_state[key] = names.name(layer, expert)
    st.text_input(
        "Name", key=key, placeholder="give it a name", max_chars=MOST_CHARACTERS, width=260,
        on_change=_keep, args=(subject, layer, expert, key),
        help="Kept with the run, or beside the opened file, and shown on all pages and in the report. Empty: no name.",
    )  # fmt: skip
    if refused == key:
        st.error(prose(sentence(why)), icon=":material/error:")
    if wrong:
        st.warning(prose(f"The names that were given are not shown: {wrong}."), icon=":material/warning:")
    return names


def _keep(subject: Subject, layer: int, expert: int, key: str) -> None:
    st.session_state.pop(_REFUSED, None)
    try:
        name_expert(subject, layer, expert, st.session_state[key])
    except MoescopeError as error:
        st.session_state[_REFUSED] = (key, str(error))
