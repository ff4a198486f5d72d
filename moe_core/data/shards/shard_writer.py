"""Writing shards, document by document. The index comes last, so that a folder with an index is whole."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moe_core.data.shards.shard_index import TOKEN_COUNTS, TOKENIZER, Shard, ShardIndex, Split
from moe_core.data.splits import ALL_SPLITS
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError
from moe_core.files import fsync
from moe_core.runs.files import translate_os_errors, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENT_COLUMNS = ("domain", "source", "start", "tokens", "bytes")
"""Of a shard's table, one row a document in the order of its tokens: domain and source as text, the place in the shard
and the number of its tokens (end-of-text included), and the UTF-8 bytes of its text."""
SHARD_TOKENS = 2**24
"""Tokens after which a shard is closed, unless whoever writes says otherwise: 32 MiB of ids, some 64 MiB of text."""
SHARD_DOCUMENTS = 2**18
"""Documents after which it is closed: its table is held in memory until then."""


class ShardWriter:
    """Shards of one folder. Every call in the same order with the same arguments writes the same bytes.

    `shards` and `token_counts`: what an earlier writer of the same folder closed already, to go on from there.
    Raises RunError when the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        shards: Sequence[Shard] = (),
        token_counts: NDArray[np.int64] | None = None,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._shard_tokens = shard_tokens
        self._folder, self._tokenizer = folder, tokenizer
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size < 2**16 else "<u4")
        self.shards = list(shards)
        """Those that are closed, in the order of the index."""
        self.token_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64) if token_counts is None else token_counts
        """int64 [V]: occurrences in the training split, those of open shards included."""
        self._open: dict[Split, _OpenShard] = {}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of what is still open: it stays on the disk as a file that no index tells of."""
        for shard in self._open.values():
            shard.file.close()

    def add(self, split: Split, domain: str, source: str, token_ids: NDArray[np.integer], text_bytes: int) -> None:
        """A document of `split`; `token_ids` [n] begin with its end-of-text where the tokenizer has one."""
        if split not in self._open:
            number = sum(shard.split == split for shard in self.shards)
            self._open[split] = _OpenShard.create(self._folder, f"{split}-{number:05d}", self._dtype)
        self._open[split].add(domain, source, token_ids, text_bytes)
        if split == "train":
            np.add.at(self.token_counts, token_ids, 1) if len(token_ids) < 64 else self._count(token_ids)

    @property
    def is_full(self) -> bool:
        """Whether an open shard has enough, so that it is time to `cut`."""
        return any(
            shard.tokens >= self._shard_tokens or len(shard.starts) >= SHARD_DOCUMENTS for shard in self._open.values()
        )

    def cut(self) -> None:
        """Close the open shards of all splits; what is added next goes into new ones."""
        for split in ALL_SPLITS:
            if split in self._open:
                self.shards.append(self._open.pop(split).close(split))

    def finish(self, domains: Sequence[str], notes: Mapping[str, str | int | float]) -> ShardIndex:
        """Close what is open and write tokenizer, token counts and, last, the index. Raises DataError without text."""
        self.cut()
        if not any(shard.split == "train" for shard in self.shards):
            raise DataError("there is no training text; expected at least one document of split 'train'")
        tokenizer = self._tokenizer.to_json().encode()
        counts = self.token_counts.astype("<i8").tobytes()
        write_atomic(self._folder / TOKENIZER, tokenizer)
        write_atomic(self._folder / TOKEN_COUNTS, counts)
        index = ShardIndex(
            vocab_size=self._tokenizer.vocab_size,
            end_of_text=self._tokenizer.end_of_text,
            tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
            token_counts_sha256=hashlib.sha256(counts).hexdigest(),
            domains=list(domains),
            shards=self.shards,
            notes=dict(notes),
        )
        index.write(self._folder)
        return index

    def _count(self, token_ids: NDArray[np.integer]) -> None:
        ids, counts = np.unique(token_ids, return_counts=True)
        self.token_counts[ids] += counts


@dataclass
class _OpenShard:
    path: Path
    file: BinaryIO
    dtype: np.dtype[np.unsignedinteger]
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    tokens: int = 0
    domains: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    bytes: array[int] = field(default_factory=lambda: array("q"))

    @classmethod
    def create(cls, folder: Path, stem: str, dtype: np.dtype[np.unsignedinteger]) -> _OpenShard:
        path = folder / f"{stem}.bin"
        with translate_os_errors(path):
            return cls(path, path.open("wb"), dtype)

    def add(self, domain: str, source: str, token_ids: NDArray[np.integer], text_bytes: int) -> None:
        content = token_ids.astype(self.dtype).tobytes()
        self.digest.update(content)
        with translate_os_errors(self.path):
            self.file.write(content)
        self.domains.append(domain)
        self.sources.append(source)
        self.starts.append(self.tokens)
        self.lengths.append(len(token_ids))
        self.bytes.append(text_bytes)
        self.tokens += len(token_ids)

    def close(self, split: Split) -> Shard:
        documents_path = self.path.with_suffix(".parquet")
        table = _table_bytes(self._table())
        with translate_os_errors(self.path):
            self.file.close()
            fsync(self.path)
        write_atomic(documents_path, table)
        return Shard(
            split=split,
            file=self.path.name,
            dtype="uint16" if self.dtype.itemsize == 2 else "uint32",
            tokens=self.tokens,
            sha256=self.digest.hexdigest(),
            documents=len(self.starts),
            documents_file=documents_path.name,
            documents_sha256=hashlib.sha256(table).hexdigest(),
        )

    def _table(self) -> pa.Table:
        import pyarrow as pa

        columns = (
            pa.array(self.domains, pa.string()),
            pa.array(self.sources, pa.string()),
            *(pa.array(np.frombuffer(one, dtype=np.int64)) for one in (self.starts, self.lengths, self.bytes)),
        )
        return pa.table(dict(zip(DOCUMENT_COLUMNS, columns, strict=True)))


def _table_bytes(table: pa.Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content: bytes = buffer.getvalue().to_pybytes()
    return content
