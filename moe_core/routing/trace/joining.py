"""Traces joined, and whole documents drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError, UsageError
from moe_core.routing.trace.checks import ARRAYS
from moe_core.routing.trace.kernels import run_starts
from moe_core.routing.trace.types import Int16Array, Int32Array, Int64Array

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import RoutingTrace


def concatenate(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """Join traces of one model along the token axis, in order.

    Domains are matched by name, vocabularies merged. Document and source ids are kept as they are: two traces that
    number different documents alike must be renumbered by the caller. Raises TraceError where the models differ.
    """
    if not traces:
        raise TraceError("no traces to concatenate; expected at least one")
    first = traces[0]
    domains = list(dict.fromkeys(name for trace in traces for name in trace.domains))
    vocabulary: dict[int, str] = {}
    for number, trace in enumerate(traces):
        check_joinable(first, trace, f"trace {number}")
        for token_id, text in trace.vocabulary.items():
            if vocabulary.setdefault(token_id, text) != text:
                raise TraceError(
                    f"token {token_id} is {vocabulary[token_id]!r} in one trace and {text!r} in another; "
                    "only traces with one tokenizer can be joined"
                )
    labels = list(dict.fromkeys(name for trace in traces for name in trace.labels))
    domain_ids = [renumbered(trace.domain_ids, trace.domains, domains) for trace in traces]
    label_ids = [renumbered(trace.label_ids, trace.labels, labels) for trace in traces if trace.label_ids is not None]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(trace, name) for trace in traces], axis=len(axes) // 2)
        for name, _, axes in ARRAYS
        if getattr(first, name) is not None and name not in ("domain_ids", "label_ids")
    }
    return replace(
        first,
        **arrays,
        domain_ids=np.concatenate(domain_ids),
        domains=domains,
        label_ids=np.concatenate(label_ids) if label_ids else None,
        labels=labels,
        vocabulary=vocabulary,
        source=", ".join(dict.fromkeys(trace.source for trace in traces if trace.source)),
    )


def renumbered(ids_T: Int16Array, names: Sequence[str], known: Sequence[str]) -> Int16Array:
    """[T] the places among `known` of names that are numbered by their places among `names`; -1 stays -1."""
    places = {name: place for place, name in enumerate(known)}
    found: Int16Array = np.array([*(places[name] for name in names), -1], dtype=np.int16)[ids_T]
    return found


def check_joinable(first: RoutingTrace, other: RoutingTrace, name: str) -> None:
    """Raise TraceError, calling `other` by `name`, unless both are of one model and keep the same columns."""
    for fact in ("layers", "num_experts", "top_k", "score_function", "varying_experts", "null_experts", "labelling"):
        if getattr(other, fact) != getattr(first, fact):
            raise TraceError(
                f"{name} has {fact} = {getattr(other, fact)}, the first {getattr(first, fact)}; "
                "only traces of one model can be joined"
            )
    if (other.router_logits is None) != (first.router_logits is None):
        raise TraceError("some traces have router_logits and some have not; capture all with the same keep_logits")
    if (other.predicted_ids is None) != (first.predicted_ids is None):
        raise TraceError("some traces have predicted_ids and some have not; keep them for all or for none")


def sample_parts(
    parts: Iterable[RoutingTrace],
    documents_N: npt.NDArray[np.integer[Any]],
    sizes_N: Int64Array,
    max_tokens: int,
    seed: int,
) -> RoutingTrace:
    """Tokens of randomly chosen ones of the N documents, see RoutingTrace.sample; `sizes_N` are their tokens."""
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
    order = np.random.default_rng(seed).permutation(len(documents_N))
    chosen, rest, smallest = [], max_tokens, int(sizes_N.min())
    for i in order:
        if rest < smallest:
            break  # of millions of documents most need not be looked at
        if sizes_N[i] <= rest:
            chosen.append(i)
            rest -= int(sizes_N[i])
    chosen_ids = documents_N[chosen or order[:1]]
    found, rest = [], max_tokens
    for part in parts:
        mask = np.isin(part.document_ids, chosen_ids)
        mask &= np.cumsum(mask) <= rest  # only cuts where not even one document fitted
        if mask.any():
            found.append(part.select(mask))
            rest -= found[-1].num_tokens
    return concatenate(found)


def positions_within(document_ids: Int32Array) -> Int32Array:
    """[T] how many earlier tokens are of the same document."""
    order = np.argsort(document_ids, kind="stable")
    ordered = document_ids[order]
    first = np.searchsorted(ordered, ordered, side="left")
    positions = np.empty(document_ids.size, dtype=np.int32)
    positions[order] = np.arange(document_ids.size) - first
    return positions


def count_distinct(ids_T: Int32Array) -> int:
    """How many different numbers there are among ids of which equal ones mostly stand together."""
    return len(np.unique(ids_T[run_starts(ids_T)]))
