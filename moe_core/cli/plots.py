"""`moescope plots`: every figure of a run or a trace as files."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from moe_core.cli.figure_files import add_format, chosen_formats, figure_records, write_figures
from moe_core.cli.held_out_routing import held_out_routing
from moe_core.cli.options import Parser, command, existing_run, finish, output_folder
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.words import count_of


def parser() -> Parser:
    """Its options."""
    parser = command(
        "plots",
        "Write every figure of a run or of a trace to files, named after what they show.",
        "plots --run demo --out out/plots --format png --format csv",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run", metavar="NAME", help="figures of this run: training, routing of held-out text, and what `ablate` found"
    )
    source.add_argument(
        "--trace", metavar="FILE", help="figures of this trace, of counts, or of a recording (see `open --help`)"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to; created if missing")
    add_format(parser)
    return finish(parser, plots)


def plots(arguments: argparse.Namespace, output: Output) -> int:
    """Write every figure of a run or a trace in every format asked for."""
    folder = output_folder(arguments.out)
    run = existing_run(arguments.run) if arguments.run is not None else None
    formats = chosen_formats(arguments.format)
    from moe_core.figures.run_figures import sections_of_trace
    from moe_core.reports.html_report import sections_with_routing
    from moe_core.routing.opening import open_routing
    from moe_core.runs.record import read_run

    with progress_on_stderr() as progress:
        notes: list[str] = []
        if run is not None:
            record = read_run(run)
            notes = record.notes
            sections, _ = sections_with_routing(record, held_out_routing(run), progress)
        else:
            with tempfile.TemporaryDirectory(prefix="moescope-") as scratch:
                found = open_routing(arguments.trace, convert_to=Path(scratch) / "trace.parquet", progress=progress)
                sections = sections_of_trace(found.routing, progress)
        figures = [figure for section in sections for figure in section.figures]
        written = write_figures(figures, folder, formats, progress)
    for figure in figures:
        output.say(f"{figure.title}: {figure.verdict}")
        missing = [suffix for suffix in formats if suffix not in figure.formats]
        if missing:
            output.say(f"  (no {' or '.join(missing)} of this one: {', '.join(written[figure.name])})")
    for note in notes:
        output.say(note)
    output.say(f"{count_of(len(figures), 'figure')} as {', '.join(formats)} in {folder}")
    output.figures({"out": str(folder), "figures": figure_records(figures, written)})
    return 0
