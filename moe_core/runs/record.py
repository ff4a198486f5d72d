"""All that a run has measured, read once: what figures and reports are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from moe_core.ablation_modes import MODES
from moe_core.config import Config
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.runs.analysis import read_ablation_map, read_head_effects, read_table
from moe_core.runs.context_file import KeptContext, read_context
from moe_core.runs.curves import RunCurves, run_curves
from moe_core.runs.evaluation import Evaluation
from moe_core.runs.folder import RunFolder, RunStatus
from moe_core.runs.lost_steps import LostSteps, lost_steps
from moe_core.runs.metric_log import file_notes
from moe_core.runs.watched import WatchedModel


@dataclass(frozen=True, eq=False)
class RunFindings:
    """What `ablate` found out about a run; None, or no mode, where nothing was computed yet."""

    effects: Mapping[str, pd.DataFrame]
    """By mode of switching experts off: the frames of ablation_map, perhaps not of all experts yet."""
    importance: pd.DataFrame | None = None
    correlations: pd.DataFrame | None = None
    similarity: pd.DataFrame | None = None
    heads: pd.DataFrame | None = None
    """The frame of head_effects."""
    context: KeptContext | None = None
    """What was read beyond the trained length last, by the command `context` or its page."""


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as it was when it was read."""

    name: str
    config: Config | None
    """None of a run that was watched: its model is not here."""
    status: RunStatus | None
    curves: RunCurves
    """Its loss and what went with it, by step."""
    load: pd.DataFrame
    """Shares of the experts' load over time: metric lines of the kind "load"; empty where none was written."""
    probes: Mapping[int, RoutingTrace]
    """Routing of the fixed probe text by step, ascending."""
    evaluation: Evaluation | None
    """Figures of the whole held-out text; None if the run was never scored."""
    findings: RunFindings
    bad_lines: int = 0
    """Metric lines that are left out: they could not be read, or had been changed."""
    unverified: tuple[str, ...] = ()
    """Files that carry no checksum."""
    watched: WatchedModel | None = None
    """The model of a run that was watched, and of no other."""
    counts: RoutingCounts | None = None
    """What a watched run has counted, a step for each reading."""

    @property
    def step(self) -> int:
        """How far the run is; the newest probe tells it where no status does."""
        return self.status.step if self.status is not None else max(self.probes, default=0)

    @property
    def notes(self) -> list[str]:
        """What must be known about its files, a sentence each."""
        return file_notes(self.bad_lines, self.unverified)

    @property
    def lost(self) -> LostSteps | None:
        """What its time budget took from it."""
        return None if self.config is None else lost_steps(self.name, self.config, self.status)

    @property
    def newest_probe(self) -> RoutingTrace | None:
        """The routing of the last step that was probed."""
        return self.probes[max(self.probes)] if self.probes else None


def read_run(run: RunFolder) -> RunRecord:
    """Read all of a run. Raises RunError or TraceError naming the file that is missing or damaged."""
    log, watched = run.metric_log(), run.watched()
    return RunRecord(
        name=run.name,
        config=None if watched is not None else run.config(),
        status=run.status(),
        curves=run_curves(run.name, log, is_watched=watched is not None),
        load=log.frame("load"),
        bad_lines=log.bad,
        probes={step: run.probe(step) for step in run.probe_steps()},
        evaluation=run.evaluation(),
        findings=read_findings(run),
        unverified=tuple(run.unverified()),
        watched=watched,
        counts=run.counts(),
    )


def read_findings(run: RunFolder) -> RunFindings:
    """Read what `ablate` and `context` left beside the run. Raises RunError when a table is damaged."""
    effects = {mode: read_ablation_map(run, mode) for mode in MODES}
    return RunFindings(
        effects={mode: frame for mode, frame in effects.items() if frame is not None},
        importance=read_table(run, "importance"),
        correlations=read_table(run, "correlations"),
        similarity=read_table(run, "similarity"),
        heads=read_head_effects(run),
        context=read_context(run),
    )
