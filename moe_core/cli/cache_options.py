"""--cache and what belongs to it: how keys and values of the text are kept."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, whole
from moe_core.errors import UsageError
from moe_core.files import user_path
from moe_core.inference.cache_choice import BITS, RECENT, CacheChoice

if TYPE_CHECKING:
    from moe_core.inference.own_model import OwnModel
    from moe_core.inference.protocol import LanguageModel


def add_cache(parser: Parser, does: str) -> None:
    """--cache and --cache-recent. `does`: what follows the colon of its help."""
    parser.add_argument(
        "--cache", metavar="KIND", help="with --run: keys and values of the text otherwise than whole. int8, int4, "
        "int2: in so many bits, keys per channel and values per token, the newest tokens as they are (KIVI, "
        "arXiv:2402.02750). sinks:N: of N tokens, the first 4 and the newest (StreamingLLM, arXiv:2309.17453). "
        f"heavy:N: of N tokens, half the newest and half those looked at most (H2O, arXiv:2306.14048){does}",
    )  # fmt: skip
    parser.add_argument(
        "--cache-recent", metavar="N", type=whole(1, 1_000_000), help="newest tokens that int8, int4 and int2 keep as "
        f"they are, at least (default {RECENT})",
    )  # fmt: skip


def add_prefix_cache(parser: Parser | argparse._ArgumentGroup) -> None:
    """--prefix-cache."""
    parser.add_argument(
        "--prefix-cache", metavar="FOLDER", help="keep keys and values of beginnings of prompts there, as files of a "
        "gigabyte together, and read none of ours anew that any process has kept; text can be read off them (runs of "
        "ours, with whole caches)",
    )  # fmt: skip


def prefix_cache_of(arguments: argparse.Namespace) -> Path | None:
    """The folder. Raises UsageError for what is none, and beside a cache that is not whole."""
    if arguments.prefix_cache is None:
        return None
    if arguments.cache is not None or arguments.run is None:
        raise UsageError(
            "--prefix-cache keeps whole keys and values of runs of ours; expected --run NAME without --cache"
        )
    return user_path(arguments.prefix_cache)


def cache_of(arguments: argparse.Namespace) -> CacheChoice:
    """Raises UsageError for what does not go together."""
    if arguments.cache_recent is not None and arguments.cache is None:
        raise UsageError(f"--cache-recent {arguments.cache_recent} goes with --cache {' or '.join(BITS)}")
    choice = CacheChoice() if arguments.cache is None else CacheChoice.parse(arguments.cache, arguments.cache_recent)
    if choice.changes and arguments.run is None:
        raise UsageError(
            f"--cache {arguments.cache} goes with --run; a model of the transformers library keeps its keys and "
            "values itself"
        )
    return choice


def with_cache(model: LanguageModel, choice: CacheChoice) -> LanguageModel:
    """The same model, which keeps what it reads that way."""
    from moe_core.inference.own_model import OwnModel

    if not choice.changes:
        return model
    assert isinstance(model, OwnModel), "cache_of asks for a run"
    return replace(model, cache=choice)


def cache_bytes(model: OwnModel) -> tuple[int, int]:
    """What keys and values of a text of a whole window take: as the model keeps them, and whole."""
    kept, whole = (replace(model, cache=choice).empty_cache() for choice in (model.cache, CacheChoice()))
    return kept.key_value_bytes, whole.key_value_bytes
