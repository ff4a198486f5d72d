"""`moescope data verify`: whether a folder of shards is what was written."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_core.cli.data_tables import contents_figures, contents_table
from moe_core.cli.options import Parser, command, finish
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.words import count_of


def parser() -> Parser:
    """Its options."""
    parser = command(
        "data verify",
        "Read all of a folder of shards and name every file that is missing, truncated, changed or duplicated, every\n"
        "count that is wrong, and a tokenizer that is not the one. Exit code 1 if there is one.",
        "data verify out/shards",
        "data verify out/shards --json out/faults.json",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder that data prepare or data merge wrote")
    return finish(parser, verify)


def verify(arguments: argparse.Namespace, output: Output) -> int:
    """Print the faults, or what is in the sound folder."""
    from moe_core.data.shards.shard_verification import verify as verify_folder

    with progress_on_stderr() as progress:
        found = verify_folder(Path(arguments.folder), progress=progress)
    if found.faults:
        output.say(table(["file", "fault"], [[fault.file, fault.fault] for fault in found.faults]))
        output.say(
            f"{count_of(len(found.faults), 'fault')} in {arguments.folder}; prepare the text again, or restore a copy"
        )
    else:
        output.say(contents_table(found.contents))
        output.say(f"{arguments.folder} is sound: every byte and every count is as it was written")
    output.figures(
        {
            "folder": arguments.folder,
            "sound": not found.faults,
            "faults": [{"file": fault.file, "fault": fault.fault} for fault in found.faults],
            "contents": contents_figures(found.contents),
        }
    )
    return 1 if found.faults else 0
