"""Which columns a trace's Parquet file has, and that it has them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from moe_core.errors import TraceError
from moe_core.routing.trace.metadata import TraceMetadata
from moe_core.routing.trace.text_columns import LABEL, TEXT_COLUMNS


def check_columns(names: list[str], metadata: TraceMetadata) -> None:
    """Names are made one at a time: metadata may ask for more of them than memory holds."""
    known = set(names)
    if len(known) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TraceError(f"column {twice!r} is there twice; expected a file made by RoutingTrace.save")
    missing = next((name for name in column_names(metadata) if name not in known), None)
    if missing is not None:
        raise TraceError(f"column {missing!r} is missing; expected a file made by RoutingTrace.save")


def check_routed(file: pq.ParquetFile, metadata: TraceMetadata) -> None:
    """That a token of the whole file has an expert, by the largest id that is kept for every column's piece.

    A row of the piece is read before: asking for what is kept of a piece whose type was damaged ends the process.
    """
    content = file.metadata
    if not content.num_rows:
        return
    places = {content.schema.column(place).path: place for place in range(content.num_columns)}
    experts = [places[f"layer_{layer}_expert_{slot}"] for layer in metadata.layers for slot in range(metadata.top_k)]
    for group in range(content.num_row_groups):
        for place in experts:
            name = content.schema.column(place).path
            next(file.iter_batches(batch_size=1, row_groups=[group], columns=[name]), None)
            known = content.row_group(group).column(place).statistics
            if known is None or not known.has_min_max or known.max != -1:
                return
    raise TraceError("no token has an expert: all slots are -1; expected at least one expert id")


def column_names(metadata: TraceMetadata) -> Iterator[str]:
    yield from ("token_id", "document_id", "position", "domain_id")
    if metadata.labelling:
        yield "label_id"
    for layer in metadata.layers:
        if metadata.router_logits:
            yield f"layer_{layer}_logits"
        for slot in range(metadata.top_k):
            yield from (f"layer_{layer}_expert_{slot}", f"layer_{layer}_score_{slot}")


def wanted_columns(file: pq.ParquetFile, metadata: TraceMetadata) -> list[str]:
    """Those of a trace; a file may have others, one called label among them where the trace has no labels."""
    texts = [name for name in TEXT_COLUMNS if metadata.labelling or name != LABEL]
    optional = ("source_id", "predicted_id", *texts)
    return [*column_names(metadata), *(name for name in optional if name in file.schema_arrow.names)]
