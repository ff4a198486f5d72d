"""`python main.py plots` and `python main.py report`: figures as files, and all of them as one page."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.commands import existing_run, output_folder
from moe_core.cli.output import Output, check_regular, progress_on_stderr, write_bytes
from moe_core.errors import MoescopeError
from moe_core.progress import Progress
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.figures.run_figures import Section
    from moe_core.runs.folder import RunFolder
    from moe_core.runs.record import RunRecord


def plots(arguments: argparse.Namespace, output: Output) -> int:
    """Write every figure of a run or a trace in every format asked for."""
    folder = output_folder(arguments.out)
    run = existing_run(arguments.run) if arguments.run is not None else None
    formats = list(dict.fromkeys(arguments.format or ["png"]))
    from moe_core.figures.figure import figure_bytes
    from moe_core.figures.run_figures import sections_of_trace
    from moe_core.routing.trace.trace import open_or_load
    from moe_core.runs.record import read_run

    with progress_on_stderr() as progress:
        if run is not None:
            sections, _ = _sections(run, read_run(run), progress)
        else:
            sections = sections_of_trace(open_or_load(arguments.trace), progress)
        figures = [figure for section in sections for figure in section.figures]
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, list[str]] = {}
        for number, figure in enumerate(figures, start=1):
            # A figure that cannot be a picture is written as what it can be, rather than left out.
            chosen = [suffix for suffix in formats if suffix in figure.formats] or [figure.formats[0]]
            written[figure.name] = [f"{figure.name}.{suffix}" for suffix in chosen]
            for suffix, name in zip(chosen, written[figure.name], strict=True):
                write_bytes(folder / name, figure_bytes(figure, suffix))
            progress("drawing", number, len(figures))
    for figure in figures:
        output.say(f"{figure.title}: {figure.verdict}")
        missing = [suffix for suffix in formats if suffix not in figure.formats]
        if missing:
            output.say(f"  (no {' or '.join(missing)} of this one: {', '.join(written[figure.name])})")
    output.say(f"{count_of(len(figures), 'figure')} as {', '.join(formats)} in {folder}")
    output.figures(
        {
            "out": str(folder),
            "figures": [
                {
                    "name": figure.name,
                    "title": figure.title,
                    "question": figure.question,
                    "verdict": figure.verdict,
                    "files": written[figure.name],
                }
                for figure in figures
            ],
        }
    )
    return 0


def report(arguments: argparse.Namespace, output: Output) -> int:
    """Write one HTML file with all a run has: pictures, verdicts, numbers and what the model is."""
    run = existing_run(arguments.run)
    path = Path(arguments.out if arguments.out is not None else f"out/report-{run.name}.html")
    check_regular(str(path), "--out")
    from moe_core.model.size import active_parameters, flops_per_token, total_parameters
    from moe_core.reports.page import ModelCard, report_page
    from moe_core.runs.record import read_run

    with progress_on_stderr() as progress:
        record = read_run(run)
        config = record.config
        sections, routing_of = _sections(run, record, progress)
        card = ModelCard(
            run=run.name,
            config=config,
            step=record.step,
            total_parameters=total_parameters(config.model),
            active_parameters=active_parameters(config.model),
            flops_per_token=flops_per_token(config.model, config.training.seq_len),
            domains=run.domains(),
            evaluation=record.evaluation,
            routing_of=routing_of,
            made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        )
        page = report_page(card, sections, progress).encode()
    write_bytes(path, page)
    count = sum(len(section.figures) for section in sections)
    for section in sections:
        output.say(f"{section.question} {section.figures[0].verdict}")
    output.say(f"{count} pictures, {len(page) / 2**20:.1f} MiB, in {path}: open it in any browser")
    output.figures(
        {
            "run": run.name,
            "out": str(path),
            "bytes": len(page),
            "routing_of": routing_of,
            "sections": [
                {
                    "question": section.question,
                    "figures": [
                        {"name": figure.name, "title": figure.title, "verdict": figure.verdict}
                        for figure in section.figures
                    ],
                }
                for section in sections
            ],
        }
    )
    return 0


def _sections(run: RunFolder, record: RunRecord, progress: Progress) -> tuple[list[Section], str]:
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
