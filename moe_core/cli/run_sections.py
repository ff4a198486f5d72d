"""The figures of a run, as `plots` and `report` write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.errors import MoescopeError
from moe_core.progress import Progress

if TYPE_CHECKING:
    from moe_core.figures.run_figures import Section
    from moe_core.runs.folder import RunFolder
    from moe_core.runs.record import RunRecord


def run_sections(run: RunFolder, record: RunRecord, progress: Progress) -> tuple[list[Section], str]:
    """All figures of the run, and what the routing in them was recorded on.

    That is held-out text through the newest checkpoint; where the run has none to load, the newest probe of training.
    """
    from moe_core.figures.run_figures import sections_of_run

    trace, note = None, ""
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
        note = f"{trace.num_tokens:,} tokens of {documents:,} held-out documents ({trace.source})"
    return sections, note
