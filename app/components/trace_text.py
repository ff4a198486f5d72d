"""The text of a trace: one document of each domain or one that is chosen, as much of it as the token view takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import streamlit as st

from app import state
from app.components.page import header, plain
from app.components.token_explorer import explore
from app.components.token_view import view_payload
from moe_core.data.tokenizer import END_OF_TEXT, joined
from moe_core.figures.picture_files import csv_bytes
from moe_core.figures.tokens import arrays_of_trace, first_documents, token_choices, visible
from moe_core.inference.passages import TOKEN_LIMIT
from moe_core.routing.measures.experts import layer_verdict

if TYPE_CHECKING:
    from moe_core.routing import RoutingTrace
    from moe_core.routing.measured import Measured

PICKED, START = "trace_document", "trace_start"
"""Keys: the chosen document, of which the URL has the number alone; the first token shown of a long one."""
EACH = "One of each domain"
MOST_DOCUMENTS = 500
"""In the list; of more, evenly spaced ones."""
TITLE_TOKENS, TITLE_CHARACTERS = 16, 60
_SEEN = "trace_link"
"""The document and the token that the URL named last."""


@dataclass(frozen=True)
class Part:
    """The part of a trace that is shown."""

    mask: npt.NDArray[np.bool_]
    """[T]"""
    selected: int | None = None
    """Place in the part of the token that the URL names."""
    link_from: int | None = None
    """Position within its document of the first token; None where the URL names no token of the part."""


def show_trace_text(measured: Measured, layer: int, version: str, *, may_leave: bool = False) -> None:
    """Let a document be chosen and show where each of its tokens went. `version`: another one is another text.
    `may_leave`: whether there is other text to show, which a URL without a document does."""
    trace = measured.tokens
    titles = measured.look(document_titles)
    head = st.container()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        part = _pick(trace, titles)
        if may_leave:
            st.button(
                "Other text", icon=":material/edit:", key="tokens_back", on_click=state.link_token, args=(None, None)
            )
    shown = trace.select(part.mask)
    with head:
        header("Which expert does each token go to?", layer_verdict(shown, layer))
    digest = hashlib.sha256(np.packbits(part.mask).tobytes() + version.encode()).hexdigest()
    payload = view_payload(arrays_of_trace(shown), series=digest[:16])
    explore(shown, payload, layer, selected=part.selected, link_from=part.link_from)
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


def document_titles(trace: RoutingTrace) -> dict[int, str]:
    """What the list calls documents, by their ids: number, domain, first words."""
    ids, firsts = np.unique(trace.document_ids, return_index=True)
    order = np.argsort(firsts, kind="stable")
    if len(order) > MOST_DOCUMENTS:
        order = order[np.linspace(0, len(order) - 1, MOST_DOCUMENTS).astype(int)]
    return {int(ids[place]): _title(trace, int(ids[place]), int(firsts[place])) for place in order.tolist()}


def _title(trace: RoutingTrace, document: int, start: int) -> str:
    own = np.flatnonzero(trace.document_ids[start : start + TITLE_TOKENS] == document) + start
    words = joined(text for i in own if (text := trace.token_text(int(i))) != END_OF_TEXT)
    return f"{document} · {trace.domains[int(trace.domain_ids[start])]} · {visible(words)[:TITLE_CHARACTERS]}"


def _pick(trace: RoutingTrace, titles: dict[int, str]) -> Part:
    """The tokens to show: those of the chosen document, or of one of each domain."""
    linked, token = state.linked_token()
    found = np.flatnonzero(trace.document_ids == linked) if linked is not None else np.array([], np.int64)
    if len(found) and linked is not None and linked not in titles:
        titles = {**titles, linked: _title(trace, linked, int(found[0]))}
    options: list[int | str] = [*([EACH] if len(np.unique(trace.domain_ids)) > 1 else []), *titles]
    is_new = st.session_state.get(_SEEN) != (linked, token)
    st.session_state[_SEEN] = (linked, token)
    if is_new or PICKED not in st.session_state or st.session_state[PICKED] not in options:
        st.session_state[PICKED] = linked if linked is not None and linked in titles else options[0]
    document = st.selectbox(
        "Document", options, key=PICKED, on_change=_link, label_visibility="collapsed",
        format_func=lambda one: one if isinstance(one, str) else titles[one],
    )  # fmt: skip
    if isinstance(document, str):
        return Part(first_documents(trace))
    own = np.flatnonzero(trace.document_ids == document)
    at = np.flatnonzero(trace.positions[own] == (-1 if token is None or document != linked else token))
    place = int(at[0]) if len(at) else None
    start = _start(document, len(own), place if is_new else None)
    shown = own[start : start + TOKEN_LIMIT]
    mask = np.zeros(trace.num_tokens, np.bool_)
    mask[shown] = True
    follows = bool((np.diff(trace.positions[shown]) == 1).all())
    selected = None if place is None or not start <= place < start + len(shown) else place - start
    return Part(mask, selected, int(trace.positions[shown[0]]) if follows else None)


def _start(document: int, tokens: int, place: int | None) -> int:
    """The first token shown of a document; of a long one it can be chosen. `place`: of a token to show."""
    if tokens <= TOKEN_LIMIT:
        return 0
    key, last = f"{START}_{document}", tokens - TOKEN_LIMIT
    if place is not None:
        st.session_state[key] = min(max(0, place - TOKEN_LIMIT // 2), last)
    return int(st.number_input(
        "From token", 0, last, "min", TOKEN_LIMIT // 2, key=key, width=180,
        help=f"Of {tokens:,} tokens, {TOKEN_LIMIT:,} are shown at once.",
    ))  # fmt: skip


def _link() -> None:
    """For callbacks: the chosen document goes into the URL, by its number."""
    picked = st.session_state[PICKED]
    document = picked if isinstance(picked, int) else None
    state.link_token(document, None)
    st.session_state[_SEEN] = (document, None)
