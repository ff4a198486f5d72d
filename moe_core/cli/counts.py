"""`moescope counts`: what the routing of many files adds up to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from moe_core.cli.options import Parser, command, finish, whole
from moe_core.cli.output import Output, check_regular, progress_on_stderr, table
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.words import count_of


def parser() -> Parser:
    """Its options."""
    parser = command(
        "counts",
        "Count how often each expert is chosen in a folder of traces, of any size, and write one file of counts.\n"
        "The files are counted in several processes and added up in the order of their names: the counts are the same\n"
        "whatever the number of workers. A folder stands for the traces in it and below; a glob or a file also for\n"
        "counts and for recordings of any known format.",
        "counts traces/ --out out/all.counts.parquet",
        "counts traces/ --out out/all.counts.parquet --by domain --extras weights pairs --workers 8",
        "counts 'logs/*.jsonl' one.parquet --out out/all.counts.parquet --skip-damaged",
        "counts /shared/traces --out out/all.counts.parquet --engine ray --address auto --workers 64",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a folder, a glob in quotes, or files")
    parser.add_argument("--out", metavar="X.parquet", required=True, help="file to write, such as x.counts.parquet")
    parser.add_argument(
        "--by", choices=("source", "domain", "all"), default="source", help="what is counted apart: each source of "
        "text (default), which tests against chance need; each domain; or nothing",
    )  # fmt: skip
    parser.add_argument(
        "--extras", metavar="NAME", nargs="+", default=[], help="further sums: weights (combine weights of each "
        "expert), pairs (experts chosen together); of counts, whatever they have",
    )  # fmt: skip
    parser.add_argument(
        "--same-sources", action="store_true", help="source 3 of one file is source 3 of every file; without it "
        "sources are named after their file, a.parquet:3",
    )  # fmt: skip
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave damaged files out and say so, instead of stopping at one"
    )
    parser.add_argument(
        "--workers", metavar="N", type=whole(1, 10_000), help="files counted at a time (default: one for each "
        "processor where there is enough to do); each takes memory for two parts of a file, some hundred MiB",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("processes", "ray"), default="processes", help="who counts: processes of this machine "
        "(default), or a Ray cluster whose machines have Moescope and see the files (needs the extra `ray`)",
    )  # fmt: skip
    parser.add_argument(
        "--address", metavar="A", help="of the Ray cluster, such as auto or ray://host:10001 (default: RAY_ADDRESS, "
        "else one of this machine's own)",
    )  # fmt: skip
    return finish(parser, counts)


def counts(arguments: argparse.Namespace, output: Output) -> int:
    """Count every file, add them up, and write the counts."""
    check_regular(arguments.out, "--out")
    if arguments.address is not None and arguments.engine != "ray":
        raise UsageError(f"--address {arguments.address!r} is of a Ray cluster; add --engine ray or leave it out")
    from moe_core.routing.workers.count_files import count_files

    with progress_on_stderr() as progress:
        found = count_files(
            arguments.paths,
            by=arguments.by,
            extras=arguments.extras,
            same_sources=arguments.same_sources,
            skip_damaged=arguments.skip_damaged,
            workers=arguments.workers,
            engine=arguments.engine,
            address=arguments.address,
            out=Path(arguments.out),
            progress=progress,
        )
    total = found.counts
    total.save(arguments.out)
    output.say(f"{count_of(total.num_tokens, total.unit)} of {count_of(len(found.files), 'file')} in {arguments.out}")
    output.say(
        table(
            ["layers", "experts", "top k", "steps", "groups", "domains", "extras"],
            [
                [
                    str(total.num_layers),
                    str(total.num_experts),
                    "unknown" if total.unit == "choice" else str(total.top_k),
                    f"{len(total.steps):,}",
                    f"{len(total.groups):,}",
                    str(len(total.domains)),
                    ", ".join(total.extras) or "none",
                ]
            ],
        )
    )
    for line in found.damaged.values():
        output.say(f"Note: left out, {line}.")
    for line in passed_over(found.passed_over):
        output.say(f"Note: {line}.")
    output.say(f"Look at it:  {program()} open {arguments.out}")
    output.figures(
        {
            "out": arguments.out,
            "files": list(found.files),
            "damaged": dict(found.damaged),
            "passed_over": dict(found.passed_over),
            "by": arguments.by,
            "tokens": total.num_tokens,
            "unit": total.unit,
            "steps": len(total.steps),
            "layers": total.layers,
            "num_experts": total.num_experts,
            "top_k": total.top_k,
            "groups": len(total.groups),
            "domains": total.domains,
            "extras": list(total.extras),
            "notes": list(total.notes),
            "workers": found.workers,
            "engine": arguments.engine,
        }
    )
    return 0


def passed_over(files: Mapping[str, str]) -> list[str]:
    """A sentence for the counts and one for the foreign files that lay in a folder of traces."""
    lines = []
    for kind, what, remedy in (
        ("counts", "of counts", "they may be of the same tokens; name them or a glob to add them"),
        ("foreign", "that is no trace of ours", "convert it, or name it to have it read as a recording"),
    ):
        names = [name for name, of in files.items() if of == kind]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            named = f"{', '.join(names[:3])}{more}"
            lines.append(f"{count_of(len(names), 'file')} {what} in the folder not counted ({named}): {remedy}")
    return lines
