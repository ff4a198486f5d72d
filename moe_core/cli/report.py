"""`moescope report`: all figures, verdicts and numbers of a run or a trace as one HTML file."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.held_out_routing import held_out_routing
from moe_core.cli.options import Parser, command, existing_run, finish
from moe_core.cli.output import Output, check_regular, progress_on_stderr, write_bytes

if TYPE_CHECKING:
    from moe_core.progress import Progress
    from moe_core.reports.html_report import HtmlReport
    from moe_core.runs.folder import RunFolder


def parser() -> Parser:
    """Its options."""
    parser = command(
        "report",
        "Write one HTML file with everything about a run: pictures, verdicts, numbers and the model. It can be read\n"
        "without a network or a program, and printed. Of a trace, everything that its routing tells.",
        "report --run demo --out out/demo.html",
        "report --trace text.parquet",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="NAME", help="run to report on")
    source.add_argument(
        "--trace", metavar="FILE", help="trace to report on, counts, or a recording (see `open --help`)"
    )
    parser.add_argument("--out", metavar="FILE", help="file to write (default out/report-NAME.html)")
    return finish(parser, report)


def report(arguments: argparse.Namespace, output: Output) -> int:
    """Write one HTML file with all there is: pictures, verdicts, numbers and, of a run, what the model is."""
    run = existing_run(arguments.run) if arguments.run is not None else None
    name = run.name if run is not None else Path(arguments.trace).name
    path = Path(arguments.out if arguments.out is not None else f"out/report-{name}.html")
    check_regular(str(path), "--out")
    with progress_on_stderr() as progress:
        made = _of_run(run, progress) if run is not None else _of_trace(arguments.trace, progress)
        page = made.page.encode()
    write_bytes(path, page)
    count = sum(len(section.figures) for section in made.sections)
    for note in made.notes:
        output.say(note)
    for section in made.sections:
        output.say(f"{section.question} {section.figures[0].verdict}")
    output.say(f"{count} pictures, {len(page) / 2**20:.1f} MiB, in {path}: open it in any browser")
    output.figures(
        {
            **({"run": run.name} if run is not None else {"trace": arguments.trace}),
            "out": str(path),
            "bytes": len(page),
            "routing_of": made.routing_of,
            "sections": [
                {
                    "question": section.question,
                    "figures": [
                        {"name": figure.name, "title": figure.title, "verdict": figure.verdict}
                        for figure in section.figures
                    ],
                }
                for section in made.sections
            ],
        }
    )
    return 0


def _of_run(run: RunFolder, progress: Progress) -> HtmlReport:
    from moe_core.model.size import cost_of
    from moe_core.reports.html_report import report_on_run

    return report_on_run(run, held_out_routing(run), cost_of, progress)


def _of_trace(file: str, progress: Progress) -> HtmlReport:
    from moe_core.inference.named_experts import names_of
    from moe_core.inference.subjects import RoutingFile
    from moe_core.reports.html_report import report_on_routing
    from moe_core.routing.opening import open_routing

    with tempfile.TemporaryDirectory(prefix="moescope-") as scratch:
        routing = open_routing(file, convert_to=Path(scratch) / "trace.parquet", progress=progress).routing
        names, _ = names_of(RoutingFile("", Path(file).resolve()))
        return report_on_routing(f"trace {Path(file).name}", routing, routing.source, "", progress, names=names)
