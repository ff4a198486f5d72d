"""index.json of a folder of shards: which files it has, what is in them, and their checksums."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from moe_core.data.splits import HeldOutSplit
from moe_core.errors import DataError, RunError
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import write_atomic

INDEX = "index.json"
TOKENIZER = "tokenizer.json"
TOKEN_COUNTS = "token_counts.bin"
SCHEMA = "moescope.shards"
VERSION = 1
Split = Literal["train"] | HeldOutSplit
REMEDY = "prepare the text again, or restore the folder from a copy"

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
"""No path: every file lies in the folder itself."""
_Count = Annotated[int, Field(ge=0, le=2**62)]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Shard:
    """Token ids of some documents, one after the other, and a table of these documents."""

    __pydantic_config__ = _STRICT

    split: Split
    file: _FileName
    """Ids as they are, little-endian, without a header."""
    dtype: Literal["uint16", "uint32"]
    """uint16 for a vocabulary below 65,536."""
    tokens: _Count
    """End-of-text prefixes included."""
    sha256: _Sha256
    documents: _Count
    documents_file: _FileName
    """Parquet; see `shard_writer.DOCUMENT_COLUMNS`."""
    documents_sha256: _Sha256

    @property
    def bytes(self) -> int:
        """Of the file of token ids."""
        return self.tokens * (2 if self.dtype == "uint16" else 4)


@dataclass(frozen=True)
class ShardIndex:
    """What index.json says. Text of a split is that of its shards in this order."""

    __pydantic_config__ = _STRICT

    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    end_of_text: Annotated[int, Field(ge=0)] | None
    """The token that stands before every document; None where documents begin with their own first token."""
    tokenizer_sha256: _Sha256
    """Of tokenizer.json."""
    token_counts_sha256: _Sha256
    """Of token_counts.bin: int64 [vocab_size], little-endian, occurrences in the training split."""
    domains: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=32_767)]
    """Of the training split, sorted; their order gives the domain ids."""
    shards: list[Shard]
    notes: dict[str, str | int | float] = field(default_factory=dict)
    """How the folder came about, for people."""
    schema: Literal["moescope.shards"] = "moescope.shards"
    version: Literal[1] = 1

    def of_split(self, split: str) -> list[Shard]:
        """Its shards, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def tokens(self, split: str) -> int:
        """Tokens of a split, end-of-text prefixes included."""
        return sum(shard.tokens for shard in self.of_split(split))

    def write(self, folder: Path) -> None:
        """Write index.json, whole or not at all. Raises RunError when the disk refuses."""
        write_atomic(folder / INDEX, with_checksum(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> ShardIndex:
        """Raises DataError naming the file and what is wrong with it: changed, of another version, or no index."""
        path = folder / INDEX
        try:
            index, _ = read_typed(
                path.read_bytes(), path, _reader(), "is not an index of shards of this version", REMEDY
            )
        except FileNotFoundError:
            raise DataError(
                f"no shards in {str(folder)!r}: it has no {INDEX}; expected a folder that `data prepare` or `data "
                "merge` has finished"
            ) from None
        except OSError as error:
            raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}; {REMEDY}") from None
        except RunError as error:
            raise DataError(str(error)) from None
        return index


def is_prepared(path: str | Path) -> bool:
    """Whether this is a folder of shards: it has an index. One that was not finished has none."""
    return (Path(path) / INDEX).is_file()


@cache
def _reader() -> TypeAdapter[ShardIndex]:
    return TypeAdapter(ShardIndex)
