"""Look: which expert does each token of a text go to, layer by layer?"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from app import loaders, state
from app.components.page import header
from app.components.token_explorer import explore
from app.components.token_view import view_payload
from app.components.token_view_passages import (
    TOKEN_LIMIT,
    Passage,
    TracedPassages,
    arrays_of,
    examples,
    trace_passages,
)
from app.components.trace_text import show_trace_text
from app.subjects import Live, TraceFile
from moe_core.errors import UsageError
from moe_core.figures.export import csv_bytes
from moe_core.figures.tokens import token_choices
from moe_core.routing import verdicts

ALL, OWN = "One of each domain", "Your own text"
OWN_TEXT = """The court ordered the bank to repay the loan of 12,500 euros by 31 March.

def total(prices):
    return sum(prices)

It rained all night, and in the morning the garden was green again.
"""
# Session keys of this page: the last traced text with its payload, which examples are shown, of what.
TRACED, NUMBER, SOURCE = "tokens_traced", "tokens_example", "tokens_source"
DOCUMENTS_OF_ONE_DOMAIN = 3
EXAMPLE_TOKENS = 600  # in all, so that they fit the view without scrolling far


def next_examples() -> None:
    st.session_state[NUMBER] = st.session_state.get(NUMBER, 0) + 1


def traced_passages(subject: Live, source: str, own: str) -> tuple[TracedPassages, dict[str, Any], list[Passage]]:
    """The chosen text through the chosen run's newest checkpoint; kept until another one is asked for."""
    number = st.session_state.get(NUMBER, 0)
    digest = hashlib.sha256(own.encode("utf-8", "surrogatepass")).hexdigest()
    asked = (subject.name, loaded.name, id(loaded), source, number, digest)
    if st.session_state.get(TRACED, (None,))[0] != asked:
        held_out = [] if source == OWN else loaders.example_text(subject)
        if source == OWN:
            passages = [Passage("your text", own)]
        elif source == ALL:
            passages = examples(held_out, domains, number)
        else:
            passages = examples(held_out, [source], number, DOCUMENTS_OF_ONE_DOMAIN)
        if not passages:
            raise UsageError(f"there is no held-out text of {source!r}; choose another, or {OWN!r}")
        with st.spinner("Sending the text through the model ...", show_time=True):
            traced = trace_passages(loaded, passages, TOKEN_LIMIT if source == OWN else EXAMPLE_TOKENS)
            payload = view_payload(arrays_of(traced), series=hashlib.sha256(repr(asked).encode()).hexdigest()[:16])
        st.session_state[TRACED] = (asked, traced, payload, passages)
    _, traced, payload, passages = st.session_state[TRACED]
    return traced, payload, passages


def trace_file(traced: TracedPassages) -> bytes:
    """The trace as Parquet, for `main.py plots --trace` and other tools."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        traced.trace.save(path)
        return path.read_bytes()


subject, layer = state.subject(), state.selected_layer()
if isinstance(subject, TraceFile):
    show_trace_text(subject, layer)
    st.stop()
loaded = loaders.language_model(subject)
domains = loaders.domains(subject)
head = st.container()

with st.container(horizontal=True, vertical_alignment="bottom"):
    options = [ALL, *domains, OWN] if len(domains) > 1 else [*domains, OWN]
    state.preset(SOURCE, options, options[0])  # another run may have other domains
    source = st.segmented_control("Text", options, required=True, key=SOURCE, persist_state="session")
    if source != OWN:
        hint = "Other documents that the run was not trained on"
        st.button("Other examples", icon=":material/refresh:", key="tokens_other", on_click=next_examples, help=hint)
own = ""
if source == OWN:
    about = f"The first {TOKEN_LIMIT:,} tokens are shown. The text stays on this computer."
    own = st.text_area("Text", OWN_TEXT, key="tokens_text", height=140, persist_state="session", help=about,
                       label_visibility="collapsed", placeholder="Type or paste text")  # fmt: skip

try:
    if source == OWN and not own:
        raise UsageError("there is no text yet; type or paste some, then press Ctrl+Enter")
    traced, payload, passages = traced_passages(subject, str(source), own)
except UsageError as error:
    with head:
        header("Which expert does each token go to?")
    st.info(f"{str(error)[:1].upper()}{str(error)[1:]}.", icon=":material/edit:")
else:
    with head:
        header("Which expert does each token go to?", verdicts.layer_verdict(traced.trace, layer))
    given = sum(len(passage.text) for passage in passages)
    if source == OWN and traced.characters < given:
        st.warning(
            f"The text has {given:,} characters; its first {traced.trace.num_tokens:,} tokens ({traced.characters:,} "
            f"characters) are shown, more than {TOKEN_LIMIT:,} are not. Shorten it, or paste another part of it.",
            icon=":material/content_cut:",
        )
    explore(traced.trace, payload, layer)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.download_button(
            "All tokens as CSV", lambda: csv_bytes(token_choices(traced.trace, 0, traced.trace.num_tokens)),
            "tokens.csv", "text/csv", key="tokens_csv", type="tertiary", icon=":material/download:", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Trace as Parquet", lambda: trace_file(traced), "trace.parquet", "application/vnd.apache.parquet",
            key="tokens_parquet", type="tertiary", icon=":material/download:", on_click="ignore",
            help="For `python main.py plots --trace trace.parquet`, pandas, DuckDB or Polars",
        )  # fmt: skip
