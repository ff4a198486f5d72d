"""The probe's snapshots as a film: the same text at every evaluation, coloured by the experts of that step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import streamlit as st

from app.components.token_view import TokenArrays, view_payload
from moe_core.runs import RunFolder

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import RoutingTrace

TOKENS_OF_EACH_DOMAIN = 120
"""Shown of the first document of every domain, so that the film needs no scrolling."""
MOST_DOMAINS = 5
WATCH_SECONDS = 5.0


@st.fragment(run_every=WATCH_SECONDS)
def watch_snapshots(name: str, known: int) -> None:
    """Draw nothing; show the page anew once a run that trains has a snapshot more than `known`."""
    if len(RunFolder(name).probe_steps()) != known:
        st.rerun()


def snapshot_payload(trace: RoutingTrace, series: str) -> dict[str, Any]:
    """What the token view is sent for one snapshot; one `series` for all of a run, so that a selected token stays."""
    return view_payload(snapshot_arrays(trace), series=series)


def snapshot_arrays(trace: RoutingTrace) -> TokenArrays:
    """The beginning of the first document of each domain, as the token view takes it."""
    return arrays_of_trace(trace.select(first_documents(trace)))


def first_documents(trace: RoutingTrace) -> npt.NDArray[np.bool_]:
    """bool [T]: the beginning of the first document of each domain."""
    mask = np.zeros(trace.num_tokens, dtype=np.bool_)
    shown = 0
    for domain in range(len(trace.domains)):
        own = np.flatnonzero(trace.domain_ids == domain)
        if own.size and shown < MOST_DOMAINS:
            document = own[trace.document_ids[own] == trace.document_ids[own[0]]]
            mask[document[:TOKENS_OF_EACH_DOMAIN]] = True
            shown += 1
    return mask


def arrays_of_trace(shown: RoutingTrace) -> TokenArrays:
    """All tokens of a trace as the token view takes them; their texts are what the trace's vocabulary says."""
    from moe_core.data.tokenizer import END_OF_TEXT
    from moe_core.routing.metrics import token_entropy

    texts = [shown.token_text(i) for i in range(shown.num_tokens)]
    first = np.flatnonzero(np.diff(shown.document_ids, prepend=shown.document_ids[0] - 1))
    has_entropy = shown.router_logits is not None
    return TokenArrays(
        tokens=[None if text == END_OF_TEXT else text.encode("utf-8", "replace") for text in texts],
        layers=shown.layers,
        num_experts=shown.num_experts,
        indices=shown.router_indices,
        scores=shown.router_scores,
        entropies=np.stack([token_entropy(shown, layer) for layer in shown.layers]) if has_entropy else None,
        domain_ids=shown.domain_ids,
        domains=shown.domains,
        starts=[int(place) for place in first],
    )
