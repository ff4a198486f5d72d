"""The report on what is open, made when it is asked for: one HTML file, as `report` writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app import loaders
from app.components.page import errors_as_boxes, prose
from app.components.progress import progress_bar
from moe_core.errors import UsageError
from moe_core.inference.named_experts import names_of, names_path
from moe_core.inference.subjects import ForeignModel, Opened, RoutingFile, Subject
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.runs import RunFolder, RunSummary
from moe_core.words import count_of, sentence

if TYPE_CHECKING:
    from moe_core.progress import Progress
    from moe_core.reports.html_report import HtmlReport
    from moe_core.routing.trace.trace import AnyTrace


def show_report(chosen: RunSummary | Opened | None) -> None:
    """Make it, with progress, and offer it; or say why there can be none."""
    with st.container(border=True, key="report_box"), errors_as_boxes("There is no report"):
        subject = _subject(chosen)
        with progress_bar("Making the report", stages=True) as bar:
            place = loaders.report_place(subject.name, *_stamps(subject))
            made = place.once(lambda: _report(subject, bar))
        pictures = sum(len(section.figures) for section in made.sections)
        about = f"{count_of(pictures, 'picture')} with their verdicts and numbers, of {made.routing_of}"
        st.markdown(prose(sentence(f"The report on {subject.name} holds {about}")))
        st.download_button(
            f"Save it ({len(made.page) / 2**20:.1f} MB)", made.page.encode, f"report-{_file_name(subject.name)}.html",
            "text/html", key="report_save", icon=":material/download:", type="primary", on_click="ignore",
        )  # fmt: skip


def _subject(chosen: RunSummary | Opened | None) -> Subject:
    """What to report on. Raises UsageError where there is nothing."""
    if chosen is None:
        raise UsageError("nothing is open to report on: train a run, or open a trace in the side bar")
    if not isinstance(chosen, RunSummary):
        return chosen
    if chosen.error is not None:
        raise UsageError(f"run {chosen.name} cannot be read, so that there is nothing to report: {chosen.error}")
    return RunFolder(chosen.name)


def _stamps(subject: Subject) -> list[loaders.Stamp]:
    """Other ones once a report would say something else."""
    names = names_path(subject)
    if isinstance(subject, RoutingFile):
        return [loaders.stamp(subject.path), loaders.stamp(names)]
    if isinstance(subject, ForeignModel):
        return [loaders.stamp(Path(subject.where) / "config.json"), loaders.stamp(names)]
    files = [
        names,
        subject.metrics_path,
        subject.place.find("evaluation.json"),
        *subject.place.matching("analysis", "*"),
    ]
    return [loaders.stamp(path) for path in files]


def _report(subject: Subject, progress: Progress) -> HtmlReport:
    from moe_core.model.size import cost_of
    from moe_core.reports.html_report import report_on_routing, report_on_run

    def held_out(progress: Progress) -> AnyTrace:
        assert isinstance(subject, RunFolder)
        trace = loaders.deep_routing(subject, progress).trace
        assert not isinstance(trace, RoutingCounts)  # a model routes tokens
        return trace

    if isinstance(subject, RunFolder):
        return report_on_run(subject, held_out, cost_of, progress)
    names, _ = names_of(subject)
    if isinstance(subject, RoutingFile):
        routing = loaders.trace(subject).trace
        return report_on_routing(subject.name, routing, routing.source, "", progress, names=names)
    routing, text = loaders.model_routing(subject, progress).trace, "made-up text of four domains"
    return report_on_routing(subject.name, routing, routing.source, text, progress, names=names)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:80]
