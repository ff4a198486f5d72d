"""A RoutingTrace as one Parquet file that pandas, DuckDB and Polars read without us.

One row per token. Columns: token_id, document_id, position, domain_id; for every layer number l and slot s
layer_{l}_expert_{s} (int16, -1 = unused) and layer_{l}_score_{s} (float32); where logits were kept layer_{l}_logits, a
list of E float32 (each exactly a float16: not every reader knows half precision). What is not per token is JSON under
the key "moescope" of the schema metadata. Row groups are small enough to stream a trace larger than memory.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.errors import TraceError
from moe_core.routing.trace import RoutingTrace

METADATA_KEY = b"moescope"
FORMAT = 1
ROW_GROUP_TOKENS = 65_536


def write_trace(trace: RoutingTrace, path: Path) -> None:
    """Write to a temporary file beside `path`, then rename: a reader sees the old file or the whole new one."""
    table = _to_table(trace)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP_TOKENS, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise TraceError(
            f"cannot write trace {str(path)!r}: {_reason(error)}; free space or choose another path"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_trace(path: Path) -> RoutingTrace:
    """Read and check a file written by `write_trace`. Raises TraceError in one line; page checksums are verified."""
    if not path.is_file():
        raise TraceError(f"no trace at {str(path)!r}; expected a Parquet file made by RoutingTrace.save")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
            if metadata is None:
                raise TraceError("Parquet, but no routing trace; expected a file made by RoutingTrace.save")
            table = file.read()
        return _from_table(table, json.loads(metadata))
    except TraceError as error:
        raise TraceError(f"trace {str(path)!r}: {error}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"trace {str(path)!r} is damaged ({_reason(error)}); make it again") from None


def _to_table(trace: RoutingTrace) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "token_id": pa.array(trace.token_ids),
        "document_id": pa.array(trace.document_ids),
        "position": pa.array(trace.positions),
        "domain_id": pa.array(trace.domain_ids),
    }
    for row, layer in enumerate(trace.layers):
        for slot in range(trace.top_k):
            columns[f"layer_{layer}_expert_{slot}"] = pa.array(trace.router_indices[row, :, slot])
            columns[f"layer_{layer}_score_{slot}"] = pa.array(trace.router_scores[row, :, slot])
        if trace.router_logits is not None:
            flat = pa.array(trace.router_logits[row].astype(np.float32).reshape(-1))
            columns[f"layer_{layer}_logits"] = pa.FixedSizeListArray.from_arrays(flat, trace.num_experts)
    occurring = set(np.unique(trace.token_ids).tolist())
    metadata = {
        "format": FORMAT,
        "num_experts": trace.num_experts,
        "top_k": trace.top_k,
        "layers": trace.layers,
        "domains": trace.domains,
        "score_function": trace.score_function,
        "source": trace.source,
        "router_logits": trace.router_logits is not None,
        "vocabulary": {str(key): text for key, text in trace.vocabulary.items() if key in occurring},
    }
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})


def _from_table(table: pa.Table, metadata: dict[str, Any]) -> RoutingTrace:
    if metadata["format"] != FORMAT:
        raise TraceError(f"format {metadata['format']!r} is unknown; expected {FORMAT}, update Moescope or trace again")
    layers, slots = metadata["layers"], range(metadata["top_k"])
    logits = None
    if metadata["router_logits"]:
        logits = np.stack([_lists(table, f"layer_{layer}_logits", metadata["num_experts"]) for layer in layers])
    return RoutingTrace.from_arrays(
        router_indices=np.stack(
            [np.stack([_column(table, f"layer_{layer}_expert_{s}") for s in slots], axis=-1) for layer in layers]
        ),
        router_scores=np.stack(
            [np.stack([_column(table, f"layer_{layer}_score_{s}") for s in slots], axis=-1) for layer in layers]
        ),
        router_logits=logits,
        num_experts=metadata["num_experts"],
        token_ids=_column(table, "token_id"),
        document_ids=_column(table, "document_id"),
        positions=_column(table, "position"),
        domain_ids=_column(table, "domain_id"),
        domains=metadata["domains"],
        layers=layers,
        score_function=metadata["score_function"],
        source=metadata["source"],
        vocabulary={int(key): text for key, text in metadata["vocabulary"].items()},
    )


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    if name not in table.column_names:
        raise TraceError(f"column {name!r} is missing; expected a file made by RoutingTrace.save")
    column = table.column(name)
    if column.null_count:
        raise TraceError(f"column {name!r} has {column.null_count} empty cells; expected a number in each")
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def _lists(table: pa.Table, name: str, width: int) -> npt.NDArray[Any]:
    if name not in table.column_names:
        raise TraceError(f"column {name!r} is missing; expected a file made by RoutingTrace.save")
    column = table.column(name).combine_chunks()
    values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, width).astype(np.float16)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
