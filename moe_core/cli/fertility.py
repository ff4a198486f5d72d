"""`moescope fertility`: how finely a tokenizer cuts each language or domain."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_core.cli.options import Parser, command, existing_run, finish
from moe_core.cli.output import Output, table
from moe_core.errors import UsageError
from moe_core.words import number, percent


def parser() -> Parser:
    """Its options."""
    parser = command(
        "fertility",
        "How many bytes a token holds in each domain or language: what a tokenizer cuts finely costs more to read and\n"
        "to write, and fills the window sooner.",
        "fertility --run demo",
        "fertility --tokenizer tokenizer.json --data corpus/",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="NAME", help="the tokenizer of this run, and its held-out text")
    which.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json of Moescope or of another model")
    parser.add_argument(
        "--data", metavar="PATH", help="documents, as for training; a folder's subfolders are its domains, or languages"
    )
    return finish(parser, fertility)


def fertility(arguments: argparse.Namespace, output: Output) -> int:
    """Print the table, the domain that needs fewest tokens first."""
    if arguments.run is None and arguments.data is None:
        raise UsageError("--tokenizer takes the text to cut; expected --data PATH")
    from moe_core.data.fertility import fertility_by_domain
    from moe_core.data.sources import read_documents
    from moe_core.data.splits import HELD_OUT_SPLITS
    from moe_core.data.tokenizer import TextTokenizer, Tokenizer
    from moe_core.inference.tokenizer_texts import TokenizerTexts
    from moe_core.runs.checkpoint import find_checkpoint

    tokenizer: TextTokenizer
    if arguments.run is not None:
        run = existing_run(arguments.run)
        tokenizer = Tokenizer.load(find_checkpoint(run) / "tokenizer.json")
        documents = [document for split in HELD_OUT_SPLITS for document in run.held_out(split)]
    else:
        tokenizer = TokenizerTexts(Path(arguments.tokenizer)).tokenizer
    if arguments.data is not None:
        documents = list(read_documents(arguments.data))
    frame = fertility_by_domain(documents, tokenizer)
    rows = [
        [row["domain"], f"{row['documents']:,}", f"{row['bytes']:,}", f"{row['tokens']:,}",
         f"{row['bytes_per_token']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", number(row["tokens_per_word"]),
         percent(row["single_bytes"]), percent(row["vocabulary"]), f"{row['to_best']:.2f}"]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    header = [
        "domain", "documents", "bytes", "tokens", "bytes/token", "95 %", "tokens/word", "single bytes",
        "vocabulary used", "cost, best = 1",
    ]  # fmt: skip
    output.say(table(header, rows))
    output.figures({"vocabulary": tokenizer.vocab_size, "domains": frame.to_dict("records")})
    return 0
