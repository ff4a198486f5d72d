"""Look: which expert does each token of a text go to, layer by layer?"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from app import loaders, state
from app.components.page import header, prose
from app.components.routing_text import deep_or_probe, text_caption
from app.components.text_choice import OWN, TextChoice, pick_source, type_text
from app.components.token_explorer import explore
from app.components.token_view import view_payload
from app.components.trace_text import show_trace_text
from moe_core.data.windows import window_words
from moe_core.errors import UsageError
from moe_core.figures.picture_files import csv_bytes
from moe_core.figures.tokens import token_choices
from moe_core.inference.passages import (
    TOKEN_LIMIT,
    Passage,
    TracedPassages,
    arrays_of,
    trace_passages,
)
from moe_core.inference.subjects import Live, RoutingFile
from moe_core.program import program
from moe_core.routing.measures.experts import layer_verdict
from moe_core.runs import RunFolder
from moe_core.words import sentence

# Session keys of this page: the last traced text with its payload, which examples are shown, of what.
TRACED, NUMBER, SOURCE = "tokens_traced", "tokens_example", "text"


def next_examples() -> None:
    st.session_state[NUMBER] = st.session_state.get(NUMBER, 0) + 1


def traced_passages(subject: Live, text: TextChoice) -> tuple[TracedPassages, dict[str, Any], list[Passage]]:
    """The chosen text through the chosen run's newest checkpoint; kept until another one is asked for."""
    number = st.session_state.get(NUMBER, 0)
    asked = (subject.name, loaded.name, id(loaded), text.digest, number)
    if st.session_state.get(TRACED, (None,))[0] != asked:
        passages = text.passages(subject, number)
        with st.spinner("Sending the text through the model ...", show_time=True):
            traced = trace_passages(loaded, passages, text.limit)
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
if isinstance(subject, RunFolder) and subject.is_watched():
    subject = RoutingFile(subject.name, subject.probe_path(loaders.probe_step(subject)))
if isinstance(subject, RoutingFile):
    show_trace_text(loaders.trace(subject), layer, str(loaders.stamp(subject.path)))
    st.stop()
if state.linked_token()[0] is not None:
    measured, text_words = deep_or_probe(subject)
    show_trace_text(measured, layer, str(measured.made_at), may_leave=True)
    text_caption(measured, text_words)
    st.stop()
loaded = loaders.language_model(subject)
head = st.container()

with st.container(horizontal=True, vertical_alignment="bottom"):
    source = pick_source(loaders.domains(subject), SOURCE)
    if source != OWN:
        hint = "Other documents that the run was not trained on"
        st.button("Other examples", icon=":material/refresh:", key="tokens_other", on_click=next_examples, help=hint)
text = TextChoice(source, type_text("tokens_text", state.TOKENS_SAVED, height=140) if source == OWN else "")

try:
    traced, payload, passages = traced_passages(subject, text)
except UsageError as error:
    with head:
        header("Which expert does each token go to?")
    st.info(prose(sentence(str(error))), icon=":material/edit:")
else:
    with head:
        header("Which expert does each token go to?", layer_verdict(traced.trace, layer))
    given = sum(len(passage.text) for passage in passages)
    if source == OWN and traced.characters < given:
        st.warning(
            f"The text has {given:,} characters; its first {traced.trace.num_tokens:,} tokens ({traced.characters:,} "
            f"characters) are shown, more than {TOKEN_LIMIT:,} are not. Shorten it, or paste another part of it.",
            icon=":material/content_cut:",
        )
    explore(traced.trace, payload, layer)
    st.caption(window_words(loaded.context_window))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.download_button(
            "All tokens as CSV", lambda: csv_bytes(token_choices(traced.trace, 0, traced.trace.num_tokens)),
            "tokens.csv", "text/csv", key="tokens_csv", type="tertiary", icon=":material/download:", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Trace as Parquet", lambda: trace_file(traced), "trace.parquet", "application/vnd.apache.parquet",
            key="tokens_parquet", type="tertiary", icon=":material/download:", on_click="ignore",
            help=f"For `{program()} plots --trace trace.parquet`, pandas, DuckDB or Polars",
        )  # fmt: skip
