"""Which experts changed what they take, from one trace or counts to another?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from moe_core.routing.measures.comparison import check_same_experts, token_difference
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import resampled_totals, source_blocks
from moe_core.routing.statistics.intervals import least_paired_p, least_unpaired_p, t_quantile
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.routing.trace.blocks import block_counts
from moe_core.routing.trace.counts import domain_tokens
from moe_core.routing.trace.groups import Unit
from moe_core.routing.trace.kernels import grouped_counts
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyRouting, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array
from moe_core.words import percent, points

EVERY_DOMAIN = "all"
_ROUNDING = 1e-12  # a standard error below this is none


def routing_movers(a: AnyRouting, b: AnyRouting, seed: int = 0) -> pd.DataFrame:
    """The experts whose share of a domain's tokens changed most from `a` to `b`: two steps, two texts, two settings.

    Columns: layer, expert; domain = "all" and every domain that has tokens in both;
    share_a, share_b = tokens of the domain that chose the expert / its tokens, 0..1; change = share_b - share_a;
    low, high = 95 % interval of the change, change -+ t * bootstrap standard error over sources (t of Student's
    distribution with as many degrees of freedom as there are sources less one, or Welch's, 1947);
    p_adjusted = p-value of no change by the same t, but not below what exchanging the two traces' sources can reach
    (statistics.intervals.least_paired_p, least_unpaired_p), Benjamini-Hochberg over all rows;
    uncertain = p_adjusted > 0.05, or it cannot be told (NaN: fewer than two sources, or so few that no change of theirs
    could be sure: six of the same text in both, or three in one and four in the other);
    sources = how many the domain has, in the one that has fewer; 0 where counts do not tell sources apart;
    unit = "token", or "choice" where one of both counts choices: the shares are then of all choices, in both.
    Rows are ranked by |change|. If both are traces of the same tokens a source is drawn for both at once, so that
    what the text has of its own cancels out; else the two are drawn apart.
    An expert is told by its number: two separately trained models need match_experts first.
    Raises TraceError where layers or the number of experts differ.
    """
    check_same_experts(a, b)
    units = unit_of(a), unit_of(b)
    # A choice is one of a token's K: of counts without tokens, shares can only be of choices.
    slots = (1, 1) if units[0] == units[1] else (a.top_k, b.top_k)
    paired = isinstance(a, RoutingTrace) and isinstance(b, RoutingTrace) and _have_same_tokens(a, b)
    rng = np.random.default_rng(seed)
    frames = []
    for domain, own, its_own in _domains_of_both(a, b):
        one = _shares_by_source(a, own, slots[0], rng)
        if paired:
            assert isinstance(b, RoutingTrace)
            # The same blocks, also where `b` numbers its sources otherwise.
            other = _ExpertShares.of_tokens(b, one.of_token, len(one.tokens))
            error_LE, freedom_LE = _paired_error(one, other, rng)
            least_p = least_paired_p(len(one.tokens))
        else:
            other = _shares_by_source(b, its_own, slots[1], rng)
            error_LE, freedom_LE = _unpaired_error(one, other, rng)
            least_p = least_unpaired_p(len(one.tokens), len(other.tokens))
        frame = _frame_of_domain(a, domain, one.share, other.share, error_LE, freedom_LE, least_p)
        known = _knows_sources(a) and _knows_sources(b)
        frames.append(frame.assign(sources=min(len(one.tokens), len(other.tokens)) if known else 0))
    frame = pd.concat(frames, ignore_index=True)
    frame["p_adjusted"] = adjust(frame["p_adjusted"].to_numpy())
    frame["uncertain"] = ~(frame["p_adjusted"] <= SIGNIFICANCE)
    frame["unit"] = "choice" if "choice" in units else "token"
    order = np.argsort(-frame["change"].abs().to_numpy(), kind="stable")
    return frame.iloc[order].reset_index(drop=True)


def unit_of(routing: AnyRouting) -> Unit:
    """What it counts."""
    return routing.unit if isinstance(routing, RoutingCounts) else "token"


def _knows_sources(routing: AnyRouting) -> bool:
    return not isinstance(routing, RoutingCounts) or routing.knows_sources


def _have_same_tokens(a: RoutingTrace, b: RoutingTrace) -> bool:
    return not token_difference(a, b) and a.domains == b.domains and np.array_equal(a.domain_ids, b.domain_ids)


class _ExpertShares(NamedTuple):
    """One side's share of tokens per expert, by blocks of tokens that are not independent."""

    tokens: Int64Array
    """[N] tokens of each block."""
    counts: Int64Array
    """[L,N,E] those that chose each expert."""
    of_token: Int64Array
    """[T] block of each token, -1 for those left out; empty where tokens are not told apart."""

    @classmethod
    def of_tokens(cls, trace: RoutingTrace, block_T: Int64Array, N: int) -> _ExpertShares:
        tokens_N = np.bincount(block_T + 1, minlength=N + 1)[1:].astype(np.int64, copy=False)
        return cls(tokens_N, grouped_counts(trace.router_indices, block_T, (N, trace.num_experts)), block_T)

    @property
    def share(self) -> Float64Array:
        """[L,E]"""
        return ratio(self.counts.sum(axis=1), float(self.tokens.sum()))

    def flat(self) -> Int64Array:
        """[N,L*E]"""
        return self.counts.transpose(1, 0, 2).reshape(len(self.tokens), -1)


def _shares_by_source(routing: AnyRouting, domain: int | None, slots: int, rng: np.random.Generator) -> _ExpertShares:
    """Shares of the tokens of a domain, None = of all; or of their `slots` each. A block is a source, or everything
    where sources are not told apart."""
    if isinstance(routing, RoutingTrace):
        chosen_T = np.ones(routing.num_tokens, np.bool_) if domain is None else routing.domain_ids == domain
        block_T = np.full(routing.num_tokens, -1, dtype=np.int64)
        block_T[chosen_T], N = source_blocks(routing.source_ids[chosen_T], rng)
        found = _ExpertShares.of_tokens(routing, block_T, N)
        return found._replace(tokens=found.tokens * slots)
    parts = block_counts(routing)
    own = np.ones(len(parts.tokens), np.bool_) if domain is None else parts.domain_ids == domain
    sources = parts.source_ids[own] if _knows_sources(routing) else np.zeros(int(own.sum()), dtype=np.int64)
    block_N, N = source_blocks(sources, rng)
    tokens_N = np.bincount(block_N, parts.tokens[own], minlength=N).astype(np.int64)
    counts_LNE = np.zeros((routing.num_layers, N, routing.num_experts), dtype=np.int64)
    for into_NE, counts_NE in zip(counts_LNE, parts.counts, strict=True):
        np.add.at(into_NE, block_N, counts_NE[own])
    return _ExpertShares(tokens_N * slots, counts_LNE, np.zeros(0, dtype=np.int64))


def _domains_of_both(a: AnyRouting, b: AnyRouting) -> Iterator[tuple[str, int | None, int | None]]:
    """(name, number in a, number in b): everything, then every domain with tokens in both."""
    yield EVERY_DOMAIN, None, None
    tokens_M, its_tokens_M = domain_tokens(a), domain_tokens(b)
    for number, name in enumerate(a.domains):
        if name == EVERY_DOMAIN or name not in b.domains:
            continue
        its_number = b.domains.index(name)
        if tokens_M[number] and its_tokens_M[its_number]:
            yield name, number, its_number


def _paired_error(
    one: _ExpertShares, other: _ExpertShares, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """(standard error, degrees of freedom) [L,E] of the change, sources drawn for both at once."""
    variance = _share_variance(other.flat() - one.flat(), one.tokens, rng).reshape(one.share.shape)
    return np.sqrt(variance), np.full(one.share.shape, len(one.tokens) - 1.0)


def _unpaired_error(
    one: _ExpertShares, other: _ExpertShares, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """(standard error, degrees of freedom) [L,E] of the change, sources drawn apart."""
    v, w = (_share_variance(side.flat(), side.tokens, rng).reshape(side.share.shape) for side in (one, other))
    N, M = len(one.tokens) - 1.0, len(other.tokens) - 1.0
    freedom = ratio((v + w) ** 2, ratio(v**2, N) + ratio(w**2, M))
    return np.sqrt(v + w), np.where(v + w > 0, freedom, min(N, M))


def _share_variance(values_NX: Int64Array, tokens_N: Int64Array, rng: np.random.Generator) -> Float64Array:
    """[X] variance of sum(values) / sum(tokens) over resampled blocks; NaN with fewer than two."""
    N = len(tokens_N)
    if N < 2:
        return np.full(values_NX.shape[1], np.nan)
    totals_RX = resampled_totals(np.column_stack([values_NX, tokens_N]), rng)
    # Resampling N blocks understates the variance by (N - 1) / N.
    variance: Float64Array = (totals_RX[:, :-1] / totals_RX[:, -1:]).var(axis=0, ddof=1) * N / (N - 1)
    return variance


def _frame_of_domain(
    trace: AnyRouting,
    domain: str,
    share_a: Float64Array,
    share_b: Float64Array,
    error_LE: Float64Array,
    freedom_LE: Float64Array,
    least_p: float,
) -> pd.DataFrame:
    """Rows of one domain; the p-values not yet adjusted, NaN where the least is no 5 %."""
    L, E = share_a.shape
    change_LE = share_b - share_a
    error_LE = np.where(error_LE < _ROUNDING, 0.0, error_LE)
    half_LE = t_quantile(freedom_LE) * error_LE
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # no spread: the least p if there is a change, else no question
        p_LE = np.maximum(2 * special.stdtr(freedom_LE, -np.abs(change_LE) / error_LE), least_p)
    if least_p > SIGNIFICANCE:
        p_LE[:] = np.nan
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, E),
            "expert": np.tile(np.arange(E), L),
            "domain": domain,
            "share_a": share_a.reshape(-1),
            "share_b": share_b.reshape(-1),
            "change": change_LE.reshape(-1),
            "low": np.maximum(change_LE - half_LE, -1.0).reshape(-1),
            "high": np.minimum(change_LE + half_LE, 1.0).reshape(-1),
            "p_adjusted": p_LE.reshape(-1),
        }
    )


def movers_verdict(movers: pd.DataFrame) -> str:
    """Which expert changed its share most? From metrics.routing_movers, all rows or those of a layer or domain."""
    certain = movers[~movers["uncertain"].astype(bool)]
    if certain.empty and "sources" in movers and not movers["sources"].any():
        most = movers.iloc[int(movers["change"].abs().argmax())]
        counted = f"most for {_in_words(most)}" if most["change"] else "no share did"
        return (
            "Whether any expert's share changed cannot be tested, as the counts do not tell sources apart. As counted, "
            f"{counted}."
        )
    if certain.empty and "p_adjusted" in movers and movers["p_adjusted"].isna().all():
        return (
            "Whether any expert's share changed cannot be tested: there are too few sources. It takes six of the same "
            "text, or of two texts three and four."
        )
    if certain.empty:
        return "Not distinguishable from chance: no expert's share of any domain surely changed."
    best = certain.iloc[int(certain["change"].abs().argmax())]
    return (
        f"{len(certain):,} of {len(movers):,} shares surely changed. Most: {_in_words(best)[:-1]}, 95 % interval "
        f"{points(best['low'])} to {points(best['high'])})."
    )


def _in_words(row: pd.Series[Any]) -> str:
    """ "expert 3 of layer 1, from 8 % to 12 % of legal tokens (+4.0 points)"."""
    return (
        f"expert {int(row['expert'])} of layer {int(row['layer'])}, from {percent(row['share_a'])} to "
        f"{percent(row['share_b'])} of {whose_tokens(row)} ({points(row['change'])})"
    )


def whose_tokens(row: Any) -> str:
    """ "legal tokens", "all choices"."""
    return f"{row['domain']} {row.get('unit', 'token')}s"


TERMS = (
    Term("mover", "An expert whose share of a domain's tokens differs between two traces.", "share B - share A", "0"),
)
