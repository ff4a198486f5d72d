"""Which router a new run gets and what keeps its load even: two boxes, each with one line on what is chosen."""

from __future__ import annotations

import streamlit as st

from app import state
from app.components.page import plain
from moe_core.config.router import (
    BALANCING_MEANINGS,
    ROUTER_FACTS,
    Balancing,
    RouterKind,
)
from moe_core.words import sentence


def router_choice() -> list[str]:
    """Draw the boxes; return what the choice adds to the trainer's command line, nothing where it is the usual one."""
    left, right = st.columns(2)
    with left:
        kind: RouterKind = st.selectbox(
            "Router", list(ROUTER_FACTS), format_func=_spaced_words, key=state.NEW_ROUTER,
            help="How a token's experts are chosen.",
        )  # fmt: skip
        st.caption(plain(sentence(ROUTER_FACTS[kind].meaning)))
    with right:
        options = balancings(kind)
        state.preset(state.NEW_BALANCING, options, options[0], in_link=False)
        balancing: Balancing = st.selectbox(
            "Balancing", options, format_func=_spaced_words, key=state.NEW_BALANCING,
            help="What keeps some experts from getting all tokens. The first is usual for this router.",
        )  # fmt: skip
        st.caption(plain(sentence(BALANCING_MEANINGS[balancing])))
    chosen = [] if kind == "softmax" else [f"--model.router.kind={kind}"]
    return chosen if balancing == options[0] else [*chosen, f"--model.router.balancing={balancing}"]


def balancings(kind: RouterKind) -> list[Balancing]:
    """What goes with a router, the usual one first; the configuration refuses the rest."""
    facts = ROUTER_FACTS[kind]
    usual = facts.usual_balancing
    if not facts.load_is_learned:
        return [usual]
    others = [one for one in BALANCING_MEANINGS if one != usual and (one != "bias" or facts.takes_bias)]
    return [usual, *others]


def _spaced_words(name: str) -> str:
    return name.replace("_", " ")
