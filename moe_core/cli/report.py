"""`moescope report`: all figures, verdicts and numbers of a run as one HTML file."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, existing_run, finish
from moe_core.cli.output import Output, check_regular, progress_on_stderr, write_bytes
from moe_core.cli.run_sections import run_sections

if TYPE_CHECKING:
    from moe_core.reports.page import ModelCard
    from moe_core.runs.folder import RunFolder
    from moe_core.runs.record import RunRecord


def parser() -> Parser:
    """Its options."""
    parser = command(
        "report",
        "Write one HTML file with everything about a run: pictures, verdicts, numbers and the model. It can be read\n"
        "without a network or a program, and printed.",
        "report --run demo --out out/demo.html",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run to report on")
    parser.add_argument("--out", metavar="FILE", help="file to write (default out/report-NAME.html)")
    return finish(parser, report)


def report(arguments: argparse.Namespace, output: Output) -> int:
    """Write one HTML file with all a run has: pictures, verdicts, numbers and what the model is."""
    run = existing_run(arguments.run)
    path = Path(arguments.out if arguments.out is not None else f"out/report-{run.name}.html")
    check_regular(str(path), "--out")
    from moe_core.reports.page import report_page
    from moe_core.runs.record import read_run

    with progress_on_stderr() as progress:
        record = read_run(run)
        sections, routing_of = run_sections(run, record, progress)
        card = _card(run, record, routing_of)
        page = report_page(card, sections, progress).encode()
    write_bytes(path, page)
    count = sum(len(section.figures) for section in sections)
    for note in record.notes:
        output.say(note)
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


def _card(run: RunFolder, record: RunRecord, routing_of: str) -> ModelCard:
    """Facts about the run; of one that was watched, those that its folder knows."""
    from moe_core.model.size import active_parameters, flops_per_token, total_parameters
    from moe_core.reports.page import ModelCard

    made, config = datetime.now().strftime("%Y-%m-%d %H:%M"), record.config
    if config is None:
        assert record.watched is not None
        return ModelCard(run.name, record.watched, record.step, 0, 0, 0, (), None, routing_of, made, record.notes)
    return ModelCard(
        run=run.name,
        config=config,
        step=record.step,
        total_parameters=total_parameters(config.model),
        active_parameters=active_parameters(config.model),
        flops_per_token=flops_per_token(config.model, config.training.seq_len),
        domains=run.domains(),
        evaluation=record.evaluation,
        routing_of=routing_of,
        notes=record.notes,
        made=made,
    )
