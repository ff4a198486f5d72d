"""Two routings of the same tokens: the one number, where they differ and whether that was close."""

from __future__ import annotations

from math import isnan

import streamlit as st

from app.components.figure import show_figure, term_help
from app.components.page import plain, prose
from moe_core.figures.sides import Comparison
from moe_core.routing.measures.agreement import agreement_verdict, fine_tuning_verdict, part_percent
from moe_core.routing.measures.flip_accumulation import accumulation_verdict
from moe_core.words import percent

AGREEMENT_TERMS = ["agreement", "interval", "token", "top-k"]
MARGIN_TERMS = ["margin at a flip", "closer choice", "flips that carry on", "interval"]


def show_agreement(comparison: Comparison, *, is_fine_tuned: bool) -> None:
    """The share of identical choices with what it may be by chance, by layer, and the margins where they differ."""
    found = comparison.agreement()
    with st.container(horizontal=True):
        for name, part in (("Identical choices", found.all_choices), ("Identical first choices", found.first_choice)):
            share = part_percent(part)
            interval = "" if isnan(part.low) else f"95 %: {share(part.low)} to {share(part.high)}; "
            st.metric(name, share(part.value), border=True, help=term_help("agreement"),
                      delta_description=f"{interval}{percent(part.chance)} by chance")  # fmt: skip
    st.markdown(prose(agreement_verdict(found)))
    if is_fine_tuned:
        st.markdown(prose(f"If B was fine-tuned from A: {fine_tuning_verdict(found, comparison.movers().frame)}"))
    if found.is_complete:
        return
    show_figure(comparison.agreement_by_layer(), key="agreement_by_layer", terms=AGREEMENT_TERMS)
    margins = comparison.margins()
    if margins.frame["at_flips"].notna().any():
        show_figure(margins, key="flip_margins", terms=MARGIN_TERMS)
    st.caption(plain(margins.verdict))
    st.caption(plain(accumulation_verdict(comparison.accumulation())))
