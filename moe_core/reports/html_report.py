"""The HTML report of what can be reported on: a run, or routing whose model is elsewhere. Made by `report` and pages.

What takes a model, its routing of held-out text and its size, comes from who calls: nothing here loads one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from moe_core.config import Config
from moe_core.errors import MoescopeError
from moe_core.figures.expert_names_in_figures import Names, with_names
from moe_core.figures.run_figures import Section, sections_of_run, sections_of_trace
from moe_core.progress import Progress, silent
from moe_core.reports.page import ModelCard, RoutingCard, report_page
from moe_core.routing.measures.health import describe_routing, extent_words
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting, AnyTrace
from moe_core.runs.expert_names import FILE as NAMES_FILE
from moe_core.runs.expert_names import NO_NAMES, ExpertNames, read_names
from moe_core.runs.folder import RunFolder
from moe_core.runs.record import RunRecord, read_run
from moe_core.words import count_of, sentence

HeldOutRouting = Callable[[Progress], AnyTrace]
"""Routes a run's held-out text through its newest checkpoint. Raises MoescopeError where that cannot be."""


class Cost(Protocol):
    """The size and the work of a configured model: model.size.cost_of makes one."""

    @property
    def total_parameters(self) -> int: ...

    @property
    def active_parameters(self) -> int: ...

    @property
    def flops_per_token(self) -> int: ...


@dataclass(frozen=True)
class HtmlReport:
    """The page, and of what it was made."""

    page: str
    sections: Sequence[Section]
    routing_of: str
    notes: Sequence[str] = ()
    """What must be known about the files, a sentence each."""


def report_on_run(
    run: RunFolder, routing: HeldOutRouting, cost: Callable[[Config], Cost], progress: Progress = silent
) -> HtmlReport:
    """Everything the run has. Raises RunError where it has measured nothing yet, MoescopeError for damaged files."""
    record = read_run(run)
    names, wrong = read_names(run.path / NAMES_FILE)
    sections, routing_of = sections_with_routing(record, routing, progress)
    sections = _named(sections, names.by_expert)
    page = report_page(_card(run, record, cost, routing_of), sections, progress)
    notes = [*record.notes, *([sentence(wrong)] if wrong else []), *([record.lost.sentence] if record.lost else [])]
    return HtmlReport(page, sections, routing_of, notes)


def report_on_routing(
    name: str,
    routing: AnyRouting,
    made_by: str,
    source: str,
    progress: Progress = silent,
    *,
    names: ExpertNames = NO_NAMES,
) -> HtmlReport:
    """Everything that a trace or counts tell. `name` as people know it; `made_by` and `source`, where it is known,
    which model routed and what the text was; `names` of its experts."""
    sections = _named(sections_of_trace(routing, progress), names.by_expert)
    if isinstance(routing, RoutingCounts):
        extent = extent_words(routing)
    else:
        documents = len({document for part in routing.parts() for document in part.document_ids.tolist()})
        extent = f"{count_of(routing.num_tokens, 'token')} of {count_of(documents, 'document')}"
    facts = {
        "Model": describe_routing(routing),
        "Made by": made_by,
        "Text": f"{extent}{f' ({source})' if source else ''}; domains: {', '.join(routing.domains)}",
    }
    page = report_page(RoutingCard(name, {key: value for key, value in facts.items() if value}, _now()), sections,
                       progress)  # fmt: skip
    return HtmlReport(page, sections, extent)


def sections_with_routing(record: RunRecord, routing: HeldOutRouting, progress: Progress) -> tuple[list[Section], str]:
    """All figures of a run, and what the routing in them was recorded on.

    That is held-out text through the newest checkpoint; where the run has none to load, the newest probe of training;
    of a run that was watched, its probe text or what was counted.
    """
    if record.config is None:
        return sections_of_run(record, None, progress), _of_watched(record)
    if not record.config.model.moe_layers:
        return sections_of_run(record, None, progress), "nothing: the model is dense"
    trace, note = None, ""
    try:
        trace = routing(progress)
    except MoescopeError as error:
        if not record.probes:
            raise
        note = f"the probe text at step {max(record.probes):,}, as the newest checkpoint cannot be used: {error}"
    sections = sections_of_run(record, trace, progress)
    if trace is not None:
        documents = len({document for part in trace.parts() for document in part.document_ids.tolist()})
        note = f"{count_of(trace.num_tokens, 'token')} of {count_of(documents, 'held-out document')} ({trace.source})"
    return sections, note


def _named(sections: Sequence[Section], names: Names) -> list[Section]:
    return [replace(section, figures=[with_names(figure, names) for figure in section.figures]) for section in sections]


def _of_watched(record: RunRecord) -> str:
    """What the routing of a run was recorded on whose model is elsewhere."""
    read = f"the probe text at step {max(record.probes):,}" if record.probes else ""
    steps = record.counts.steps if record.counts is not None else []
    counted = f"the text that it was trained on, up to step {steps[-1]:,}" if steps else ""
    return "; load of ".join(part for part in (read, counted) if part) or "nothing yet"


def _card(run: RunFolder, record: RunRecord, cost: Callable[[Config], Cost], routing_of: str) -> ModelCard:
    """Facts about the run; of one that was watched, those that its folder knows."""
    config = record.config
    if config is None:
        assert record.watched is not None
        return ModelCard(run.name, record.watched, record.step, 0, 0, 0, (), None, routing_of, _now(), record.notes)
    found = cost(config)
    return ModelCard(
        run=run.name,
        config=config,
        step=record.step,
        total_parameters=found.total_parameters,
        active_parameters=found.active_parameters,
        flops_per_token=found.flops_per_token,
        domains=run.domains(),
        evaluation=record.evaluation,
        routing_of=routing_of,
        notes=record.notes,
        made=_now(),
        lost=record.lost,
    )


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M")
