"""Labels for the tokens of a trace: their node types in a syntax tree, or what a user knows of each of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.data.syntax import ERROR, LANGUAGE_OF_DOMAIN, NODE_TYPE, node_types, parser_of
from moe_core.data.tokenizer import bytes_of_readable
from moe_core.errors import DataError, TraceError, UsageError
from moe_core.routing.trace.parquet import TraceWriter
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace, open_or_load

_CONTROL = re.compile(r"<[^<>\s]+>")
"""Text of a control token as tokenizers name them: at a document's beginning it is no part of the text."""
MOST_LABELS = 4096
"""Different labels of a trace: beyond that counts of the null outgrow memory, and hardly a label is common."""
Names = npt.NDArray[np.object_]
"""[T] the label of each token; None = it has none."""


def languages_of(domains: Sequence[str], said: Sequence[str] = ()) -> dict[str, str]:
    """The language of each domain whose text is code: as `said` ("domain=language" each), else by the domain's name.

    A trace of one domain may be said by its language alone. Raises UsageError for a domain or language that is not
    there, or where no domain is code.
    """
    if not said:
        found = {name: LANGUAGE_OF_DOMAIN[name] for name in domains if name in LANGUAGE_OF_DOMAIN}
        if not found:
            raise UsageError(
                f"no domain of {', '.join(domains)} has the name of a language; say which is code, such as "
                f"{domains[0]}=python"
            )
        return found
    found = {}
    for text in said:
        domain, _, language = text.rpartition("=")
        for name in [domain] if domain else domains:
            if name not in domains:
                raise UsageError(f"there is no domain {name!r}; expected one of {', '.join(domains)}")
            parser_of(language)
            found[name] = language
    return found


def with_labels(trace: RoutingTrace, names_T: Names, labelling: str) -> RoutingTrace:
    """The trace with these labels, numbered in the order of their first token; older labels are gone.

    Raises UsageError for more than MOST_LABELS.
    """
    labels = list(dict.fromkeys(name for name in names_T.tolist() if name is not None))
    if len(labels) > MOST_LABELS:
        raise UsageError(
            f"{labelling!r} has {len(labels):,} different labels; expected at most {MOST_LABELS:,}, kinds of tokens "
            "rather than the tokens themselves"
        )
    number = {name: place for place, name in enumerate(labels)} | {None: -1}
    ids_T = np.array([number[name] for name in names_T.tolist()], dtype=np.int16)
    return replace(trace, label_ids=ids_T, labels=[str(name) for name in labels], labelling=labelling)


def syntax_labels(trace: RoutingTrace, languages: Mapping[str, str]) -> Names:
    """[T] the node type of each token of a document whose domain is code.

    The text is put together from the tokens' own bytes, so that offsets are exact whatever the tokenizer. Of a document
    only the tokens from its beginning up to the first gap are labelled. Raises TraceError without texts of the tokens.
    """
    names_T: Names = np.full(trace.num_tokens, None, dtype=object)
    order = np.lexsort((trace.positions, trace.document_ids))
    starts = np.flatnonzero(np.diff(trace.document_ids[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        own = order[start:stop]
        language = languages.get(trace.domains[int(trace.domain_ids[own[0]])])
        if language is None:
            continue
        own = own[: int((trace.positions[own] == np.arange(len(own))).cumprod().sum())]
        types = node_types(_pieces(trace, own), language)
        names_T[own] = [name or None for name in types]
    return names_T


def syntax_labelled(trace: RoutingTrace, languages: Mapping[str, str]) -> RoutingTrace:
    """The trace with node types for labels, see syntax_labels."""
    return with_labels(trace, syntax_labels(trace, languages), NODE_TYPE)


def unread_tokens(trace: AnyTrace) -> dict[str, tuple[int, int]]:
    """Of each domain with node types: (tokens that have one, those of them where the grammar can read nothing)."""
    labelled, unread = Counter[str](), Counter[str]()
    for part in trace.parts():
        assert part.label_ids is not None
        error = part.labels.index(ERROR) if ERROR in part.labels else -2
        for number, domain in enumerate(part.domains):
            own = part.label_ids[part.domain_ids == number]
            labelled[domain] += int((own >= 0).sum())
            unread[domain] += int((own == error).sum())
    return {domain: (count, unread[domain]) for domain, count in labelled.items() if count}


def _pieces(trace: RoutingTrace, places: npt.NDArray[np.integer[Any]]) -> list[bytes]:
    """The bytes of a document's tokens; none for a control token that it begins with."""
    pieces = list[bytes]()
    for token_id in trace.token_ids[places].tolist():
        text = trace.vocabulary.get(token_id)
        if text is None:
            raise TraceError(
                f"token {token_id} has no text in the trace, so there is no code to parse; trace with a tokenizer"
            )
        pieces.append(b"" if not pieces and _CONTROL.fullmatch(text) else bytes_of_readable(text))
    return pieces


def column_labels(path: Path, column: str, rows: int) -> Names:
    """[rows] the values of a column of a .parquet or .csv file as labels; an empty cell is no label.

    Raises DataError where there is no such column or it has another number of rows.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"labels {str(path)!r} cannot be read ({str(error).splitlines()[0][:120]})") from None
    if column not in frame.columns:
        named = ", ".join(map(str, frame.columns[:12]))
        raise DataError(f"{str(path)!r} has no column {column!r}; expected one of {named}")
    if len(frame) != rows:
        raise DataError(
            f"{str(path)!r} has {len(frame):,} rows; expected {rows:,}, one for each token of the trace in its order"
        )
    values = frame[column]
    found: Names = np.array([None if missing else str(value) for value, missing in zip(
        values.tolist(), values.isna().tolist(), strict=True)], dtype=object)  # fmt: skip
    return found


def write_labelled(
    trace: AnyTrace, names_of: Callable[[RoutingTrace, int], Names], labelling: str, out: Path
) -> AnyTrace:
    """Label a trace part by part into a file, and open that. `names_of` takes a part and where it starts."""
    start = 0
    with TraceWriter(out) as writer:
        for part in trace.parts():
            writer.write(with_labels(part, names_of(part, start), labelling))
            start += part.num_tokens
    return open_or_load(out)
