"""The text of a trace: one document of each domain or one that is chosen, as much of it as the token view takes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import streamlit as st

from app import loaders, state
from app.components.page import header, plain
from app.components.token_explorer import explore
from app.components.token_view import view_payload
from moe_core.data.tokenizer import END_OF_TEXT, joined
from moe_core.figures.picture_files import csv_bytes
from moe_core.figures.tokens import arrays_of_trace, first_documents, token_choices, visible
from moe_core.inference.passages import TOKEN_LIMIT
from moe_core.routing.measures.experts import layer_verdict

if TYPE_CHECKING:
    from moe_core.inference.subjects import RoutingFile
    from moe_core.routing import RoutingTrace

# Keys: the chosen document, in the URL; the first token shown of a long one.
DOCUMENT, START = "document", "trace_start"
EACH = "One of each domain"
MOST_DOCUMENTS = 500
"""In the list; of more, evenly spaced ones."""
TITLE_TOKENS, TITLE_CHARACTERS = 16, 60


def show_trace_text(file: RoutingFile, layer: int) -> None:
    """Let a document be chosen and show where each of its tokens went."""
    measured = loaders.trace(file)
    trace = measured.tokens
    head = st.container()
    titles = measured.look(document_titles)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        mask = _pick(trace, titles)
    shown = trace.select(mask)
    with head:
        header("Which expert does each token go to?", layer_verdict(shown, layer))
    digest = hashlib.sha256(np.packbits(mask).tobytes() + str(loaders.stamp(file.path)).encode()).hexdigest()
    explore(shown, view_payload(arrays_of_trace(shown), series=digest[:16]), layer)
    st.download_button(
        "All tokens as CSV", lambda: csv_bytes(token_choices(shown, 0, shown.num_tokens)),
        "tokens.csv", "text/csv", key="tokens_csv", type="tertiary", icon=":material/download:", on_click="ignore",
    )  # fmt: skip
    parts = [f"{len(titles):,} of the documents can be chosen."] if len(titles) >= MOST_DOCUMENTS else []
    if measured.is_sampled:
        parts.append(f"They are a sample of {trace.num_tokens:,} of {measured.trace.num_tokens:,} tokens.")
    if not trace.vocabulary:
        parts.append("The trace carries no text of its tokens: their ids are shown.")
    st.caption(plain(" ".join([f"From {trace.source or 'an unnamed model'}.", *parts])))


def document_titles(trace: RoutingTrace) -> dict[str, int]:
    """Document ids by what the list calls them: place, domain, first words."""
    ids, firsts = np.unique(trace.document_ids, return_index=True)
    order = np.argsort(firsts, kind="stable")
    if len(order) > MOST_DOCUMENTS:
        order = order[np.linspace(0, len(order) - 1, MOST_DOCUMENTS).astype(int)]
    titles = {}
    for place in order.tolist():
        start = int(firsts[place])
        own = np.flatnonzero(trace.document_ids[start : start + TITLE_TOKENS] == ids[place]) + start
        words = joined(text for i in own if (text := trace.token_text(int(i))) != END_OF_TEXT)
        domain = trace.domains[int(trace.domain_ids[start])]
        titles[f"{ids[place]} · {domain} · {visible(words)[:TITLE_CHARACTERS]}"] = int(ids[place])
    return titles


def _pick(trace: RoutingTrace, titles: dict[str, int]) -> npt.NDArray[np.bool_]:
    """bool [T]: tokens to show."""
    several = len(np.unique(trace.domain_ids)) > 1
    options = [EACH, *titles] if several else list(titles)
    state.preset(DOCUMENT, options, options[0])
    title = state.present(
        st.selectbox("Document", options, key=DOCUMENT, bind="query-params", index=None, required=True,
                     label_visibility="collapsed")
    )  # fmt: skip
    if title not in titles:
        return first_documents(trace)
    own = np.flatnonzero(trace.document_ids == titles[title])
    start = 0
    if len(own) > TOKEN_LIMIT:
        last = len(own) - TOKEN_LIMIT
        start = int(st.number_input(
            "From token", 0, last, 0, TOKEN_LIMIT // 2, key=f"{START}_{titles[title]}", width=180,
            help=f"Of {len(own):,} tokens, {TOKEN_LIMIT:,} are shown at once.",
        ))  # fmt: skip
    mask = np.zeros(trace.num_tokens, np.bool_)
    mask[own[start : start + TOKEN_LIMIT]] = True
    return mask
