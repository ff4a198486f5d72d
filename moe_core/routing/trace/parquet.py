"""A RoutingTrace as one Parquet file that pandas, DuckDB and Polars read without us.

One row per token. Columns: token_id and domain_id with what they mean, token_text and domain; document_id, source_id,
position and, where kept, predicted_id, label_id and label; for every layer number l and slot s layer_{l}_expert_{s}
(int16, -1 = unused) and layer_{l}_score_{s} (float32); where logits were kept layer_{l}_logits, a list of E float32
(each exactly a float16: not every reader knows half precision; -infinity = masked).
Scores hardly ever repeat, so they are stored byte by byte (BYTE_STREAM_SPLIT), not through a dictionary: a third less.
What is not per token is JSON under the key "moescope" of the file's metadata, which stands at its end: so a trace that
is still being recorded can be written as it comes, see TraceWriter. Row groups are small enough to stream a trace
larger than memory. A file without source_id, as written at first, takes each document as its own source; one without
token_text and domain says what they mean in its metadata alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moe_core.errors import TraceError
from moe_core.files import replaced
from moe_core.routing.trace.arrays import half_precision_logits
from moe_core.routing.trace.joining import check_joinable, renumbered
from moe_core.routing.trace.kernels import run_starts
from moe_core.routing.trace.metadata import FORMAT, TraceMetadata
from moe_core.routing.trace.parquet_columns import check_columns, check_routed, wanted_columns
from moe_core.routing.trace.text_columns import (
    DOMAIN,
    LABEL,
    TEXT_COLUMNS,
    TOKEN_TEXT,
    TextCheck,
    name_column,
    text_column,
    valid_text,
)
from moe_core.routing.trace.types import Int16Array, Int64Array

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import RoutingTrace

Built = TypeVar("Built")
METADATA_KEY = b"moescope"
ROW_GROUP_TOKENS = 65_536
_ID_BATCH = 2**20
ROW_GROUP_BYTES = 2**26
"""A row group has fewer tokens than that where they would take more than this, before compression."""


def write_trace(trace: RoutingTrace, path: Path) -> None:
    """Replace `path` as a whole: a reader sees the old file or the new one."""
    with TraceWriter(path) as writer:
        writer.write(trace)


class _GivenUp(Exception):  # noqa: N818 - no error
    """Leaves the file's context the way that keeps the older file."""


class TraceWriter:
    """Write a trace that comes in parts, holding no more of it than a row group and the part at hand.

        with TraceWriter("x.parquet") as writer:
            for part in parts:
                writer.write(part)

    Parts are joined as `concatenate` joins traces: they are of one model, domains are matched by name, document and
    source ids kept as they are. At the end of the block the file takes the place of an older one as a whole; after an
    exception the older one is as it was. What may still grow until then is small: names of domains and the texts of
    the token ids that occur.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tokens = 0
        """Tokens written so far."""
        self._open = ExitStack()
        self._first: RoutingTrace | None = None
        """One token of the first part: what all parts share."""
        self._file: Any = None
        self._writer: Any = None
        self._held: list[pa.Table] = []
        self._domains: dict[str, None] = {}
        self._labels: dict[str, None] = {}
        self._sources: dict[str, None] = {}
        self._vocabulary: dict[int, str] = {}

    def __enter__(self) -> TraceWriter:
        with self._disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open.enter_context(replaced(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(_GivenUp), self._open:
                raise _GivenUp
            return
        with self._disk(), self._open:
            self._write_rest_and_metadata()

    def write(self, trace: RoutingTrace) -> None:
        """Append a part. Raises TraceError if it does not go with those before it, or cannot be written."""
        if self._first is None:
            self._first = trace.select([True] + [False] * (trace.num_tokens - 1))
        check_joinable(self._first, trace, f"the part after token {self.tokens}")
        self._learn_texts(trace)
        self._sources |= dict.fromkeys([valid_text(trace.source)] if trace.source else [])
        domain_ids = _numbered(trace.domain_ids, trace.domains, self._domains)
        label_ids = None if trace.label_ids is None else _numbered(trace.label_ids, trace.labels, self._labels)
        self._held.append(_to_table(trace, domain_ids, list(self._domains), label_ids, list(self._labels)))
        self.tokens += trace.num_tokens
        rows = self._row_group()
        if sum(len(table) for table in self._held) >= rows:
            self._write_waiting(rows, whole_groups=True)

    def _learn_texts(self, trace: RoutingTrace) -> None:
        guesses = [] if trace.predicted_ids is None else [trace.predicted_ids]
        for token_id in np.unique(np.concatenate([trace.token_ids, *guesses])).tolist():
            text = trace.vocabulary.get(token_id)
            if text is not None and self._vocabulary.setdefault(token_id, text) != text:
                raise TraceError(
                    f"token {token_id} is {self._vocabulary[token_id]!r} in one part and {text!r} in another; "
                    "only parts with one tokenizer can be joined"
                )

    def _row_group(self) -> int:
        """Tokens of a row group."""
        texts = [name for name in TEXT_COLUMNS if name in self._held[0].column_names]
        numbers = self._held[0].drop_columns(texts)  # their dictionaries are no matter of each token
        bytes_per_token: int = numbers.nbytes // len(numbers)
        return max(1, min(ROW_GROUP_TOKENS, ROW_GROUP_BYTES // bytes_per_token))

    def _write_waiting(self, rows: int, *, whole_groups: bool) -> None:
        """Write what is held; with `whole_groups` as many whole row groups as there are, the rest stays held."""
        table = pa.concat_tables(self._held).unify_dictionaries()
        count = len(table) // rows * rows if whole_groups else len(table)
        with self._disk():
            if self._writer is None:
                # Without Arrow's own schema in the file, readers take the metadata from the file's end.
                scores = [name for name in table.column_names if "_score_" in name]
                self._writer = pq.ParquetWriter(
                    self._file,
                    table.schema,
                    compression="zstd",
                    use_dictionary=[_leaf_column(name) for name in table.column_names if name not in scores],
                    column_encoding=dict.fromkeys(scores, "BYTE_STREAM_SPLIT"),
                    write_page_checksum=True,
                    store_schema=False,
                )
                self._open.callback(self._close)
            self._writer.write_table(table.slice(0, count), row_group_size=rows)
        # A slice would keep all of it in memory.
        self._held = [table.slice(count).take(np.arange(len(table) - count))] if count < len(table) else []

    def _write_rest_and_metadata(self) -> None:
        if self._first is None:
            raise TraceError(f"nothing was recorded for {str(self.path)!r}; expected at least one token")
        if self._held:
            self._write_waiting(self._row_group(), whole_groups=False)
        first = self._first
        metadata = {
            "format": FORMAT,
            "num_experts": first.num_experts,
            "top_k": first.top_k,
            "layers": first.layers,
            "domains": list(self._domains),
            "score_function": first.score_function,
            "varying_experts": first.varying_experts,
            **({"null_experts": first.null_experts} if first.null_experts else {}),
            "source": ", ".join(self._sources),
            "router_logits": first.router_logits is not None,
            "vocabulary": {str(key): valid_text(self._vocabulary[key]) for key in sorted(self._vocabulary)},
        }
        if first.labelling:
            metadata |= {"labels": list(self._labels), "labelling": valid_text(first.labelling)}
        self._writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(metadata)})
        self._writer.close()

    def _close(self) -> None:
        """Let go of the writer, also after an error; nothing to do for one that is finished."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._writer.is_open = False  # it would try once more when it is collected

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TraceError(
                f"cannot write trace {str(self.path)!r}: {_reason_in_words(error)}; free space or choose another path"
            ) from None


def read_trace(path: Path, build: Callable[..., Built]) -> Built:
    """What `build`, RoutingTrace.from_arrays, makes of a file written by `write_trace`.

    Raises TraceError in one line; page checksums are verified.
    """
    with _opened_file(path) as (file, metadata):
        table = file.read(columns=wanted_columns(file, metadata))
        built = _from_table(table, metadata, build)
        TextCheck(metadata).check(table)
        return built


def read_metadata(path: Path) -> tuple[TraceMetadata, int]:
    """The facts of the whole trace, its vocabulary by number, and its number of tokens. Raises as `read_trace`."""
    with _opened_file(path) as (file, metadata):
        return metadata, file.metadata.num_rows


def read_parts(path: Path, build: Callable[..., Built], part_tokens: int, part_bytes: int) -> Iterator[Built]:
    """The file in parts of about `part_tokens` tokens, or fewer where they would be about `part_bytes` in memory.

    No part cuts a document whose rows are adjacent.

    Holds two parts at a time; a document longer than a part is held whole. Raises TraceError as `read_trace`.
    """
    with _opened_file(path) as (file, metadata):
        held: list[pa.RecordBatch] = []
        last = None
        affordable = max(1, part_bytes // _bytes_per_token(metadata))
        texts = TextCheck(metadata)

        def part(batches: list[pa.RecordBatch]) -> Built:
            table = pa.Table.from_batches(batches)
            built = _from_table(table, metadata, build)
            texts.check(table)
            return built

        size, columns = min(part_tokens, affordable), wanted_columns(file, metadata)
        for batch in file.iter_batches(batch_size=size, columns=columns):
            documents_T = _column_values(batch, "document_id")
            borders = np.flatnonzero(np.diff(documents_T, prepend=documents_T[:1] if last is None else last))
            if borders.size:
                border = int(borders[-1])
                yield part([*held, batch.slice(0, border)])
                held, batch = [], batch.slice(border)
            held.append(batch)
            last = documents_T[-1:]
        if held:
            yield part(held)


def count_ids(path: Path, column: str, *, labelled: bool = False) -> tuple[npt.NDArray[Any], Int64Array]:
    """[N] the ids that occur in `column` ("document_id" or "source_id"), ascending, and [N] their tokens; with
    `labelled` of the tokens that have a label.

    Nothing else is read. A file without source_id takes each document as its own source.
    """
    found: list[tuple[npt.NDArray[Any], Int64Array]] = []
    with _opened_file(path) as (file, _):
        name = column if column in file.schema_arrow.names else "document_id"
        for batch in file.iter_batches(batch_size=_ID_BATCH, columns=[name, *(["label_id"] if labelled else [])]):
            ids = _column_values(batch, name)
            own = ids[_column_values(batch, "label_id") >= 0] if labelled else ids
            found.append(np.unique(own, return_counts=True))
    if not found:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    ids, tokens = np.concatenate([ids for ids, _ in found]), np.concatenate([tokens for _, tokens in found])
    order = np.argsort(ids, kind="stable")  # mostly ascending already, which this finds out
    ids, tokens = ids[order], tokens[order]
    starts = run_starts(ids)
    return ids[starts], np.add.reduceat(tokens, starts)


@contextmanager
def _opened_file(path: Path) -> Iterator[tuple[pq.ParquetFile, TraceMetadata]]:
    """The open file and its metadata, the vocabulary by number; whatever is wrong with it becomes one line."""
    if not path.is_file():
        raise TraceError(f"no trace at {str(path)!r}; expected a Parquet file made by RoutingTrace.save")
    try:
        content = pq.read_metadata(path)
        texts = [name for name in TEXT_COLUMNS if name in content.schema.names]  # files of before have none
        # Buffered ahead, every row group that was read would stay in memory as long as the file is open.
        with pq.ParquetFile(
            path, metadata=content, page_checksum_verification=True, read_dictionary=texts, pre_buffer=False
        ) as file:
            content = (file.metadata.metadata or {}).get(METADATA_KEY)
            if content is None:
                raise TraceError("Parquet, but no routing trace; expected a file made by RoutingTrace.save")
            metadata = TraceMetadata.parse(content)
            check_columns(file.schema_arrow.names, metadata)
            check_routed(file, metadata)
            yield file, metadata
    except TraceError as error:
        raise TraceError(f"trace {str(path)!r}: {error}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"trace {str(path)!r} is damaged ({_reason_in_words(error)}); make it again") from None


def _numbered(ids_T: Int16Array, names: list[str], known: dict[str, None]) -> Int16Array:
    """[T] the ids as places among all names that were met so far, which are noted in `known`."""
    written = [valid_text(name) for name in names]
    known |= dict.fromkeys(written)
    return renumbered(ids_T, written, list(known))


def _to_table(
    trace: RoutingTrace,
    domain_ids: Int16Array,
    domains: list[str],
    label_ids: Int16Array | None = None,
    labels: Sequence[str] = (),
) -> pa.Table:
    """What is per token, its domains and labels numbered as given."""
    columns: dict[str, pa.Array] = {
        "token_id": pa.array(trace.token_ids),
        TOKEN_TEXT: text_column(trace.token_ids, trace.vocabulary),
        "document_id": pa.array(trace.document_ids),
        "source_id": pa.array(trace.source_ids),
        "position": pa.array(trace.positions),
        "domain_id": pa.array(domain_ids),
        DOMAIN: name_column(domain_ids, domains),
    }
    if label_ids is not None:
        columns |= {"label_id": pa.array(label_ids), LABEL: name_column(label_ids, labels)}
    if trace.predicted_ids is not None:
        columns["predicted_id"] = pa.array(trace.predicted_ids)
    for row, layer in enumerate(trace.layers):
        for slot in range(trace.top_k):
            columns[f"layer_{layer}_expert_{slot}"] = pa.array(trace.router_indices[row, :, slot])
            columns[f"layer_{layer}_score_{slot}"] = pa.array(trace.router_scores[row, :, slot])
        if trace.router_logits is not None:
            flat = pa.array(trace.router_logits[row].astype(np.float32).reshape(-1))
            columns[f"layer_{layer}_logits"] = pa.FixedSizeListArray.from_arrays(flat, trace.num_experts)
    return pa.table(columns)


def _leaf_column(column: str) -> str:
    """The path under which Parquet keeps the values of a column."""
    return f"{column}.list.element" if column.endswith("_logits") else column


def _from_table(table: pa.Table, metadata: TraceMetadata, build: Callable[..., Built]) -> Built:
    layers, slots = metadata.layers, range(metadata.top_k)
    logits = None
    if metadata.router_logits:
        width, rule = metadata.num_experts, metadata.score_function
        logits = np.stack([_list_values(table, f"layer_{layer}_logits", width, rule) for layer in layers])
    return build(
        router_indices=np.stack(
            [np.stack([_column_values(table, f"layer_{layer}_expert_{s}") for s in slots], axis=-1) for layer in layers]
        ),
        router_scores=np.stack(
            [np.stack([_column_values(table, f"layer_{layer}_score_{s}") for s in slots], axis=-1) for layer in layers]
        ),
        router_logits=logits,
        predicted_ids=_column_values(table, "predicted_id") if "predicted_id" in table.column_names else None,
        num_experts=metadata.num_experts,
        token_ids=_column_values(table, "token_id"),
        document_ids=_column_values(table, "document_id"),
        source_ids=_column_values(table, "source_id") if "source_id" in table.column_names else None,
        positions=_column_values(table, "position"),
        domain_ids=_column_values(table, "domain_id"),
        domains=metadata.domains,
        layers=layers,
        score_function=metadata.score_function,
        varying_experts=metadata.varying_experts,
        null_experts=metadata.null_experts,
        source=metadata.source,
        vocabulary=metadata.vocabulary,
        label_ids=_column_values(table, "label_id") if metadata.labelling else None,
        labels=metadata.labels,
        labelling=metadata.labelling,
    )


def _bytes_per_token(metadata: TraceMetadata) -> int:
    """Bytes of the arrays in memory, about."""
    logits = 2 * metadata.num_experts if metadata.router_logits else 0
    return 22 + len(metadata.layers) * (6 * int(metadata.top_k) + logits)


def _column_values(table: pa.Table | pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    column = table.column(name)
    if column.null_count:
        raise TraceError(f"column {name!r} has {column.null_count} empty cells; expected a number in each")
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def _list_values(table: pa.Table, name: str, width: int, score_function: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return half_precision_logits(name, values.reshape(-1, width), score_function)


def _reason_in_words(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
