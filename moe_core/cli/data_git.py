"""`moescope data git`: a repository as shards, and again after its next commits."""

from __future__ import annotations

import argparse
import os

from moe_core.cli.data_prepare import chosen_tokenizer
from moe_core.cli.data_tables import contents_table
from moe_core.cli.options import Parser, command, finish, whole
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.words import count_of


def parser() -> Parser:
    """Its options."""
    parser = command(
        "data git",
        "Write the files of a git repository at a commit as shards; a domain is a language. With --since only what\n"
        "has changed is tokenised: the result is, byte for byte, that of writing it anew (requirements-code.txt).",
        "data git . --tokenizer demo --out out/shards-1",
        "data git . --since out/shards-1 --out out/shards-2",
    )
    parser.add_argument("repository", metavar="REPOSITORY", help="a folder with a git repository, bare or not")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write; it must be empty or missing")
    parser.add_argument("--revision", metavar="R", default="HEAD", help="branch, tag or commit (default HEAD)")
    parser.add_argument("--since", metavar="DIR", help="shards of an earlier commit, whose tokens are taken over")
    parser.add_argument(
        "--tokenizer", metavar="FILE_OR_RUN", help="tokenizer.json, a run, or tiktoken:NAME (default: that of --since)"
    )
    parser.add_argument(
        "--workers", metavar="N", type=whole(1, 1024), default=os.cpu_count() or 1, help="cores that tokenise "
        "(default: all); the result is the same",
    )  # fmt: skip
    return finish(parser, git)


def git(arguments: argparse.Namespace, output: Output) -> int:
    """Write the folder, and say how much of it was taken over."""
    from moe_core.data.shards.repository import open_repository, shards_of_repository
    from moe_core.data.shards.shard_contents import contents_of
    from moe_core.data.shards.shard_reader import ShardFolder
    from moe_core.files import user_path

    repository = user_path(arguments.repository)
    open_repository(repository).close()  # what is missing is said before a tokenizer is asked for
    if arguments.tokenizer is None and arguments.since is None:
        raise UsageError(
            "nothing says how to tokenise; expected --tokenizer, or --since with shards of an earlier commit"
        )
    out, since = user_path(arguments.out), None if arguments.since is None else user_path(arguments.since)
    tokenizer = chosen_tokenizer(arguments.tokenizer) if arguments.tokenizer is not None else None
    if tokenizer is None and since is not None:
        tokenizer = ShardFolder(since).tokenizer
    assert tokenizer is not None
    with progress_on_stderr() as progress:
        found = shards_of_repository(
            repository, out, tokenizer, revision=arguments.revision, since=since,
            workers=arguments.workers, progress=progress,
        )  # fmt: skip
    reasons = "".join(f"; {count:,} {why}" for why, count in found.left_out.items())
    output.say(
        f"Commit {found.commit[:12]}: {count_of(found.files, 'file')}, {found.reused:,} taken over. Left out: "
        f"{sum(found.left_out.values()):,}{reasons}."
    )
    output.say(contents_table(contents_of(ShardFolder(out))))
    output.say(f"Train:     {program()} --run NAME --data {out}")
    output.figures(
        {
            "out": str(out),
            "commit": found.commit,
            "files": found.files,
            "reused": found.reused,
            "left_out": sum(found.left_out.values()),
            "left_out_by_reason": found.left_out,
        }
    )
    return 0
