"""The figures of a run, as `plots` and `report` write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.errors import MoescopeError
from moe_core.progress import Progress
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.figures.run_figures import Section
    from moe_core.runs.folder import RunFolder
    from moe_core.runs.record import RunRecord


def run_sections(run: RunFolder, record: RunRecord, progress: Progress) -> tuple[list[Section], str]:
    """All figures of the run, and what the routing in them was recorded on.

    That is held-out text through the newest checkpoint; where the run has none to load, the newest probe of training;
    of a run that was watched, its probe text or what was counted.
    """
    from moe_core.figures.run_figures import sections_of_run

    trace, note = None, ""
    if record.config is None:
        return sections_of_run(record, None, progress), _of_watched(record)
    if not record.config.model.moe_layers:
        return sections_of_run(record, None, progress), "nothing: the model is dense"
    try:
        from moe_core.inference.held_out import trace_held_out
        from moe_core.runs.checkpoint import load_run

        trace = trace_held_out(load_run(run.name), run, progress)
    except MoescopeError as error:
        if not record.probes:
            raise
        note = f"the probe text at step {max(record.probes):,}, as the newest checkpoint cannot be used: {error}"
    sections = sections_of_run(record, trace, progress)
    if trace is not None:
        documents = len(set(trace.document_ids.tolist()))
        note = f"{count_of(trace.num_tokens, 'token')} of {count_of(documents, 'held-out document')} ({trace.source})"
    return sections, note


def _of_watched(record: RunRecord) -> str:
    """What the routing of a run was recorded on whose model is elsewhere."""
    read = f"the probe text at step {max(record.probes):,}" if record.probes else ""
    steps = record.counts.steps if record.counts is not None else []
    counted = f"the text that it was trained on, up to step {steps[-1]:,}" if steps else ""
    return "; load of ".join(part for part in (read, counted) if part) or "nothing yet"
