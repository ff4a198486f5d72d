"""A text on colours of what a change of the model does to each token's loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from app import loaders, state
from app.components.figure import explain
from app.components.page import errors_as_boxes, prose
from app.components.text_choice import OWN, TextChoice, pick_source, type_text
from app.components.token_view import token_view, view_payload
from moe_core.errors import UsageError
from moe_core.figures.picture_files import csv_bytes
from moe_core.inference.passages import TOKEN_LIMIT, Passage, fit
from moe_core.routing.instruments.change import FORCE, Change
from moe_core.routing.measures.causes import text_loss_verdict
from moe_core.routing.token_arrays import TokenArrays
from moe_core.words import sentence

if TYPE_CHECKING:
    from moe_core.evaluation.effects import TokenEffects
    from moe_core.inference.protocol import LanguageModel, Loaded
    from moe_core.inference.subjects import Live

# Session keys: which text, what was typed, the view, the last text that was read with its effects.
SOURCE, TYPED, VIEW, READ = "loss_text", "loss_typed", "loss_view", "loss_read"


def show_loss(subject: Live, loaded: LanguageModel, change: Change) -> None:
    """Let a text be chosen, and show what the change does to each of its tokens."""
    st.markdown("#### Which words does it cost?")
    source = pick_source(loaders.domains(subject), SOURCE)
    _explore(
        subject,
        loaded,
        change,
        TextChoice(source, type_text(TYPED, state.LOSS_SAVED, height=120) if source == OWN else ""),
    )


@st.fragment
def _explore(subject: Live, loaded: LanguageModel, change: Change, text: TextChoice) -> None:
    with errors_as_boxes("The change of loss could not be measured"):
        try:
            effects, payload = _read(subject, loaded, change, text)
        except UsageError as error:
            st.info(prose(sentence(str(error))), icon=":material/edit:")
            return
        several = len(change.experts) > 1
        verdict = text_loss_verdict(
            effects.delta, chosen(effects, change), forced=change.mode == FORCE, several=several
        )
        st.markdown(prose(verdict))
        choice = token_view(payload, layer=change.layer, key=VIEW, on_layer=partial(state.follow_layer, VIEW))
        if choice.layer is not None and choice.layer != change.layer:
            st.rerun()
        st.caption(
            "A token is foreseen by the one before it: where that one had chosen "
            f"{'one of them' if several else 'the expert'}, the change meets it."
        )
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            explain(["loss", "nats", "token", "expert"], key="loss_explain")
            st.download_button(
                "All tokens as CSV", lambda: csv_bytes(table(effects)),
                "change_of_loss.csv", "text/csv", key="loss_csv", type="tertiary", icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip


def _read(
    subject: Live, loaded: LanguageModel, change: Change, text: TextChoice
) -> tuple[TokenEffects, dict[str, Any]]:
    """The effects and the view's payload; kept until another text, change or checkpoint is asked for."""
    asked = (subject.name, id(loaded), loaded.name, change, text.digest)
    if st.session_state.get(READ, (None,))[0] != asked:
        with st.spinner("Reading the text with and without the change ...", show_time=True):
            effects = passage_effects(loaded, text.passages(subject), change, text.limit)
            series = hashlib.sha256(repr((loaded.name, text.digest)).encode()).hexdigest()[:16]
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
    from moe_core.data.document import Document
    from moe_core.evaluation.ablation import token_effects

    share = max(limit // max(len(passages), 1) - 1, 1)  # one is the end-of-text before it
    documents = [
        Document(fit(passage.text, loaded.tokenizer, share), passage.domain, f"passage {number}", "")
        for number, passage in enumerate(passages)
    ]
    return token_effects(loaded, documents, change.intervention)


def arrays_of_effects(loaded: Loaded | LanguageModel, effects: TokenEffects, change: Change) -> TokenArrays:
    """Text, routing before the change, and change of loss; tokens that had chosen the expert are marked."""
    from moe_core.routing.measures.decisions import token_entropy

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
        mark_label=f"had chosen {mark_words(change)}",
        domain_ids=trace.domain_ids,
        domains=trace.domains,
        starts=np.flatnonzero(np.diff(trace.document_ids, prepend=-1)).tolist(),
    )


def chosen(effects: TokenEffects, change: Change) -> npt.NDArray[np.bool_]:
    """bool [T]: tokens that had chosen one of the experts before the change; all of them, where they are forced."""
    trace = effects.trace
    own = [
        (trace.router_indices[trace.layer_position(layer)] == expert).any(axis=1) for layer, expert in change.experts
    ]
    return np.asarray(np.all(own, axis=0) if change.mode == FORCE else np.any(own, axis=0))


def mark_words(change: Change) -> str:
    """What tokens with a dot had chosen: "expert 5 in layer 2", "one of 3 experts"."""
    if len(change.experts) == 1:
        return f"expert {change.expert} in layer {change.layer}"
    return f"{'all' if change.mode == FORCE else 'one'} of {len(change.experts)} experts"
