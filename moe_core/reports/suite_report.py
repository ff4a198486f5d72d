"""suite.md of a run: what it is, how it was trained, and every score beside what it is held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from moe_core.data.windows import window_words
from moe_core.evaluation.tasks.result import SuiteResult, TaskResult, TestedScore
from moe_core.reports.markdown import escape, render, table
from moe_core.routing.measures.health import describe_model
from moe_core.runs.folder import RunFolder


def write_suite(run: RunFolder, result: SuiteResult) -> Path:
    """Keep `result` (of run_suite) in the run's folder as suite.json and suite.md; returns the latter.

    Raises RunError when the disk refuses; an older report is then untouched.
    """
    run.write_file("suite.json", (json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n").encode())
    return run.write_file("suite.md", suite_text(run, result).encode("utf-8", errors="backslashreplace"))


def suite_text(run: RunFolder, result: SuiteResult) -> str:
    """The report as Markdown."""
    config, tasks = run.config(), result.tasks
    model, data = config.model, config.data
    return render(
        "suite.md.j2",
        run=run.name,
        result=result,
        summary=summary(result),
        summary_table=_summary_table(tasks),
        windows=window_words(config.training.seq_len, result.windows),
        described=describe_model(
            layers=len(model.moe_layers),
            experts=model.num_experts,
            top_k=model.top_k,
            varying=model.varying_experts,
            total_parameters=result.parameters.total,
            active_parameters=result.parameters.active,
        ),
        model=model,
        training=config.training,
        text=f"`{data.path}`" if data.path else f"synthetic documents ({data.documents:,} a domain)",
        domains=run.domains(),
        status=run.status(),
        score_cells=score_cells,
        has_samples=any(task.samples for task in tasks),
    )


def summary(result: SuiteResult) -> str:
    """Which tasks are beyond chance, which text is unlike held-out text, what was not run; a sentence each."""
    text = []
    chance = _counted(result, "chance", " better than ")
    if chance:
        text.append(f"Better than chance: {chance}.")
    unlike = _counted(result, "held-out text", " than held-out text")
    if unlike:
        text.append(f"Unlike held-out text: {unlike}.")
    left_out = [task.name for task in result.tasks if task.not_run]
    if left_out:
        text.append(f"Not run: {', '.join(left_out)}.")
    return " ".join(text)


def _counted(result: SuiteResult, against: str, words: str) -> str:
    """The tasks with scores held `against` something, each with how many of its verdicts have the `words`."""
    parts = []
    for task in result.tasks:
        found = [score.verdict for score in task.scores if score.against == against]
        if found:
            parts.append(f"{task.name} {sum(words in verdict for verdict in found)} of {len(found)}")
    return ", ".join(parts)


def score_cells(score: TestedScore) -> list[str]:
    """A score for people: name, value, interval, level, verdict."""
    interval = "unknown"
    if score.low is not None and score.high is not None:
        interval = f"{_cell(score.low)} to {_cell(score.high)}"
    return [score.name, _cell(score.value), interval, _cell(score.level), score.verdict]


def _summary_table(tasks: Sequence[TaskResult]) -> str:
    rows = []
    for task in tasks:
        for score in task.scores:
            name, value, interval, level, verdict = score_cells(score)
            rows.append([escape(task.name), escape(name), verdict, value, interval, level])
        if task.not_run:
            rows.append([escape(task.name), "not run", escape(task.not_run), "", "", ""])
    return table(["task", "score", "verdict", "value", "95 % interval", "chance or held-out"], rows, text_columns=3)


def _cell(value: float | None) -> str:
    """Three digits behind the point for shares, one for larger numbers."""
    if value is None:
        return "unknown"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
