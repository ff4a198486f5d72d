"""Reading a folder of shards: the stream a training reads, the documents that are scored, the tokenizer.

Opening one reads the index and the sizes of its files, so that it takes as long for much text as for little. Whether
the bytes are those that were written is for `moescope data verify`, which reads them all.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.shards.shard_index import INDEX, REMEDY, TOKEN_COUNTS, TOKENIZER, Shard, ShardIndex
from moe_core.data.shards.shard_writer import DOCUMENT_COLUMNS
from moe_core.data.token_stream import DocumentPlaces
from moe_core.data.tokenizer import TextTokenizer, Tokenizer
from moe_core.errors import DataError, RunError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

HELD_OUT_BYTES = 2**20
"""UTF-8 bytes of each domain and held-out split that are drawn to be scored and kept with a run, whole documents: some
three times what any command scores of them (splits.SCORED_TOKENS_PER_DOMAIN). A domain that has less is taken whole."""


class ShardFolder:
    """A folder that `moescope data` wrote. Raises DataError where it is not whole.

    `check_sizes`: whether the files of all shards must be there and as long as the index says.
    """

    def __init__(self, path: str | Path, *, check_sizes: bool = True) -> None:
        self.path = Path(path)
        self.index = ShardIndex.read(self.path)
        for shard in self.index.shards if check_sizes else ():
            _check_size(self.path / shard.file, shard.bytes)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises DataError where tokenizer.json is not the one that the index was written with."""
        self._checked(TOKENIZER, self.index.tokenizer_sha256)
        try:
            return Tokenizer.load(self.path / TOKENIZER)
        except RunError as error:
            raise DataError(str(error)) from None

    def check_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """Raise UsageError unless the text was tokenised by this one."""
        if not isinstance(tokenizer, Tokenizer) or tokenizer.to_json() != self.tokenizer.to_json():
            raise UsageError(
                f"the text in {str(self.path)!r} was made with another tokenizer ({self.index.vocab_size:,} ids) than "
                f"the model's ({tokenizer.vocab_size:,} ids); prepare it with --tokenizer RUN, or give the text itself"
            )

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """int64 [V]: occurrences in the training split, end-of-text prefixes included."""
        content = self._checked(TOKEN_COUNTS, self.index.token_counts_sha256)
        if len(content) != 8 * self.index.vocab_size:
            raise DataError(f"{str(self.path / TOKEN_COUNTS)!r} is not one count for each id; {REMEDY}")
        return np.frombuffer(content, dtype="<i8").astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the text is: the checksums of the tokenizer and of every shard, in order."""
        digest = hashlib.sha256(f"{INDEX} {self.index.version} {self.index.tokenizer_sha256}".encode())
        for shard in self.index.shards:
            digest.update(f"\n{shard.split} {shard.sha256} {shard.documents_sha256}".encode())
        return digest.hexdigest()

    def stream(self, split: str = "train") -> MappedTokens:
        """The tokens of a split, mapped into memory."""
        return MappedTokens([self.ids(shard) for shard in self.index.of_split(split)])

    def ids(self, shard: Shard) -> NDArray[np.unsignedinteger]:
        """[tokens]: those of one shard, mapped into memory."""
        if not shard.tokens:
            return np.zeros(0, dtype=shard.dtype)
        dtype = np.dtype(shard.dtype).newbyteorder("<")
        try:
            return np.memmap(self.path / shard.file, dtype=dtype, mode="r", shape=(shard.tokens,))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {str(self.path / shard.file)!r}: {error}; {REMEDY}") from None

    def documents(self, shard: Shard) -> pa.Table:
        """The table of a shard, see DOCUMENT_COLUMNS. Raises DataError unless it is what was written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = self._checked(shard.documents_file, shard.documents_sha256)
        try:
            table = pq.read_table(pa.BufferReader(content), columns=list(DOCUMENT_COLUMNS))
        except (pa.ArrowException, KeyError, ValueError):
            raise DataError(f"{str(self.path / shard.documents_file)!r} is no table of documents; {REMEDY}") from None
        if table.num_rows != shard.documents or table.column_names != list(DOCUMENT_COLUMNS):
            raise DataError(f"{str(self.path / shard.documents_file)!r} is no table of these documents; {REMEDY}")
        return table

    def _checked(self, name: str, sha256: str) -> bytes:
        """A small file, if its checksum is that of the index."""
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {str(self.path / name)!r}: {error.strerror or error}; {REMEDY}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(f"{str(self.path / name)!r} is damaged: its SHA-256 is not that in {INDEX}; {REMEDY}")
        return content


class MappedTokens:
    """A stream (see token_stream.TokenStream) of several arrays, one after the other."""

    def __init__(self, parts: list[NDArray[np.unsignedinteger]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        """Tokens of all parts."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """See TokenStream. A window may run from one part into the next."""
        result = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(result, starts, strict=True):
            number = int(np.searchsorted(self._ends, start, side="right"))
            filled = 0
            while filled < length:
                part = self._parts[number]
                at = int(start) + filled - (int(self._ends[number]) - len(part))
                piece = part[at : at + length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
                number += 1
        return result


def document_places(folder: ShardFolder, split: str = "train") -> DocumentPlaces:
    """Where the documents of a split lie in its stream. Reads the tables of documents, not the tokens."""
    starts: list[NDArray[np.int64]] = []
    tokens: list[NDArray[np.int64]] = []
    numbers: dict[tuple[str, str], int] = {}
    sources: list[int] = []
    before = 0
    for shard in folder.index.of_split(split):
        table = folder.documents(shard)
        starts.append(before + table.column("start").to_numpy())
        tokens.append(table.column("tokens").to_numpy())
        names = zip(table.column("domain").to_pylist(), table.column("source").to_pylist(), strict=True)
        sources += [numbers.setdefault(name, len(numbers)) for name in names]
        before += shard.tokens
    if not starts:
        return DocumentPlaces.none()
    return DocumentPlaces(np.concatenate(starts), np.concatenate(tokens), np.array(sources, dtype=np.int32))


def held_out_documents(folder: ShardFolder, split: str, *, bytes_per_domain: int = HELD_OUT_BYTES) -> list[Document]:
    """Documents of a held-out split as text, in order: at most so many bytes of each domain, at least one of each.

    A domain that has more is drawn from in a seeded order, which depends on nothing but the number of its documents.
    """
    tables = [(shard, folder.documents(shard)) for shard in folder.index.of_split(split)]
    shard_of = np.repeat(np.arange(len(tables)), [table.num_rows for _, table in tables])
    row_of = np.concatenate([np.arange(table.num_rows) for _, table in tables] or [np.zeros(0, dtype=np.int64)])
    columns = {
        name: np.concatenate([table[name].to_numpy() for _, table in tables] or [np.zeros(0)])
        for name in ("domain", "bytes")
    }
    chosen: list[NDArray[np.int64]] = []
    for number, domain in enumerate(folder.index.domains):
        places = np.flatnonzero(columns["domain"] == domain)
        if columns["bytes"][places].sum() > bytes_per_domain:
            order = np.random.default_rng([0, number]).permutation(places)
            enough = np.cumsum(columns["bytes"][order]) <= bytes_per_domain
            places = order[: max(1, int(enough.sum()))]
        chosen.append(places)
    found: list[Document] = []
    for place in np.sort(np.concatenate(chosen)):
        shard, table = tables[shard_of[place]]
        row = {name: table[name][int(row_of[place])].as_py() for name in DOCUMENT_COLUMNS}
        ids = folder.ids(shard)[row["start"] : row["start"] + row["tokens"]]
        found.append(Document(folder.tokenizer.decode(ids.tolist()), row["domain"], row["source"], split))
    return found


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}; {REMEDY}") from None
    if size != expected:
        raise DataError(f"{str(path)!r} has {size:,} bytes; expected {expected:,} as the index says; {REMEDY}")
