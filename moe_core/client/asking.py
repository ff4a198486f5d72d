"""Texts to a server that returns routed experts, its answers to a trace."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from moe_core.client.address import server_address
from moe_core.client.checking import CUT, Checking
from moe_core.client.concurrent_questions import Questions
from moe_core.client.connection import Connection, Limits
from moe_core.client.engines import recognise
from moe_core.client.kept_answers import Answer, KeptAnswers, Question, kept_beside
from moe_core.data.document import Document
from moe_core.data.tokenizer import check_encodable
from moe_core.errors import ServerError, TraceError, UsageError
from moe_core.progress import Progress, silent
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.conversion import Imported, Texts, checked_options, convert_recording
from moe_core.routing.recordings.pieces import Piece, Recording
from moe_core.routing.recordings.responses import FIRST_TOKENS_MISSING
from moe_core.words import count_of

INCOMPLETE = ("refuse", "keep")


@dataclass(frozen=True)
class Asking:
    """How a server is asked."""

    engine: str = "auto"
    """One of engines.KINDS; auto: by what it answers."""
    model: str | None = None
    """Which of its models; None = the only one."""
    max_new_tokens: int = 0
    """Tokens it writes after each text, which count in the trace; 0 = the text alone."""
    concurrency: int = 8
    """Questions under way at once."""
    incomplete: str = "refuse"
    """A text that is longer than the server's context, or whose first tokens came from its prefix cache without their
    routing: refuse stops and says so, keep takes what there is of it (the beginning; the rest)."""


@dataclass(frozen=True)
class Asked:
    """What came out."""

    engine: str
    model: str
    trace: Imported
    resumed: int
    """Documents whose answers an earlier call had kept."""


def trace_server(
    address: str,
    documents: Sequence[Document],
    to: str | Path,
    *,
    asking: Asking | None = None,
    limits: Limits | None = None,
    api_key: str | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    layers: Sequence[int] | None = None,
    texts: Texts | None = None,
    origin: str = "texts",
    progress: Progress = silent,
) -> Asked:
    """Ask the server at `address` for the routing of every document, and write the trace to a Parquet file.

    Document ids are places in `documents`; domains and sources are theirs. Answers are kept beside `to` until the trace
    is written: the same call goes on after a kill, and gives the same file. `texts` gives printable text for the
    vocabulary; without it the server is asked. `num_experts`, `top_k`, `layers`: see recordings.convert. `origin` names
    the documents in the trace's `source`.
    Raises UsageError for a wrong argument, DataError for a text that UTF-8 cannot hold, ServerError for a server that
    is not there or answers otherwise than it should, TraceError for routing that cannot be.
    """
    asking = asking or Asking()
    _check_asking(asking, documents)
    options = checked_options(None, num_experts, top_k, layers)
    connection = Connection(server_address(address), api_key, limits)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(connection):
        served = portal.call(recognise, connection, asking.engine, asking.model)
        keep = asking.incomplete == "keep"
        questions = Questions(portal, connection, served, asking.concurrency, asking.max_new_tokens, keep)
        checking = Checking(documents, options, prompt_only=not asking.max_new_tokens, complete=not keep)
        engine, model = served.dialect.kind, served.model

        looked_at = itertools.count(1)

        def check_kept(number: int, answer: Answer) -> None:
            checking.check(number, answer)
            progress("looking at kept answers", next(looked_at), len(documents))

        with KeptAnswers(kept_beside(to), _question(engine, model, asking, documents), check_kept) as kept:
            resumed = len(kept)
            _ask_the_rest(questions, documents, kept, checking, progress)
            recording = Recording(kept.path, engine, f"{title_of(engine)} of {model}", origin=origin)
            _set_pieces(recording, kept, checking, documents)
            texts = texts or _texts_of_server(questions, recording, progress)
            trace = convert_recording(recording, to, options, texts=texts, progress=progress)
            kept.remove()
    return Asked(engine, model, trace, resumed)


def _ask_the_rest(
    questions: Questions,
    documents: Sequence[Document],
    kept: KeptAnswers,
    checking: Checking,
    progress: Progress,
) -> None:
    """Ask for whatever is not kept, check it and keep it."""

    def report() -> None:
        trouble = questions.connection.trouble
        progress(f"asking the server{f' (busy or away: {trouble[:60]})' if trouble else ''}", len(kept), len(documents))

    missing = [number for number in range(len(documents)) if number not in kept]
    report()
    try:
        for number, answer in questions.routing(documents, missing, report):
            checking.check(number, answer)
            kept.add(number, answer)
            report()
    except (ServerError, TraceError) as error:
        if not len(kept):
            raise
        raise ServerError(
            f"{error}; {len(kept):,} of {len(documents):,} answers are kept in {str(kept.path)!r}: the same command "
            "goes on from there"
        ) from None


def _set_pieces(recording: Recording, kept: KeptAnswers, checking: Checking, documents: Sequence[Document]) -> None:
    """Let the recording read the answers in the order of the documents, whatever the order in which they came."""
    recording.domains = list(dict.fromkeys(document.domain for document in documents))
    domains = {name: number for number, name in enumerate(recording.domains)}
    sources = {name: number for number, name in enumerate(dict.fromkeys(document.source for document in documents))}

    def pieces(progress: Progress) -> Iterator[Piece]:
        cut = 0
        for number, document in enumerate(documents):
            progress("reading", number, len(documents))
            answer = kept[number]
            cut += CUT in answer
            text = checking.text_of(number, answer)
            if text.start:
                recording.note(FIRST_TOKENS_MISSING)
            yield from text.pieces(number, sources[document.source], domains[document.domain])
        if cut:
            recording.note(
                f"of {count_of(cut, 'text')} only the beginning was read: the server's context holds no more"
            )
        progress("reading", len(documents), len(documents))

    recording.pieces = pieces


def _texts_of_server(questions: Questions, recording: Recording, progress: Progress) -> Texts:
    """The server asked for the text of each token; the recording notes where it gives none."""

    def texts(ids: Sequence[int]) -> Mapping[int, str]:
        found = questions.token_texts(ids, lambda done: progress("asking for the tokens' text", done, len(ids)))
        if found is None:
            recording.note("the server gives no text of its tokens: --tokenizer does")
        return found or {}

    return texts


def _question(engine: str, model: str, asking: Asking, documents: Sequence[Document]) -> Question:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.text, document.domain, document.source]).encode())
    return Question(engine, model, asking.max_new_tokens, len(documents), digest.hexdigest())


def _check_asking(asking: Asking, documents: Sequence[Document]) -> None:
    if not any(document.text for document in documents):
        raise UsageError("there is no text to trace; expected at least one document that is not empty")
    for document in documents:
        check_encodable(document.text)
    if asking.concurrency < 1 or asking.max_new_tokens < 0 or asking.incomplete not in INCOMPLETE:
        raise UsageError(
            f"concurrency {asking.concurrency}, max_new_tokens {asking.max_new_tokens}, incomplete "
            f"{asking.incomplete!r}; expected at least 1, at least 0 and one of {', '.join(INCOMPLETE)}"
        )
