"""Pick a text: what the run holds out of one domain, or what is typed; and its routing by the newest checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from app import loaders, state
from app.components.page import plain
from app.components.progress import progress_bar
from app.components.text_choice import OWN, TextChoice, type_text
from moe_core.errors import UsageError
from moe_core.figures.sides import Side, one_counted_text, one_text
from moe_core.inference.passages import trace_passages
from moe_core.inference.subjects import Live, RoutingFile, Subject
from moe_core.routing.measured import Measured
from moe_core.routing.trace.counts import domain_tokens
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.runs import RunFolder

if TYPE_CHECKING:
    from moe_core.routing import RoutingTrace

TYPED_TEXT = "def total(prices):\n    return sum(prices)\n"


def pick_text(subject: Subject, letter: str, place: int) -> Side:
    """Draw the picker of text `letter`; its choice stands in the URL as text_a, text_b. `place`: the domain that is
    chosen at first. Raises UsageError while there is no text."""
    if isinstance(subject, RoutingFile):
        measured = loaders.trace(subject)
        tokens_M = measured.get(domain_tokens)
        options = [name for name, tokens in zip(measured.trace.domains, tokens_M, strict=True) if tokens]
        if len(options) < 2:
            raise UsageError(f"{subject.name} holds one kind of text only; choose what to hold it against beside it")
    else:
        options = [*loaders.domains(subject), OWN]
    key = f"text_{letter.lower()}"
    state.preset(key, options, options[min(place, len(options) - 1)], plain)
    name = state.present(
        st.segmented_control(f"Text {letter}", options, required=True, key=key, bind="query-params", format_func=plain)
    )
    if not isinstance(subject, RoutingFile):
        if name == OWN:
            return Side("your own text", _typed(subject, f"{key}_typed", f"{key}_saved"))
        with progress_bar("Sending text through the model") as bar:
            if isinstance(subject, RunFolder):
                measured = loaders.deep_routing(subject, bar)
            else:
                measured = loaders.model_routing(subject, bar)
    counts = measured.trace
    if isinstance(counts, RoutingCounts):
        own = measured.keep(("text", name), lambda: Measured(one_counted_text(counts, name, "text")))
        return Side(f"{name} text", own)
    return Side(f"{name} text", measured.look(_of_domain, name))


def _typed(subject: Live, key: str, link: str) -> Measured:
    """What is typed, traced once for each text and checkpoint."""
    text = TextChoice(OWN, type_text(key, link, height=100, text=TYPED_TEXT))
    passages = text.passages(subject)
    loaded = loaders.language_model(subject)
    kept = st.session_state.get(f"{key}_traced")
    if kept is None or kept[0] is not loaded or kept[1] != text.digest:
        traced = trace_passages(loaded, passages)
        kept = st.session_state[f"{key}_traced"] = (loaded, text.digest, Measured(one_text(traced.trace, "text")))
    measured: Measured = kept[2]
    return measured


def _of_domain(trace: RoutingTrace, domain: str) -> Measured:
    if domain not in trace.domains:
        raise UsageError(f"the run keeps no held-out text of {domain!r}; choose another, or {OWN!r}")
    return Measured(one_text(trace.select(trace.domain_ids == trace.domains.index(domain)), "text"))
