"""Run benchmarks on a run, and put what they find into one result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_core.config.router import SIGHT_WARNING
from moe_core.data.windows import WINDOW_RULE
from moe_core.errors import UsageError
from moe_core.evaluation.tasks.catalogue import describe
from moe_core.evaluation.tasks.context import Context, Inputs, Outcome
from moe_core.evaluation.tasks.registry import Benchmark
from moe_core.evaluation.tasks.result import SuiteResult, TaskResult, TestedScore
from moe_core.progress import Progress, silent
from moe_core.routing.statistics.multiple_comparisons import adjust
from moe_core.runs.evaluation import ParameterCounts

if TYPE_CHECKING:
    from moe_core.runs.checkpoint import LoadedRun


def run_suite(
    loaded: LoadedRun,
    benchmarks: Sequence[Benchmark],
    *,
    inputs: Inputs | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SuiteResult:
    """Run `benchmarks` one after the other; the same seed gives the same result.

    A plugin that raises an error has failed = True and the error in not_run; the others go on. Raises RunError when
    the run's held-out text is missing.
    """
    context = Context(loaded, seed, inputs or Inputs())
    report = progress or silent
    outcomes = []
    for number, one in enumerate(benchmarks, start=1):
        place = f"{one.name} ({number} of {len(benchmarks)})"
        context.progress = _progress_at(report, place)
        outcomes.append(_outcome(one, context))
    scores = [score for outcome, _ in outcomes for score in outcome.scores]
    adjusted = iter(adjust(np.array([score.p_value for score in scores], dtype=np.float64)))
    causal = loaded.config.model.can_write
    tasks = []
    for one, (outcome, failed) in zip(benchmarks, outcomes, strict=True):
        tested = tuple(TestedScore.of(score, float(next(adjusted))) for score in outcome.scores)
        tasks.append(
            TaskResult(
                name=one.name,
                asks=one.asks,
                plugin=one.plugin,
                not_run=outcome.not_run,
                failed=failed,
                note=outcome.note if causal or not tested else f"{SIGHT_WARNING} {outcome.note}".strip(),
                samples=tuple(outcome.samples),
                scores=tested,
            )
        )
    return SuiteResult(
        run=loaded.run.name,
        step=loaded.step,
        seed=seed,
        windows=WINDOW_RULE,
        parameters=ParameterCounts(total=loaded.model.total_parameters, active=loaded.model.active_parameters),
        tasks=tuple(tasks),
    )


def _outcome(one: Benchmark, context: Context) -> tuple[Outcome, bool]:
    """(what it found, whether it failed). An unforeseen error of our own benchmarks is a bug and goes through."""
    try:
        if one.plugin is None:
            return one.function(context), False
        outcome = one.function(context)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"it gave back {type(outcome).__name__}, expected an Outcome")
    except UsageError as error:  # this model cannot do it
        return Outcome(not_run=str(error)), one.plugin is not None
    except Exception as error:
        if one.plugin is None:
            raise
        return Outcome(not_run=f"it failed: {describe(error, one.plugin)}"), True
    return outcome, False


def _progress_at(progress: Progress, place: str) -> Progress:
    return lambda stage, done, total: progress(f"{place}: {stage}", done, total)
