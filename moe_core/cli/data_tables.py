"""What is in a folder of shards, as `data info`, `data verify` and `data merge` print it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_core.cli.output import table
from moe_core.words import fixed

if TYPE_CHECKING:
    from moe_core.data.shards.shard_contents import Contents


def contents_table(contents: Mapping[tuple[str, str], Contents]) -> str:
    """A line for each split and domain, and one for each split of several domains."""
    rows = []
    for split in dict.fromkeys(split for split, _ in contents):
        found = {domain: one for (of, domain), one in contents.items() if of == split}
        lines = [(domain, one) for domain, one in sorted(found.items())]
        if len(lines) > 1:
            first, *others = found.values()
            lines.append(("all", sum(others, first)))
        for domain, one in lines:
            counts = [f"{count:,}" for count in (one.documents, one.tokens, one.bytes)]
            rows.append([split, domain, *counts, fixed(one.tokens_per_byte, 3)])
    return table(["split", "domain", "documents", "tokens", "bytes", "tokens per byte"], rows)


def contents_figures(contents: Mapping[tuple[str, str], Contents]) -> list[dict[str, Any]]:
    """The same as JSON has it."""
    return [
        {
            "split": split,
            "domain": domain,
            "documents": one.documents,
            "tokens": one.tokens,
            "bytes": one.bytes,
            "tokens_per_byte": one.tokens_per_byte,
        }
        for (split, domain), one in contents.items()
    ]
