"""A text on colours of what a change of the model does to each token's loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from app import loaders, state
from app.components.change import FORCE, Change
from app.components.figure import explain
from app.components.page import errors_as_boxes, plain
from app.components.token_view import TokenArrays, token_view, view_payload
from app.components.token_view_passages import TOKEN_LIMIT, Passage, examples, fit
from moe_core.figures.export import csv_bytes
from moe_core.routing import verdicts

if TYPE_CHECKING:
    from app.subjects import Live
    from moe_core.evaluation.effects import TokenEffects
    from moe_core.inference.loaded import LanguageModel, Loaded

# Session keys: which text, what was typed, the view, the last text that was read with its effects.
SOURCE, TYPED, VIEW, READ = "loss_source", "loss_typed", "loss_view", "loss_read"
ALL, OWN = "One of each domain", "Your own text"
OWN_TEXT = """The court ordered the bank to repay the loan of 12,500 euros by 31 March.

def total(prices):
    return sum(prices)
"""
EXAMPLE_TOKENS = 600
DOCUMENTS_OF_ONE_DOMAIN = 3


def show_loss(subject: Live, loaded: LanguageModel, change: Change) -> None:
    """Let a text be chosen, and show what the change does to each of its tokens."""
    st.markdown("#### Which words does it cost?")
    domains = loaders.domains(subject)
    options = [ALL, *domains, OWN] if len(domains) > 1 else [*domains, OWN]
    state.preset(SOURCE, options, options[0])
    source = str(st.segmented_control("Text", options, required=True, key=SOURCE, persist_state="session"))
    own = ""
    if source == OWN:
        about = f"The first {TOKEN_LIMIT:,} tokens are read. The text stays on this computer."
        own = st.text_area("Text", OWN_TEXT, key=TYPED, height=120, persist_state="session", help=about,
                           label_visibility="collapsed", placeholder="Type or paste text")  # fmt: skip
        if not own:
            st.info("There is no text yet: type or paste some, then press Ctrl+Enter.", icon=":material/edit:")
            return
    _explore(subject, loaded, change, source, own)


@st.fragment
def _explore(subject: Live, loaded: LanguageModel, change: Change, source: str, own: str) -> None:
    with errors_as_boxes("The change of loss could not be measured"):
        effects, payload = _read(subject, loaded, change, source, own)
        forced = change.mode == FORCE
        st.markdown(plain(verdicts.text_loss_verdict(effects.delta, chosen(effects, change), forced=forced)))
        choice = token_view(payload, layer=change.layer, key=VIEW, on_layer=_follow)
        if choice.layer is not None and choice.layer != change.layer:
            st.rerun()
        st.caption(
            "A token is foreseen by the one before it: where that one had chosen the expert, the change meets it."
        )
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            explain(["loss", "nats", "token", "expert"], key="loss_explain")
            st.download_button(
                "All tokens as CSV", lambda: csv_bytes(table(effects)),
                "change_of_loss.csv", "text/csv", key="loss_csv", type="tertiary", icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip


def _follow() -> None:
    state.follow_layer(VIEW)


def _read(
    subject: Live, loaded: LanguageModel, change: Change, source: str, own: str
) -> tuple[TokenEffects, dict[str, Any]]:
    """The effects and the view's payload; kept until another text, change or checkpoint is asked for."""
    digest = hashlib.sha256(own.encode("utf-8", "surrogatepass")).hexdigest()
    asked = (subject.name, id(loaded), loaded.name, change, source, digest)
    if st.session_state.get(READ, (None,))[0] != asked:
        if source == OWN:
            passages = [Passage("your text", own)]
        else:
            held_out = loaders.example_text(subject)
            chosen_domains = loaders.domains(subject) if source == ALL else [source]
            passages = examples(held_out, chosen_domains, 0, 1 if source == ALL else DOCUMENTS_OF_ONE_DOMAIN)
        with st.spinner("Reading the text with and without the change ...", show_time=True):
            effects = passage_effects(loaded, passages, change, TOKEN_LIMIT if source == OWN else EXAMPLE_TOKENS)
            series = hashlib.sha256(repr((asked[0], asked[2], source, digest)).encode()).hexdigest()[:16]
            payload = view_payload(arrays_of_effects(loaded, effects, change), series=series, mode="change")
        st.session_state[READ] = (asked, effects, payload)
    _, effects, payload = st.session_state[READ]
    return effects, payload


def table(effects: TokenEffects) -> pd.DataFrame:
    """One row a token: document, position, text, loss before and after, change, KL."""
    trace = effects.trace
    return pd.DataFrame(
        {
            "document": trace.document_ids,
            "position": trace.positions,
            "domain": [trace.domains[i] for i in trace.domain_ids],
            "token": [trace.token_text(i) for i in range(trace.num_tokens)],
            "loss_before": effects.losses_before,
            "loss_after": effects.losses_after,
            "change": effects.delta,
            "kl": effects.kl,
        }
    )


def passage_effects(
    loaded: Loaded | LanguageModel, passages: Sequence[Passage], change: Change, limit: int = TOKEN_LIMIT
) -> TokenEffects:
    """Read each passage alone, with and without the change; each is cut to its part of `limit` tokens."""
    from data_gen import Document
    from moe_core.evaluation.ablation import token_effects

    share = max(limit // max(len(passages), 1) - 1, 1)  # one is the end-of-text before it
    documents = [
        Document(fit(passage.text, loaded.tokenizer, share), passage.domain, f"passage {number}", "")
        for number, passage in enumerate(passages)
    ]
    return token_effects(loaded, documents, change.intervention)


def arrays_of_effects(loaded: Loaded | LanguageModel, effects: TokenEffects, change: Change) -> TokenArrays:
    """Text, routing before the change, and change of loss; tokens that had chosen the expert are marked."""
    from moe_core.routing.metrics import token_entropy

    trace, tokenizer = effects.trace, loaded.tokenizer
    token_bytes = {int(i): tokenizer.token_bytes(int(i)) for i in np.unique(trace.token_ids)}
    return TokenArrays(
        tokens=[None if i == tokenizer.end_of_text else token_bytes[int(i)] for i in trace.token_ids],
        layers=trace.layers,
        num_experts=trace.num_experts,
        indices=trace.router_indices,
        scores=trace.router_scores,
        entropies=np.stack([token_entropy(trace, layer) for layer in trace.layers]),
        losses=effects.losses_before,
        changes=effects.delta,
        # The same in every layer shown: the dots say whom the change meets, wherever the reader scrubs.
        marks=np.broadcast_to(chosen(effects, change), trace.router_indices.shape[:2]),
        mark_label=f"had chosen expert {change.expert} in layer {change.layer}",
        domain_ids=trace.domain_ids,
        domains=trace.domains,
        starts=np.flatnonzero(np.diff(trace.document_ids, prepend=-1)).tolist(),
    )


def chosen(effects: TokenEffects, change: Change) -> npt.NDArray[np.bool_]:
    """bool [T]: tokens that had chosen the expert before the change."""
    trace = effects.trace
    own: npt.NDArray[np.bool_] = trace.router_indices[trace.layer_position(change.layer)] == change.expert
    return np.asarray(own.any(axis=1))
