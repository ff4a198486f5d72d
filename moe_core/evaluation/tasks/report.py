"""suite.md of a run: what it is, how it was trained, and every score beside what it is held against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_core.data.windows import WINDOW_RULE, window_words
from moe_core.evaluation.markdown import escape, fenced, table
from moe_core.routing.measures.health import describe_model
from moe_core.runs.folder import RunFolder
from moe_core.words import count_of, p_value


def write_suite(run: RunFolder, result: Mapping[str, Any]) -> Path:
    """Keep `result` (of run_suite) in the run's folder as suite.json and suite.md; returns the latter.

    Raises RunError when the disk refuses; an older report is then untouched.
    """
    run.write_file("suite.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    return run.write_file("suite.md", suite_text(run, result).encode("utf-8", errors="backslashreplace"))


def suite_text(run: RunFolder, result: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    tasks: Sequence[Mapping[str, Any]] = result["tasks"]
    lines = [
        f"# Evaluation suite: run {run.name}, step {result['step']:,}",
        "",
        "## Summary",
        "",
        escape(summary(result)),
        "",
        *_summary_table(tasks),
        "",
        "Intervals: 95 %. A verdict needs a p-value of at most 0.05 after adjusting for all scores of this page "
        "(Benjamini-Hochberg); clearly: at least a tenth of the way from chance to perfect, or 10 points from "
        f"held-out text. {window_words(run.config().training.seq_len, result.get('windows', WINDOW_RULE))}",
        "",
        "## Architecture",
        "",
        *_architecture(run, result),
        "",
        "## Training",
        "",
        *_training(run, result),
        "",
        "## Results",
        "",
    ]
    for task in tasks:
        lines += _result(task)
    lines += ["## Samples", ""]
    samples = [(task, sample) for task in tasks for sample in task["samples"]]
    for task, sample in samples:
        lines += [
            f"{task['name']}, {escape(sample['title'])}: after",
            "",
            *fenced(sample["prompt"]),
            "",
            "it wrote",
            "",
        ]
        lines += [*fenced(sample["text"] or "(nothing)"), ""]
    if not samples:
        lines += ["No task of this report writes text.", ""]
    lines += [f"Made by `python main.py --evaluate --suite --run {run.name}`, seed {result['seed']}.", ""]
    return "\n".join(lines)


def summary(result: Mapping[str, Any]) -> str:
    """Which tasks are beyond chance, which text is unlike held-out text, what was not run; a sentence each."""
    text = []
    chance = _counted(result, "chance", " better than ")
    if chance:
        text.append(f"Better than chance: {chance}.")
    unlike = _counted(result, "held-out text", " than held-out text")
    if unlike:
        text.append(f"Unlike held-out text: {unlike}.")
    left_out = [task["name"] for task in result["tasks"] if task["not_run"]]
    if left_out:
        text.append(f"Not run: {', '.join(left_out)}.")
    return " ".join(text)


def _counted(result: Mapping[str, Any], against: str, words: str) -> str:
    """The tasks with scores held `against` something, each with how many of its verdicts have the `words`."""
    parts = []
    for task in result["tasks"]:
        found = [score["verdict"] for score in task["scores"] if score["against"] == against]
        if found:
            parts.append(f"{task['name']} {sum(words in verdict for verdict in found)} of {len(found)}")
    return ", ".join(parts)


def score_cells(score: Mapping[str, Any]) -> list[str]:
    """A score for people: name, value, interval, level, verdict."""
    interval = "unknown"
    if score["low"] is not None and score["high"] is not None:
        interval = f"{_cell(score['low'])} to {_cell(score['high'])}"
    return [score["name"], _cell(score["value"]), interval, _cell(score["level"]), score["verdict"]]


def _summary_table(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for task in tasks:
        for score in task["scores"]:
            name, value, interval, level, verdict = score_cells(score)
            rows.append([escape(task["name"]), escape(name), verdict, value, interval, level])
        if task["not_run"]:
            rows.append([escape(task["name"]), "not run", escape(task["not_run"]), "", "", ""])
    return table(["task", "score", "verdict", "value", "95 % interval", "chance or held-out"], rows, text_columns=3)


def _architecture(run: RunFolder, result: Mapping[str, Any]) -> list[str]:
    model = run.config().model
    described = describe_model(
        layers=len(model.moe_layers),
        experts=model.num_experts,
        top_k=model.top_k,
        varying=model.varying_experts,
        total_parameters=result["parameters"]["total"],
        active_parameters=result["parameters"]["active"],
    )
    heads = f"{model.num_heads} of {model.head_dim} ({model.num_kv_heads} for keys and values)"
    return [
        described,
        "",
        *table(
            ["what", "how much"],
            [
                ["layers", str(model.num_layers)],
                ["width", str(model.dim)],
                ["attention heads", heads],
                ["width of an expert", str(model.expert_hidden_dim)],
                [
                    "router",
                    f"{model.router.kind}, balanced by {model.router.balances_by}" if model.moe_layers else "none",
                ],
                ["vocabulary", f"{model.vocab_size:,}"],
            ],
        ),
    ]


def _training(run: RunFolder, result: Mapping[str, Any]) -> list[str]:
    config, status = run.config(), run.status()
    training = config.training
    text = f"`{config.data.path}`" if config.data.path else f"synthetic documents ({config.data.documents:,} a domain)"
    rows = [
        ["text", text],
        ["domains", escape(", ".join(run.domains()))],
        ["steps", f"{result['step']:,} of {training.batch_size} sequences of {training.seq_len} tokens"],
        ["optimizer", f"{training.optimizer}, learning rate {training.learning_rate:g}"],
        ["seed", str(training.seed)],
    ]
    if status is not None and status.tokens:
        rows.append(["tokens read", f"{status.tokens:,}"])
        rows.append(["time", f"{status.elapsed_seconds:,.0f} s"])
    return table(["what", "how"], rows, text_columns=2)


def _result(task: Mapping[str, Any]) -> list[str]:
    lines = [f"### {escape(task['name'])}", "", escape(task["asks"]), ""]
    if task["not_run"]:
        return [*lines, f"Not run: {escape(task['not_run'])}.", ""]
    rows = []
    for score in task["scores"]:
        name, value, interval, level, verdict = score_cells(score)
        p = "unknown" if score["p_adjusted"] is None else p_value(score["p_adjusted"])
        of = count_of(score["n"], score["unit"])
        rows.append([escape(name), verdict, escape(score["level_is"]), value, interval, level, p, of])
    header = ["score", "verdict", "held against", "value", "95 % interval", "there", "adjusted p", "of"]
    lines += [*table(header, rows, text_columns=3), ""] if rows else []
    if task["plugin"]:
        lines += [f"A benchmark of {escape(task['plugin'])}.", ""]
    return [*lines, escape(task["note"]), ""] if task["note"] else lines


def _cell(value: float | None) -> str:
    """Three digits behind the point for shares, one for larger numbers."""
    if value is None:
        return "unknown"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
