"""A checksum inside a Parquet table: copied, renamed and replaced with it, in one piece.

It stands in the table's metadata, as the hash of all bytes with zeros in its place: Parquet's own checksums are of its
pages, and the footer that says what they mean has none.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_TABLE_KEY = b"moescope.sha256"
_OF_TABLE = re.compile(re.escape(_TABLE_KEY) + rb"\x18@([0-9a-f]{64})")
"""As Parquet's footer spells a key and a value of 64 bytes."""


def table_with_checksum(table: pa.Table) -> bytes:
    """A Parquet file, checked as a whole before anything reads it: its footer has no checksum of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_TABLE_KEY: b"0" * 64})
    content: bytes = buffer.getvalue().to_pybytes()
    (found,) = _OF_TABLE.finditer(content)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: found.start(1)] + digest + content[found.end(1) :]


def is_verified_table(content: bytes) -> bool:
    """True if the file is as it was written, False if it carries no checksum. Raises ValueError if it was changed."""
    found = _OF_TABLE.search(content)
    if found is None:
        return False
    whole = content[: found.start(1)] + b"0" * 64 + content[found.end(1) :]
    if hashlib.sha256(whole).hexdigest().encode() != found[1]:
        raise ValueError("its checksum is another")
    return True
