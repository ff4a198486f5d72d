"""`moescope data prepare`: your own text as shards, whatever its size."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, finish, whole
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.program import program

if TYPE_CHECKING:
    from moe_core.data.tokenizer import Tokenizer


def parser() -> Parser:
    """Its options."""
    parser = command(
        "data prepare",
        "Read, split and tokenise text into a folder of shards, from which training starts in a moment. Memory hardly\n"
        "grows with the text. What is killed goes on with --resume, to the same bytes.",
        "data prepare texts.jsonl --out out/texts",
        "data prepare books/ more.parquet --out out/texts --vocab-size 16384 --workers 4",
        "data prepare texts.jsonl --out out/texts --tokenizer mine",
        "data prepare texts.jsonl --out out/texts --resume",
        "data prepare --dataset tiny-shakespeare --out out/shakespeare",
    )
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="*", help=".jsonl, .parquet, .csv or .txt files, or folders of one folder a "
        "domain",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", metavar="NAME", help="instead of files, a data set of the datasets library: a name in its cache "
        "or on the Hub, NAME:CONFIGURATION, or a folder of save_to_disk; its text is first written to DIR.jsonl, from "
        "which --resume goes on (needs requirements-data.txt)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write; it must be empty or missing")
    parser.add_argument(
        "--tokenizer", metavar="FILE_OR_RUN", help="use the tokenizer of a file (tokenizer.json), of a run, or "
        "tiktoken:NAME; without it one is trained on the training split",
    )  # fmt: skip
    parser.add_argument(
        "--vocab-size", metavar="V", type=whole(257, 2**24), help="ids of the tokenizer that is trained, at most "
        "(default: that of the default model)",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="S", type=whole(0, 2**32 - 1), default=0, help="of the split (default 0)")
    parser.add_argument(
        "--workers", metavar="N", type=whole(1, 1024), default=os.cpu_count() or 1, help="cores that tokenise "
        "(default: all); the result is the same",
    )  # fmt: skip
    parser.add_argument(
        "--shard-tokens", metavar="N", type=whole(1, 2**31), default=2**24, help="training tokens in a file (default "
        "16777216); what is killed goes on from the last whole one",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with what was begun with the same options")
    return finish(parser, prepare)


def prepare(arguments: argparse.Namespace, output: Output) -> int:
    """Write the folder, and say what is in it."""
    from moe_core.config import load_config
    from moe_core.data.hub_datasets import write_dataset
    from moe_core.data.shards.preparation import prepare_shards
    from moe_core.errors import UsageError
    from moe_core.files import user_path

    if arguments.tokenizer is not None and arguments.vocab_size is not None:
        raise UsageError("--tokenizer is used as it is and takes no --vocab-size; leave one out")
    if bool(arguments.inputs) == bool(arguments.dataset):
        raise UsageError("data prepare takes files or folders, or else --dataset NAME; expected one of the two")
    out = user_path(arguments.out)
    inputs = [user_path(path) for path in arguments.inputs]
    with progress_on_stderr() as progress:
        if arguments.dataset:
            # Text is read three times, and again by --resume: a stream from a network is written down first.
            inputs = [out.with_name(f"{out.name}.jsonl")]
            if inputs[0].exists() and not arguments.resume:
                raise UsageError(f"{str(inputs[0])!r} is there already; --resume goes on from it, or remove it")
            if not inputs[0].exists():
                write_dataset(arguments.dataset, inputs[0], progress)
        index = prepare_shards(
            inputs,
            out,
            vocab_size=arguments.vocab_size or load_config("default", environment={}).model.vocab_size,
            tokenizer=None if arguments.tokenizer is None else chosen_tokenizer(arguments.tokenizer),
            seed=arguments.seed,
            workers=arguments.workers,
            shard_tokens=arguments.shard_tokens,
            resume=arguments.resume,
            progress=progress,
        )
    rows = []
    for split in dict.fromkeys(shard.split for shard in index.shards):
        shards = index.of_split(split)
        documents = sum(shard.documents for shard in shards)
        rows.append([split, f"{documents:,}", f"{index.tokens(split):,}", str(len(shards))])
    output.say(table(["split", "documents", "tokens", "shards"], rows))
    learned = index.notes["UTF-8 bytes the tokenizer was trained on"]
    words = f"trained on {learned:,} bytes of the training text" if learned else "as given"
    output.say(f"Tokenizer: {index.vocab_size:,} ids, {words}.")
    output.say(f"Train:     {program()} --run NAME --data {out}")
    splits = {
        split: {"documents": sum(shard.documents for shard in index.of_split(split)), "tokens": index.tokens(split)}
        for split, *_ in rows
    }
    figures = {"vocab_size": index.vocab_size, "domains": index.domains, "splits": splits, "notes": index.notes}
    output.figures({"out": str(out), **figures})
    return 0


def chosen_tokenizer(which: str) -> Tokenizer:
    """Of a file, of a run, or an encoding of tiktoken."""
    from moe_core.data.tiktoken_encodings import tiktoken_tokenizer
    from moe_core.data.tokenizer import Tokenizer
    from moe_core.errors import UsageError
    from moe_core.runs.checkpoint import find_checkpoint
    from moe_core.runs.folder import RunFolder

    if which.startswith("tiktoken:"):
        return tiktoken_tokenizer(which.removeprefix("tiktoken:"))
    path = Path(which)
    if path.is_file():
        return Tokenizer.load(path)
    run = RunFolder(which)
    if not run.exists():
        raise UsageError(f"--tokenizer {which!r} is no file and no run; expected tokenizer.json or the name of a run")
    return Tokenizer.load(find_checkpoint(run) / "tokenizer.json")
