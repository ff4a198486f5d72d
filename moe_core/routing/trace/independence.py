"""Are the documents of a trace independent of each other? Windows of one text, which nobody said are one, are not.

Nulls shuffle and intervals draw whole sources. A text that was cut into windows before it was traced, without
source_ids that say which belong together, gives hundreds of sources that are alike, and every verdict is too sure.
"""

from __future__ import annotations

import numpy as np

from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting, StoredTrace
from moe_core.routing.trace.types import Int64Array
from moe_core.words import count_of, percent

MANY_DOCUMENTS = 16
"""Fewer documents of one length may well be so by chance or by a limit on their length."""
EQUAL_LENGTH = 0.75
"""Part of the documents, all but the last window of each text, from which their common length is taken for a window."""


def independence_note(trace: AnyRouting) -> str:
    """Why documents of this trace may be windows of the same texts, and what to do about it: a sentence, or "".

    Neighbouring windows cannot be known as such; the cue is that many documents have exactly the same length while each
    is its own source, which is what source_ids are where none were given. Texts that were cut short at a limit, each by
    itself, look the same and may be left as they are.
    """
    if isinstance(trace, RoutingCounts):
        return ""  # no lengths of documents are known
    if isinstance(trace, StoredTrace):
        return trace.once(("independence",), lambda: _note_of_file(trace))
    _, sizes = np.unique(trace.document_ids, return_counts=True)
    return _note(sizes, len(np.unique(trace.source_ids)))


def _note_of_file(trace: StoredTrace) -> str:
    from moe_core.routing.trace.parquet import count_ids

    return _note(count_ids(trace.path, "document_id")[1], trace.count_sources())


def _note(sizes_D: Int64Array, sources: int) -> str:
    D = len(sizes_D)
    if D < MANY_DOCUMENTS or sources < D:
        return ""
    lengths, times = np.unique(sizes_D, return_counts=True)
    length, equal = int(lengths[times.argmax()]), int(times.max())
    if equal < max(MANY_DOCUMENTS, EQUAL_LENGTH * D):
        return ""
    if length == 1:
        return (
            f"{_of(equal, D)} of a single token: tokens of running text depend on their neighbours, so verdicts and "
            "intervals are too sure; pass document_ids=... (and source_ids=...) where the texts are known."
        )
    return (
        f"{_of(equal, D)} of exactly {length:,} tokens, each its own source: if they are windows of longer texts, they "
        "depend on each other, and verdicts and intervals are too sure; pass source_ids=... with the text that each "
        "was cut from."
    )


def _of(equal: int, D: int) -> str:
    return f"All {count_of(D, 'document')} are" if equal == D else f"{percent(equal / D)} of {D:,} documents are"
