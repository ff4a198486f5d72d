"""From a trace to counts that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from moe_core.errors import UsageError
from moe_core.progress import Progress, silent
from moe_core.routing.trace.groups import Group, check_number
from moe_core.routing.trace.kernels import grouped_counts, pair_counts_of
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.types import Float64Array, Int64Array

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import RoutingTrace, StoredTrace

By = Literal["source", "domain", "all"]
"""What is counted apart: each source with its domain, each domain, or nothing."""
EXTRAS = ("weights", "pairs")
"""Sums that a trace can give beside its counts: combine weights [L,E], pairs of experts [L,E,E]."""


def counts_of(
    trace: RoutingTrace | StoredTrace, by: By = "source", extras: Sequence[str] = (), progress: Progress = silent
) -> RoutingCounts:
    """The trace's assignments by layer, expert and group, read part by part; one step, number 0.

    `by` "source" keeps what nulls and intervals need; a source is named by its id. `extras`: names of EXTRAS.
    `progress` hears of the tokens after each part.
    Raises UsageError for another `by` or extra, TraceError where there are too many sources to hold.
    """
    if by not in get_args(By):
        raise UsageError(f"by is {by!r}; expected one of {', '.join(get_args(By))}")
    unknown = [name for name in extras if name not in EXTRAS]
    if unknown:
        raise UsageError(f"extra {unknown[0]!r} is unknown; expected one of {', '.join(EXTRAS)}")
    L, E, M = trace.num_layers, trace.num_experts, len(trace.domains)
    if by == "source":
        check_number(1, L, trace.count_sources(), E)
    tokens: dict[int, int] = {}
    counts: dict[int, Int64Array] = {}
    sums: dict[str, Float64Array] = {name: np.zeros((L, E) if name == "weights" else (L, E, E)) for name in extras}
    done = 0
    for part in trace.parts():
        keys_T = _keys(part, by, M)
        keys_G, group_T = np.unique(keys_T, return_inverse=True)
        counts_LGE = grouped_counts(part.router_indices, group_T, (len(keys_G), E))
        for g, (key, size) in enumerate(zip(keys_G.tolist(), np.bincount(group_T).tolist(), strict=True)):
            tokens[key] = tokens.get(key, 0) + size
            counts[key] = counts_LGE[:, g] + counts.get(key, 0)
        for name, total in sums.items():
            total += _weights_of(part) if name == "weights" else pair_counts_of(part.router_indices, E)
        done += part.num_tokens
        progress("counting", done, trace.num_tokens)
    keys = sorted(tokens)
    groups = [_group(key, by, trace.domains) for key in keys]
    return RoutingCounts(
        tokens_per_expert=np.stack([counts[key] for key in keys], axis=1)[None],
        tokens=np.array([[tokens[key] for key in keys]], dtype=np.int64),
        steps=[0],
        layers=list(trace.layers),
        groups=groups,
        domains=list(trace.domains) if by != "all" else ["all"],
        num_experts=E,
        top_k=trace.top_k,
        varying_experts=trace.varying_experts,
        null_experts=trace.null_experts,
        extras=sums,
        source=trace.source,
    )


def regrouped(counts: RoutingCounts, by: By) -> RoutingCounts:
    """The same counts by domain, or all together; by source they are as they were."""
    if by == "source":
        return counts
    group_G = [Group() if by == "all" else Group(group.domain) for group in counts.groups]
    groups = list(dict.fromkeys(group_G))
    number = {group: g for g, group in enumerate(groups)}
    place_G = np.array([number[group] for group in group_G])
    S, L, _, E = counts.tokens_per_expert.shape
    numbers, tokens = np.zeros((S, L, len(groups), E), dtype=np.int64), np.zeros((S, len(groups)), dtype=np.int64)
    np.add.at(numbers.transpose(2, 0, 1, 3), place_G, counts.tokens_per_expert.transpose(2, 0, 1, 3))
    np.add.at(tokens.T, place_G, counts.tokens.T)
    domains = ["all"] if by == "all" else counts.domains
    return replace(counts, tokens_per_expert=numbers, tokens=tokens, groups=groups, domains=domains)


def _keys(part: RoutingTrace, by: By, M: int) -> Int64Array:
    """[T] a number of the token's group; see `_group` for the way back."""
    if by == "all":
        return np.zeros(part.num_tokens, dtype=np.int64)
    domains_T = part.domain_ids.astype(np.int64)
    return domains_T if by == "domain" else part.source_ids.astype(np.int64) * M + domains_T


def _group(key: int, by: By, domains: Sequence[str]) -> Group:
    if by == "all":
        return Group()
    return Group(domains[key % len(domains)], str(key // len(domains)) if by == "source" else None)


def _weights_of(part: RoutingTrace) -> Float64Array:
    """[L,E] sum of the combine weights that each expert's tokens gave it."""
    E = part.num_experts
    return np.stack(
        [
            np.bincount(indices_TK.reshape(-1).astype(np.intp) + 1, scores_TK.reshape(-1), minlength=E + 1)[1:]
            for indices_TK, scores_TK in zip(part.router_indices, part.router_scores, strict=True)
        ]
    )
