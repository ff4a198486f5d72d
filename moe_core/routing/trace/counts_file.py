"""RoutingCounts as one Parquet file that pandas, DuckDB and Polars read without us.

One row for every step, layer, group and expert with any tokens. Columns: step, layer, expert, domain, source (null
where sources are not told apart), tokens (assignments), group_tokens (tokens of the group at that step, in every row of
it). A group without any assignment at a step has one row of 0 tokens. What is not per row is JSON under the key
"moescope_counts" of the file's metadata, the extras as numbers in base64 under keys of their own. The file carries a
checksum of all its bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_core.errors import TraceError, first_fault
from moe_core.files import replaced
from moe_core.routing.trace.groups import Group, Unit, check_number
from moe_core.routing.trace.types import Float64Array
from moe_core.table_checksum import is_verified_table, table_with_checksum

if TYPE_CHECKING:
    import pandas as pd

    from moe_core.routing.trace.routing_counts import RoutingCounts

Built = TypeVar("Built")

FORMAT = 1
METADATA_KEY = b"moescope_counts"
EXTRA_KEY = b"moescope_counts.extra."
MAX_FILE_BYTES = 2**30
_Number = Annotated[int, Field(ge=0, le=2**62)]


class _Metadata(BaseModel):
    """The JSON under METADATA_KEY."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: int
    checksum: bool = False
    """Was the file written with one? A damaged checksum must not look like none."""
    num_experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    unit: Unit
    steps: list[_Number] = Field(min_length=1)
    layers: list[_Number] = Field(min_length=1)
    domains: list[str] = Field(min_length=1)
    groups: list[tuple[int, str | None]] = Field(min_length=1)
    """Place of the group's domain, its source."""
    varying_experts: bool
    null_experts: int = Field(0, ge=0, exclude_if=lambda value: value == 0)
    source: str
    notes: list[str]
    extras: dict[str, int]
    """Name of each extra, and how many axes it has: 2 = [L,E], 3 = [L,E,E]."""


def is_counts_file(path: Path) -> bool:
    """Is this a Parquet file of counts, by its metadata? False for anything else, unreadable files too."""
    try:
        return METADATA_KEY in (pq.read_metadata(path).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def write_counts(counts: RoutingCounts, path: Path) -> None:
    """Replace `path` as a whole. Raises TraceError if the disk refuses."""
    content = table_with_checksum(_to_table(counts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write(content)
    except OSError as error:
        raise TraceError(
            f"cannot write counts {str(path)!r}: {error.strerror or error}; free space or choose another path"
        ) from None


def read_counts(path: Path, build: Callable[..., Built]) -> Built:
    """What `build`, RoutingCounts, makes of a file written by `write_counts`. Raises TraceError in one line."""
    if not path.is_file():
        raise TraceError(f"no counts at {str(path)!r}; expected a Parquet file made by RoutingCounts.save")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TraceError(f"{path.stat().st_size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        content = path.read_bytes()
        verified = is_verified_table(content)
        return _from_file(pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True), verified, build)
    except TraceError as error:
        raise TraceError(f"counts {str(path)!r}: {error}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TraceError(f"counts {str(path)!r} are damaged ({reason}); make them again") from None


def counts_frame(counts: RoutingCounts) -> pd.DataFrame:
    """The rows of the file, see above."""
    frame: pd.DataFrame = _to_table(counts).to_pandas()
    return frame


def _to_table(counts: RoutingCounts) -> pa.Table:
    numbers = counts.tokens_per_expert
    routed = numbers > 0
    silent_SG = (counts.tokens > 0) & ~routed.any(axis=(1, 3))
    routed[:, 0, :, 0] |= silent_SG
    s, layer, g, e = np.nonzero(routed)
    domain_G = np.array([counts.domains.index(group.domain) for group in counts.groups])
    # Each name once, also where a source has text of several domains.
    names = {name: n for n, name in enumerate(dict.fromkeys(g.source for g in counts.groups if g.source is not None))}
    name_G = [None if group.source is None else names[group.source] for group in counts.groups]
    sources = pa.DictionaryArray.from_arrays(
        pa.array([name_G[place] for place in g.tolist()], pa.int32()), pa.array(list(names), pa.string())
    )
    columns = {
        "step": pa.array(np.asarray(counts.steps, dtype=np.int64)[s]),
        "layer": pa.array(np.asarray(counts.layers, dtype=np.int32)[layer]),
        "expert": pa.array(e.astype(np.int32)),
        "domain": pa.DictionaryArray.from_arrays(pa.array(domain_G[g].astype(np.int32)), pa.array(counts.domains)),
        "source": sources,
        "tokens": pa.array(numbers[s, layer, g, e]),
        "group_tokens": pa.array(counts.tokens[s, g]),
    }
    return pa.table(columns).replace_schema_metadata(_metadata_of(counts, domain_G.tolist()))


def _metadata_of(counts: RoutingCounts, domain_G: list[int]) -> dict[bytes, bytes]:
    metadata = _Metadata(
        format=FORMAT,
        checksum=True,
        num_experts=counts.num_experts,
        top_k=counts.top_k,
        unit=counts.unit,
        steps=counts.steps,
        layers=counts.layers,
        domains=counts.domains,
        groups=[(place, group.source) for place, group in zip(domain_G, counts.groups, strict=True)],
        varying_experts=counts.varying_experts,
        null_experts=counts.null_experts,
        source=counts.source,
        notes=list(counts.notes),
        extras={name: values.ndim for name, values in counts.extras.items()},
    )
    packed = {
        EXTRA_KEY + name.encode(): base64.b64encode(zlib.compress(np.ascontiguousarray(values, "<f8").tobytes(), 1))
        for name, values in counts.extras.items()
    }
    return {METADATA_KEY: metadata.model_dump_json().encode(), **packed}


def _from_file(file: pq.ParquetFile, verified: bool, build: Callable[..., Built]) -> Built:
    stored: Mapping[bytes, bytes] = file.metadata.metadata or {}
    if METADATA_KEY not in stored:
        raise TraceError("Parquet, but no routing counts; expected a file made by RoutingCounts.save")
    metadata = _parsed(stored[METADATA_KEY])
    if metadata.checksum and not verified:
        raise TraceError("its checksum is gone; make them again")
    groups = [_group_of(metadata, place) for place in range(len(metadata.groups))]
    shape = (len(metadata.steps), len(metadata.layers), len(metadata.groups), metadata.num_experts)
    check_number(*shape)
    if file.metadata.num_rows > np.prod(shape):
        raise TraceError(f"{file.metadata.num_rows:,} rows for {np.prod(shape):,} counts; make them again")
    table = file.read()
    counts = np.zeros(shape, dtype=np.int64)
    tokens = np.zeros((shape[0], shape[2]), dtype=np.int64)
    s, layer = _places(table, "step", metadata.steps), _places(table, "layer", metadata.layers)
    g, e = _group_places(table, groups), _places(table, "expert", range(metadata.num_experts))
    counts[s, layer, g, e] = _numbers(table, "tokens")
    tokens[s, g] = _numbers(table, "group_tokens")
    return build(
        tokens_per_expert=counts,
        tokens=tokens,
        steps=metadata.steps,
        layers=metadata.layers,
        groups=groups,
        domains=metadata.domains,
        num_experts=metadata.num_experts,
        top_k=metadata.top_k,
        unit=metadata.unit,
        varying_experts=metadata.varying_experts,
        null_experts=metadata.null_experts,
        extras={name: _extra(stored, name, axes, shape[1], shape[3]) for name, axes in metadata.extras.items()},
        source=metadata.source,
        notes=tuple(metadata.notes),
    )


def _parsed(content: bytes) -> _Metadata:
    try:
        number = json.loads(content).get("format")
        if number != FORMAT:
            raise TraceError(f"format {number!r} is unknown; expected {FORMAT}, update Moescope or count again")
        return _Metadata.model_validate_json(content)
    except ValidationError as error:
        raise TraceError(f"the metadata is damaged ({first_fault(error).line}); make them again") from None


def _group_of(metadata: _Metadata, place: int) -> Group:
    domain, source = metadata.groups[place]
    if not 0 <= domain < len(metadata.domains):
        raise TraceError(f"group {place} is of domain {domain}; expected 0 to {len(metadata.domains) - 1}")
    return Group(metadata.domains[domain], source)


def _numbers(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise TraceError(f"column {name!r} is {column.type} with {column.null_count} nulls; expected whole numbers")
    return column.to_numpy()


def _places(table: pa.Table, name: str, known: list[int] | range) -> Any:
    """The place of each row's number among those that the metadata names."""
    values, order = _numbers(table, name), np.asarray(known)
    places = np.searchsorted(order, values).clip(max=len(order) - 1)
    if not np.array_equal(order[places], values):
        wrong = values[order[places] != values][0]
        raise TraceError(f"column {name!r} holds {wrong}, unknown to the metadata; make them again")
    return places


def _group_places(table: pa.Table, groups: list[Group]) -> Any:
    """The place of each row's group."""
    known = {group: place for place, group in enumerate(groups)}
    rows = table.select(["domain", "source"])
    domains, sources = (_text_codes(rows.column(name)) for name in ("domain", "source"))
    pairs, of_row = np.unique(np.stack([domains[0], sources[0]]), axis=1, return_inverse=True)
    places = []
    for d, s in pairs.T.tolist():
        group = Group(domains[1][d], None if s < 0 else sources[1][s])
        if group not in known:
            raise TraceError(f"a row is of source {group.source!r}, domain {group.domain!r}, unknown to the metadata")
        places.append(known[group])
    return np.asarray(places, dtype=np.int64)[of_row.reshape(-1)]


def _text_codes(column: pa.ChunkedArray) -> tuple[Any, list[str]]:
    """([N] place of each row's text, -1 = null; the texts)."""
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def _extra(stored: Mapping[bytes, bytes], name: str, axes: int, L: int, E: int) -> Float64Array:
    shape = (L, E) if axes == 2 else (L, E, E)
    size = 8 * int(np.prod(shape))
    try:
        packed = base64.b64decode(stored[EXTRA_KEY + name.encode()], validate=True)
    except (KeyError, binascii.Error):
        raise TraceError(f"extra {name!r} is missing or damaged; make them again") from None
    if size > MAX_FILE_BYTES:
        raise TraceError(f"extra {name!r} has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
    content = zlib.decompressobj().decompress(packed, size + 1)
    if len(content) != size:
        raise TraceError(f"extra {name!r} is not {list(shape)} numbers; make them again")
    return np.frombuffer(content, dtype="<f8").reshape(shape).astype(np.float64)
