"""The text of a run that is kept for later: its held-out documents, and the token counts of what it was trained on.

held_out.parquet holds the documents, corpus.json the domains, the counts and the hash of held_out.parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter

from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.errors import RunError
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import check_ordinary, sha256_of

if TYPE_CHECKING:
    from moe_core.data.document import Document

_COLUMNS = ("text", "domain", "source", "split")
_REMEDY = "restore it from a copy, or train the run again"


@dataclass(frozen=True)
class Corpus:
    """What corpus.json says."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    domains: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=32_767)]
    """A token's domain id indexes them."""
    token_counts: Annotated[list[Annotated[int, Field(ge=0, le=2**62)]], Field(min_length=1, max_length=2**24)]
    """[V]: occurrences of each vocabulary entry in the training split."""
    held_out_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of held_out.parquet; None in a run from before there were checksums."""

    def to_bytes(self) -> bytes:
        """The file."""
        return with_checksum(asdict(self), indent=None)


def corpus_from_bytes(content: bytes, path: Path) -> tuple[Corpus, bool]:
    """Read corpus.json, and whether it was verified. Raises RunError naming the file and the first wrong field."""
    return read_typed(content, path, _reader(), "lacks its domains or token counts", _REMEDY)


def documents_to_bytes(validation: Sequence[Document], unseen: Sequence[Document]) -> bytes:
    """held_out.parquet: one row a document (text, domain, source, split)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents: list[dict[str, Any]] = [
        asdict(document) | {"split": split}
        for split, part in (("validation", validation), ("unseen", unseen))
        for document in part
    ]
    columns = {name: pa.array([document[name] for document in documents], pa.string()) for name in _COLUMNS}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def read_documents(path: Path, sha256: str | None) -> list[Document]:
    """The documents of both splits. Raises FileNotFoundError, or RunError unless it is what was written.

    `sha256`: of the file, as corpus.json has it; None where it was not kept.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from moe_core.data.document import Document

    check_ordinary(path)
    try:
        if sha256 is not None and sha256_of(path) != sha256:
            raise RunError(f"{str(path)!r} is damaged: its SHA-256 is not that in corpus.json; {_REMEDY}")
        with path.open("rb") as file:
            if file.read(4) != b"PAR1":
                raise RunError(f"{str(path)!r} is damaged: it is no Parquet file; {_REMEDY}")
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        if any(table.schema.field(name).type != pa.string() or table[name].null_count for name in _COLUMNS):
            raise RunError(f"{str(path)!r} is damaged: a column is not text; {_REMEDY}")
        rows = table.select(_COLUMNS).to_pylist()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError):
        raise RunError(f"{str(path)!r} is damaged; {_REMEDY}") from None
    strange = next((row["split"] for row in rows if row["split"] not in HELD_OUT_SPLITS), None)
    if strange is not None:
        raise RunError(f"{str(path)!r} is damaged: it has a document of split {strange[:40]!r}; {_REMEDY}")
    return [Document(**row) for row in rows]


@cache
def _reader() -> TypeAdapter[Corpus]:
    return TypeAdapter(Corpus)
