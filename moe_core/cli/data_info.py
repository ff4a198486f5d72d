"""`moescope data info`: what is in a folder of shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_core.cli.data_tables import contents_figures, contents_table
from moe_core.cli.options import Parser, command, finish
from moe_core.cli.output import Output
from moe_core.words import count_of, listed


def parser() -> Parser:
    """Its options."""
    parser = command(
        "data info",
        "Say what is in a folder of shards: documents, tokens and bytes of every split and domain, and its tokenizer.\n"
        "It reads the index and the tables of documents; whether the tokens are sound is for `data verify`.",
        "data info out/shards",
        "data info out/shards --json out/shards.json",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder that data prepare or data merge wrote")
    return finish(parser, info)


def info(arguments: argparse.Namespace, output: Output) -> int:
    """Print the folder's contents."""
    from moe_core.data.shards.shard_contents import contents_of
    from moe_core.data.shards.shard_reader import ShardFolder

    folder = ShardFolder(Path(arguments.folder))
    index = folder.index
    contents = contents_of(folder)
    dtypes = sorted({shard.dtype for shard in index.shards})
    size = sum(file.stat().st_size for file in folder.path.iterdir() if file.is_file())
    output.say(
        f"{folder.path}: {count_of(len(index.shards), 'shard')} of {listed(dtypes)}, {size:,} bytes; tokenizer of "
        f"{index.vocab_size:,} ids, end-of-text {'none' if index.end_of_text is None else index.end_of_text}, SHA-256 "
        f"{index.tokenizer_sha256[:12]}..."
    )
    output.say(contents_table(contents))
    for name, note in index.notes.items():
        output.say(f"{name}: {note}")
    output.figures(
        {
            "folder": str(folder.path),
            "schema": index.schema,
            "version": index.version,
            "fingerprint": folder.fingerprint,
            "shards": len(index.shards),
            "dtype": dtypes,
            "size_bytes": size,
            "tokenizer": {
                "vocab_size": index.vocab_size,
                "end_of_text": index.end_of_text,
                "sha256": index.tokenizer_sha256,
            },
            "contents": contents_figures(contents),
            "notes": index.notes,
        }
    )
    return 0
