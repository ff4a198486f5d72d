"""Which text a page measures: more held-out text through the newest checkpoint, or the probe where that cannot be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from app import loaders, state
from app.components.page import prose
from app.components.progress import progress_bar
from moe_core.errors import MoescopeError
from moe_core.figures.layout import window_around
from moe_core.inference.subjects import ForeignModel, RoutingFile, Subject
from moe_core.program import program
from moe_core.routing.measured import Measured
from moe_core.routing.measures.health import extent_words
from moe_core.routing.trace.independence import independence_note
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.runs import RunFolder
from moe_core.words import count_of

# Pairs of experts: layers x E x E. More rows than this are measured around the chosen layer only.
MAX_PAIRS = 5 * 128 * 128
Step = tuple[Callable[..., Any], tuple[Any, ...]]


def first_routing(subject: Subject) -> tuple[Measured, str]:
    """The routing that is there without waiting and, in words, of what text it is; a model reads our text first.
    Raises MoescopeError."""
    if isinstance(subject, RoutingFile):
        return loaders.trace(subject), _source(loaders.trace(subject))
    if isinstance(subject, ForeignModel):
        return _model_routing(subject)
    if subject.is_watched() and not subject.probe_steps():
        return watched_routing(subject)
    step = loaders.probe_step(subject)
    kind = "a probe text" if subject.is_watched() else "held-out text"
    return loaders.probe(subject), f"{kind} that stays the same all through training, at step {step:,}"


def deep_or_probe(subject: Subject) -> tuple[Measured, str]:
    """The routing to measure and, in words, of what text it is. Raises MoescopeError when there is none."""
    has_model = isinstance(subject, RunFolder) and not subject.is_watched()
    return _deep_or_probe(subject) if isinstance(subject, RunFolder) and has_model else first_routing(subject)


def watched_routing(run: RunFolder) -> tuple[Measured, str]:
    """How the routing of a watched run is now, and of what text. Raises RunError before the first reading."""
    steps = loaders.counts(run).steps[-loaders.RECENT_READINGS :]
    span = f"steps {steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else f"step {steps[0]:,}"
    return loaders.newest_counts(run), f"the text that it is trained on, read at {span}"


def _model_routing(model: ForeignModel) -> tuple[Measured, str]:
    with progress_bar("Sending text through the model") as bar:
        measured = loaders.model_routing(model, bar)
    return measured, f"made-up text of four domains; of your own, {program()} trace makes a trace to open here"


def _source(measured: Measured) -> str:
    holds = "counts hold" if isinstance(measured.trace, RoutingCounts) else "trace holds"
    return f"what the {holds}, of {measured.trace.source or 'a model that is not named'}"


def _deep_or_probe(run: RunFolder) -> tuple[Measured, str]:
    """More held-out text, or the probe.

    While a run trains, and where it has no checkpoint, that is the probe: small, but the processor is the trainer's.
    """
    is_live = any(item.is_live and item.name == run.name for item in loaders.runs())
    if not is_live:
        try:
            with progress_bar("Sending held-out text through the model") as bar:
                measured = loaders.deep_routing(run, bar)
            clock = time.strftime("%H:%M", time.localtime(measured.made_at))
            return measured, f"held-out text, sent through the newest checkpoint at {clock}"
        except MoescopeError as error:
            why = f"more text could not be used: {error}"
            if not run.probe_steps():
                raise
    else:
        why = "the run is being trained, more text follows when it is done"
    return loaders.probe(run), f"the probe text at step {loaders.probe_step(run):,} ({why})"


def layers_around(trace_layers: Sequence[int], layer: int, num_experts: int) -> list[int]:
    """As many layers around `layer` as MAX_PAIRS allows, two at least where there are two."""
    most = max(2, MAX_PAIRS // (num_experts * num_experts))
    return window_around(trace_layers, layer, most)


def measure_all(measured: Measured, wanted: Sequence[Step], label: str) -> None:
    """Compute what of `wanted` (a measure and its arguments) is not there yet, under a progress bar."""
    missing = [(measure, arguments) for measure, arguments in wanted if not measured.has(measure, *arguments)]
    if not missing:
        return
    with progress_bar(label) as bar:
        for done, (measure, arguments) in enumerate(missing):
            bar("measuring", done, len(missing))
            measured.get(measure, *arguments)


def independence_warning(measured: Measured) -> None:
    """A box below the answer where its documents may be windows of the same texts: then the answer is too sure.

    The splits of a run know the sources of its text, whatever their windows look like.
    """
    compared = state.compared()
    if isinstance(state.subject(), RunFolder) and (compared is None or isinstance(compared.subject, RunFolder)):
        return
    if note := measured.get(independence_note):
        st.warning(prose(note), icon=":material/content_cut:")


def text_caption(measured: Measured, text: str) -> None:
    """How much text the figures of a page are of, and which."""
    st.caption(prose(f"{amount(measured)}: {text}."))


def amount(measured: Measured) -> str:
    """ "2,000 tokens of 12 documents"; of a trace on disk, how much of it what looks at single tokens is of; of
    counts, whatever they count."""
    if isinstance(measured.trace, RoutingCounts):
        return extent_words(measured.trace)
    tokens = measured.tokens
    drawn = f"{count_of(tokens.num_tokens, 'token')} of {count_of(tokens.count_documents(), 'document')}"
    if not measured.is_sampled:
        return drawn
    return (
        f"{measured.trace.num_tokens:,} tokens, counted all; what looks at single tokens, and in large models "
        f"at pairs of experts, is of {drawn} drawn from them"
    )
