"""`moescope data`: what is done with text before training, each with a command of its own."""

from __future__ import annotations

from collections.abc import Sequence

from moe_core.cli import data_dedup, data_git, data_info, data_merge, data_prepare, data_synthetic, data_verify
from moe_core.cli.options import Parser

SUBCOMMANDS = {
    "synthetic": ("write the synthetic documents and measure their quality", data_synthetic.parser),
    "prepare": ("write text of any size as a folder of shards", data_prepare.parser),
    "git": ("write a git repository as shards, and after its next commits only what changed", data_git.parser),
    "dedup": ("remove documents that are copies of others, exactly or nearly", data_dedup.parser),
    "merge": ("write several folders of shards as one, in the mix that is asked for", data_merge.parser),
    "verify": ("read a folder of shards and name what is not as it was written", data_verify.parser),
    "info": ("say what is in a folder of shards", data_info.parser),
}
"""What follows `data`: its summary and its parser, whose file has the handler beside it."""


def parser() -> Parser:
    """`data` alone: the synthetic documents, as before there were other commands, and a list of those."""
    lines = [f"  data {name:<10} {summary}" for name, (summary, _) in SUBCOMMANDS.items()]
    return data_synthetic.parser("data", "\n".join(["commands (each has its own --help):", *lines, "", ""]))


def parser_of(arguments: Sequence[str]) -> tuple[Parser, Sequence[str]]:
    """The parser for what follows `data`, and what it is to parse."""
    if arguments and arguments[0] in SUBCOMMANDS:
        return SUBCOMMANDS[arguments[0]][1](), arguments[1:]
    own = parser()
    if arguments and not arguments[0].startswith("-"):
        own.error(f"unknown command {arguments[0][:60]!r} of data; expected {', '.join(SUBCOMMANDS)}")
    return own, arguments
