"""The few experts that stand out, each with its figure, how sure that is, and the way to its page."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import state
from app.components.figure import explain
from app.components.goto import go_to_expert
from app.components.page import plain, prose
from moe_core.inference.named_experts import names_of
from moe_core.routing.measures.standouts import AS_COUNTED, Standouts

_TERMS = ["expert load", "load imbalance", "dead expert", "domain specialization", "ablation", "interval"]
_CERTAINTY = "Intervals of load hold for all experts of all layers at once, as those named here are picked from all."


def show_experts_to_look_at(found: Sequence[Standouts]) -> None:
    """One block a kind, two side by side; an expert's name is a button that goes to its page."""
    st.markdown("#### Experts to look at")
    said: set[str] = set()
    for start in range(0, len(found), 2):
        for one, column in zip(found[start : start + 2], st.columns(2), strict=True):
            with column, st.container(gap="xsmall"):
                _show_kind(one, said)
    explain(_TERMS, key="experts_to_look_at")
    if AS_COUNTED not in said:
        st.caption(_CERTAINTY)


def _show_kind(one: Standouts, said: set[str]) -> None:
    st.markdown(f"**{one.kind.capitalize()}**")
    names, _ = names_of(state.subject())
    for expert in one.experts:
        with st.container(gap=None):
            st.button(
                plain(f"Expert {names.label(expert.layer, expert.expert)} of layer {expert.layer}"),
                icon=":material/arrow_forward:",
                type="tertiary",
                key=f"{one.kind}_{expert.layer}_{expert.expert}",
                on_click=go_to_expert,
                args=(expert.layer, expert.expert),
            )
            st.caption(prose(f"{expert.figure}: {expert.verdict}."))
    if one.more:
        st.caption(f"The same is sure of {one.more:,} more.")
    if one.note and one.note not in said:
        said.add(one.note)
        st.caption(prose(one.note))
