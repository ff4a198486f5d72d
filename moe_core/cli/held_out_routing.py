"""Routing of a run's held-out text, as `plots` and `report` show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.progress import Progress

if TYPE_CHECKING:
    from moe_core.reports.html_report import HeldOutRouting
    from moe_core.routing import RoutingTrace
    from moe_core.runs.folder import RunFolder


def held_out_routing(run: RunFolder) -> HeldOutRouting:
    """Through its newest checkpoint, which is loaded when it is asked for."""

    def route(progress: Progress) -> RoutingTrace:
        from moe_core.inference.held_out import trace_held_out
        from moe_core.runs.checkpoint import load_run

        return trace_held_out(load_run(run.name), run, progress)

    return route
