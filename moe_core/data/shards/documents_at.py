"""The documents that a path names: text as it is, or what a folder of shards holds out."""

from __future__ import annotations

from pathlib import Path

from moe_core.data.document import Document
from moe_core.data.shards.shard_index import is_prepared
from moe_core.data.shards.shard_reader import ShardFolder, held_out_documents
from moe_core.data.sources import read_documents
from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.data.tokenizer import TextTokenizer


def documents_at(path: str | Path) -> list[Document]:
    """All documents of a file or folder of text; of a folder of shards those of its held-out splits, as text again.

    Raises UsageError for a missing path, DataError for what cannot be read.
    """
    if not is_prepared(path):
        return read_documents(path)
    folder = ShardFolder(path)
    return [document for split in HELD_OUT_SPLITS for document in held_out_documents(folder, split)]


def check_tokenizer(path: str | Path, tokenizer: TextTokenizer) -> None:
    """Raise UsageError where this is a folder of shards that were made with another tokenizer than a run's."""
    if is_prepared(path):
        ShardFolder(path).check_tokenizer(tokenizer)
