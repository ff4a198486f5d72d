"""What is in a folder of shards, counted from its tables of documents, one shard at a time."""

from __future__ import annotations

from dataclasses import dataclass

from moe_core.data.shards.shard_index import Shard
from moe_core.data.shards.shard_reader import ShardFolder


@dataclass(frozen=True)
class Contents:
    """Of one domain in one split, or of several together."""

    documents: int = 0
    tokens: int = 0
    """End-of-text prefixes included."""
    bytes: int = 0
    """Of the text in UTF-8."""

    def __add__(self, other: Contents) -> Contents:
        return Contents(self.documents + other.documents, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def tokens_per_byte(self) -> float:
        """End-of-text prefixes not counted; not a number where there is no text."""
        return (self.tokens - self.documents) / self.bytes if self.bytes else float("nan")


def contents_of(folder: ShardFolder) -> dict[tuple[str, str], Contents]:
    """By split and domain, in the order of the index. Raises DataError for a damaged table."""
    found: dict[tuple[str, str], Contents] = {}
    for shard in folder.index.shards:
        for domain, contents in shard_contents(folder, shard).items():
            key = (shard.split, domain)
            found[key] = found.get(key, Contents()) + contents
    return found


def shard_contents(folder: ShardFolder, shard: Shard) -> dict[str, Contents]:
    """Of one shard, by domain in alphabetical order."""
    table = (
        folder.documents(shard).group_by("domain").aggregate([("tokens", "sum"), ("bytes", "sum"), ("tokens", "count")])
    )
    rows = sorted(table.to_pylist(), key=lambda row: str(row["domain"]))
    return {row["domain"]: Contents(row["tokens_count"], row["tokens_sum"], row["bytes_sum"]) for row in rows}
