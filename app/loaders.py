"""The caches; those of changed models are in effect_loaders.py. Every key holds the run's path and what changes when
the run is trained on or anew.

Values that cannot be changed by a reader (a RoutingTrace, a model in eval mode) are shared between sessions; tables are
copied for each. All caches are bounded.
"""

# ruff: noqa: ARG001  (an argument that only belongs to a cache key is not used in the body)

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from moe_core.config import Config
from moe_core.errors import RunError, TraceError, UsageError
from moe_core.inference.kept_files import is_kept_file
from moe_core.inference.subjects import ForeignModel, Live, RoutingFile
from moe_core.once import Once
from moe_core.progress import Progress
from moe_core.routing.measured import Measured
from moe_core.runs import RunFolder, RunSummary, list_runs
from moe_core.runs.metric_log import Kind, MetricLog
from moe_core.runs.names import checkpoints_root
from moe_core.runs.watched import FILE as WATCHED_FILE

if TYPE_CHECKING:
    import pandas as pd

    from app.components.text_pair import TextPair
    from moe_core.data.document import Document
    from moe_core.inference.job import GenerationJob
    from moe_core.inference.protocol import LanguageModel
    from moe_core.reports.html_report import HtmlReport
    from moe_core.routing.trace.routing_counts import RoutingCounts
    from moe_core.routing.trace.trace import RoutingTrace
    from moe_core.runs.analysis import Table
    from moe_core.runs.checkpoint import LoadedRun

EXAMPLE_TOKENS_PER_DOMAIN = 1_024
"""Tokens of our own text for a model that brings none: they take a large model some minutes on a processor."""
RECENT_READINGS = 20
"""Of a watched run: so many readings tell how the routing is now."""
MAX_SNAPSHOTS = 64
"""Snapshots of one run that are read at once: more would not fit a picture."""
Stamp = tuple[int, int, int]
"""Modification time in ns, size in bytes and inode: another file, or a changed one, has another stamp."""


def stamp(path: Path) -> Stamp:
    """What identifies the present content of a file or folder; zeros when there is none."""
    try:
        entry = path.stat()
    except OSError:
        return (0, 0, 0)
    return (entry.st_mtime_ns, entry.st_size, entry.st_ino)


def runs() -> list[RunSummary]:
    """All runs, running ones first, then the last updated first; at most a second old."""
    return _runs(str(checkpoints_root().resolve()))


def forget_runs() -> None:
    """Read the list of runs anew at the next call: one was just started."""
    _runs.clear()


@st.cache_data(ttl=1.0, max_entries=4, show_spinner=False)
def _runs(root: str) -> list[RunSummary]:
    return sorted(list_runs(root), key=lambda run: not run.is_live)  # the sort is stable


def config(run: RunFolder) -> Config:
    """The configuration the run was started with. Raises RunError."""
    return _config(str(run.root), run.name, stamp(run.place.find("config.json")))


@st.cache_resource(max_entries=32, show_spinner=False)
def _config(root: str, name: str, changed: Stamp) -> Config:
    return RunFolder(name, root).config()


def moe_layers(run: RunFolder) -> list[int]:
    """Numbers of the layers that have routers; none of a dense model. Raises RunError."""
    watched = run.place.find(WATCHED_FILE)
    return (
        list(config(run).model.moe_layers)
        if not watched.exists()
        else _watched_layers(str(run.root), run.name, stamp(watched))
    )


@st.cache_resource(max_entries=32, show_spinner=False)
def _watched_layers(root: str, name: str, changed: Stamp) -> list[int]:
    return RunFolder(name, root).moe_layers()


def metrics(run: RunFolder, kind: Kind) -> pd.DataFrame:
    """The run's metric lines of one kind, oldest first; empty when there is none."""
    return metric_log(run).frame(kind)


def counts(run: RunFolder) -> RoutingCounts:
    """What a watched run has counted, a step for each reading. Raises RunError before the first."""
    found = _counts(str(run.root), run.name, stamp(run.metrics_path))
    if found is None:
        raise RunError(f"run {run.name!r} has counted nothing yet; its first reading is to come, see the Training page")
    return found


@st.cache_resource(max_entries=4, show_spinner=False)
def _counts(root: str, name: str, changed: Stamp) -> RoutingCounts | None:
    return RunFolder(name, root).counts()


def newest_counts(run: RunFolder) -> Measured:
    """The last RECENT_READINGS of them: how the routing is now, and how much it varies. Raises RunError."""
    return _newest_counts(str(run.root), run.name, stamp(run.metrics_path), counts(run))


@st.cache_resource(max_entries=4, show_spinner=False)
def _newest_counts(root: str, name: str, changed: Stamp, _all: RoutingCounts) -> Measured:
    recent = [_all.at(step) for step in _all.steps[-RECENT_READINGS:]]
    return Measured(reduce(add, recent))


def metric_log(run: RunFolder) -> MetricLog:
    """The run's metric lines, and how many were left out. Raises RunError."""
    return _metric_log(str(run.root), run.name, stamp(run.metrics_path))


@st.cache_resource(max_entries=8, show_spinner=False)
def _metric_log(root: str, name: str, changed: Stamp) -> MetricLog:
    return RunFolder(name, root).metric_log()


def probe_step(run: RunFolder) -> int:
    """Step of the latest probe. Raises RunError, with what to do, before the first."""
    steps = run.probe_steps()
    if not steps:
        status = run.status()
        failed = status is not None and status.state == "failed"
        why = (
            f"training failed: {status.message}" if status is not None and failed else "its first evaluation is to come"
        )
        raise RunError(f"run {run.name!r} has no routing to show yet, {why}; see the Training page")
    return steps[-1]


def probe(run: RunFolder, step: int | None = None) -> Measured:
    """Routing of the fixed probe set at `step`, or at the latest evaluation. Raises RunError before the first."""
    step = probe_step(run) if step is None else step
    return _probe(str(run.root), run.name, step, stamp(run.probe_path(step)))


@st.cache_resource(max_entries=32, show_spinner=False)
def _probe(root: str, name: str, step: int, changed: Stamp) -> Measured:
    return Measured(RunFolder(name, root).probe(step))


def trace(file: RoutingFile) -> Measured:
    """The trace or the counts in the file, see routing.opening.open_routing. Raises TraceError."""
    if not is_kept_file(file.path):
        return _trace(str(file.path), stamp(file.path))
    if not file.path.is_file():
        raise TraceError(f"what was kept of {file.name} is gone, as newer files took its room; open it again")
    try:
        return _trace(str(file.path), stamp(file.path))
    except TraceError as error:
        raise TraceError(f"what was kept of {file.name} is damaged; open it again") from error


@st.cache_resource(max_entries=4, show_spinner="Reading the file ...")
def _trace(path: str, changed: Stamp) -> Measured:
    from moe_core.routing.opening import open_routing

    return Measured(open_routing(path).routing)


def model_routing(model: ForeignModel, progress: Progress | None = None) -> Measured:
    """Routing of example_text by the model; `progress` is called while it is made the first time. Raises
    MoescopeError."""
    from moe_core.inference.tracing import trace_documents

    def route() -> Measured:
        language, documents = language_model(model), beginnings_of(model)
        limit = EXAMPLE_TOKENS_PER_DOMAIN
        return Measured(trace_documents(language, documents, progress=progress, tokens_per_domain=limit))

    return _routing_place(*weights_key(model), "", (0, 0, 0)).once(route)


def beginnings_of(model: ForeignModel) -> list[Document]:
    """What is read to measure a model that is no run. Raises UsageError where it has no tokenizer."""
    from moe_core.inference.held_out import beginnings

    documents = example_text(model)
    if not documents:
        raise UsageError(f"{model.name} came without a tokenizer, so no text can be sent through it; see Tokens")
    return beginnings(documents)


def example_text(subject: Live) -> list[Document]:
    """Text to look at: what the run was not trained on; for another model our own in four domains, or nothing where it
    has no tokenizer to read text with. Raises MoescopeError."""
    if isinstance(subject, RunFolder):
        return subject.held_out("unseen") or subject.held_out("validation")
    from moe_core.inference.foreign_tokenizer import IdTokenizer

    return [] if isinstance(language_model(subject).tokenizer, IdTokenizer) else _our_text()


@st.cache_resource(max_entries=1, show_spinner=False)
def _our_text() -> list[Document]:
    from moe_core.inference.held_out import text_of_ours

    return text_of_ours()


def domains(subject: Live) -> list[str]:
    """Names of the kinds of text in example_text."""
    if isinstance(subject, RunFolder):
        return list(subject.domains())
    return list(dict.fromkeys(document.domain for document in example_text(subject)))


def over_time(run: RunFolder, measure: Callable[[Mapping[int, RoutingTrace]], pd.DataFrame]) -> pd.DataFrame:
    """`measure` of the probe's traces by step; of more than MAX_SNAPSHOTS, of evenly spaced ones. Raises RunError."""
    probe_step(run)
    steps = run.probe_steps()
    if len(steps) > MAX_SNAPSHOTS:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_SNAPSHOTS - 1))] for i in range(MAX_SNAPSHOTS)]
    snapshots = tuple((step, stamp(run.probe_path(step))) for step in steps)
    return _over_time(measure.__qualname__, str(run.root), run.name, snapshots, measure)


@st.cache_resource(max_entries=8, show_spinner=False)
def _over_time(
    measure: str,
    root: str,
    name: str,
    snapshots: tuple[tuple[int, Stamp], ...],
    _measure: Callable[[Mapping[int, RoutingTrace]], pd.DataFrame],
) -> pd.DataFrame:
    return _measure({step: _probe(root, name, step, changed).tokens for step, changed in snapshots})


def deep_routing(run: RunFolder, progress: Progress | None = None, through: RunFolder | None = None) -> Measured:
    """Routing of the beginnings of held-out documents by the newest checkpoint; `progress` is called while it is made
    the first time. Nothing is measured yet: pages ask for what they show.

    `through` sends the text of `run` through another run's model. Raises MoescopeError when a run has no checkpoint or
    no held-out text.
    """
    from moe_core.inference.held_out import trace_held_out

    model, text = through or run, run.place.find("held_out.parquet")
    place = _routing_place(*weights_key(model), str(text), stamp(text))
    return place.once(lambda: Measured(trace_held_out(loaded_run(model), run, progress)))


@st.cache_resource(max_entries=4, show_spinner=False)
def _routing_place(root: str, name: str, folder: str, changed: Stamp, text: str, text_changed: Stamp) -> Once[Measured]:
    return Once()


@st.cache_resource(max_entries=4, show_spinner=False)
def report_place(name: str, *changed: Stamp) -> Once[HtmlReport]:
    """Where the report on what has this name is kept; it is made on its page, under a progress bar."""
    return Once()


def ablation(run: RunFolder, mode: str = "zero") -> pd.DataFrame | None:
    """What switching each expert off changes (evaluation.ablation.ablation_map), as far as it was measured; else None.

    `frame.attrs["step"]` says at which step. Measuring is the work of `python main.py ablate`, or of the Interventions
    page.
    """
    files = run.place.matching("analysis", f"ablation_{mode}_*")
    return _ablation(str(run.root), run.name, mode, tuple(stamp(path) for path in files)) if files else None


@st.cache_resource(max_entries=16, show_spinner=False)
def _ablation(root: str, name: str, mode: str, changed: tuple[Stamp, ...]) -> pd.DataFrame | None:
    from moe_core.runs.analysis import read_ablation_map

    return read_ablation_map(RunFolder(name, root), mode)


def head_effects(run: RunFolder) -> pd.DataFrame | None:
    """What masking each attention head changes (evaluation.heads), as far as it was measured; else None."""
    files = run.place.matching("analysis", "ablation_heads_*")
    return _head_effects(str(run.root), run.name, tuple(stamp(path) for path in files)) if files else None


@st.cache_resource(max_entries=16, show_spinner=False)
def _head_effects(root: str, name: str, changed: tuple[Stamp, ...]) -> pd.DataFrame | None:
    from moe_core.runs.analysis import read_head_effects

    return read_head_effects(RunFolder(name, root))


def analysis(run: RunFolder, table: Table) -> pd.DataFrame | None:
    """What `python main.py ablate` found out beside the map: see runs.analysis.read_table. None before."""
    return _analysis(str(run.root), run.name, table, stamp(run.place.find(f"analysis/{table}.parquet")))


@st.cache_resource(max_entries=16, show_spinner=False)
def _analysis(root: str, name: str, table: Table, changed: Stamp) -> pd.DataFrame | None:
    from moe_core.runs.analysis import read_table

    return read_table(RunFolder(name, root), table)


def loaded_run(run: RunFolder) -> LoadedRun:
    """The run's latest checkpoint in memory, shared by all sessions. Raises RunError when missing or damaged.

    Two models at most are kept. The key is the newest checkpoint's manifest: a run trained on, or anew, is read again.
    """
    return _loaded_run(*weights_key(run))


def language_model(subject: Live) -> LanguageModel:
    """The model that reads and writes text, shared by all sessions; the same object until it is read anew. Raises
    MoescopeError when it is missing, damaged or none that can be captured."""
    if isinstance(subject, RunFolder):
        return _language_model(*weights_key(subject))
    return _foreign_model(subject, stamp(Path(subject.where) / "config.json"))


@st.cache_resource(max_entries=2, show_spinner=False)
def _language_model(root: str, name: str, folder: str, changed: Stamp) -> LanguageModel:
    from moe_core.inference.open import language_model as language_model_of

    return language_model_of(_loaded_run(root, name, folder, changed))


# One only: the next one needs the memory.
@st.cache_resource(max_entries=1, show_spinner="Loading the model ...")
def _foreign_model(model: ForeignModel, changed: Stamp) -> LanguageModel:
    from moe_core.inference.open import open_huggingface

    return open_huggingface(
        model.where, device=model.device, dtype=model.dtype, trust_remote_code=model.trust_remote_code
    )


def example_place(subject: Live) -> Once[GenerationJob]:
    """Where the example that a model writes is kept, the same for all sessions."""
    return _example_place(*weights_key(subject))


@st.cache_resource(max_entries=4, show_spinner=False)
def _example_place(root: str, name: str, folder: str, changed: Stamp) -> Once[GenerationJob]:
    return Once()


def weights_key(subject: Live) -> tuple[str, str, str, Stamp]:
    """What identifies its present weights."""
    from moe_core.runs.checkpoint import find_checkpoint

    if isinstance(subject, ForeignModel):
        return ("", repr(subject), subject.where, stamp(Path(subject.where) / "config.json"))
    folder = find_checkpoint(subject)
    return (str(subject.root), subject.name, str(folder), stamp(folder / "manifest.json"))


@st.cache_resource(max_entries=2, show_spinner="Loading the model ...")
def _loaded_run(root: str, name: str, folder: str, changed: Stamp) -> LoadedRun:
    from moe_core.runs.checkpoint import load_run

    return load_run(name, root)


@dataclass
class TextsPlace:
    """Where two texts that are being written are kept."""

    pair: TextPair | None = None


@st.cache_resource(max_entries=16, show_spinner=False)
def texts_place(key: str) -> TextsPlace:
    """The place with the key in a page's URL: a page that is loaded again, or another browser with the same address,
    finds the texts as they are."""
    return TextsPlace()
