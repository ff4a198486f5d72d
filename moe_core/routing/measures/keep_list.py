"""Which experts of each layer to keep, and of which of them the text does not tell.

An expert is surely kept, or surely dropped, where its interval lies clear of enough others' whatever else is true:
intervals hold for all layers and experts at once (Bonferroni), so that in 95 of 100 texts no such verdict is wrong. All
others are unknown: with other text of the same kind they might change places. An expert that looks unused, or one
domain's own, on little text has a wide interval and is unknown, not droppable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from moe_core.ablation_modes import Criterion
from moe_core.errors import UsageError
from moe_core.routing.measures.pruning import BY
from moe_core.routing.statistics.bootstrap import without_single
from moe_core.routing.statistics.clusters import Clusters, clusters, share_bounds
from moe_core.routing.statistics.intervals import TAILS, ratio_error
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyRouting
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array
from moe_core.words import count_of, listed, percent

Verdict = Literal["kept", "dropped", "unknown"]
MIN_SOURCES = 6
"""Sources that must have used an expert before a mean over its tokens is told: of fewer their spread is not known."""


@dataclass(frozen=True)
class ListedExpert:
    """One expert of a keep list."""

    layer: int
    expert: int
    score: float | None
    """By what experts are put in order, >= 0 (effects may be negative); None where no token chose it, or by chance."""
    low: float | None
    high: float | None
    """Its interval, which holds for all experts of the list at once with 95 % certainty; None = nothing bounds it."""
    sources: int | None
    """Sources of text that used it, or groups of them; None where that was not counted."""
    keep: bool
    """Is it among the experts that stay?"""
    verdict: Verdict
    """kept or dropped: surely; unknown: other text of this kind may say otherwise."""


@dataclass(frozen=True)
class KeepList:
    """The experts of a model that stay, of each layer as many, the others least needed."""

    by: Criterion
    keep: int
    """Experts that stay in each layer."""
    num_experts: int
    domain: str | None
    """Whose text decided; None = all text."""
    tokens: int
    sources: int
    """Of the text that decided."""
    experts: tuple[ListedExpert, ...]

    @property
    def kept(self) -> dict[int, list[int]]:
        """Layer -> the experts that stay, ascending."""
        found: dict[int, list[int]] = {}
        for one in sorted(self.experts, key=lambda one: (one.layer, one.expert)):
            found.setdefault(one.layer, [])
            if one.keep:
                found[one.layer].append(one.expert)
        return found

    def count(self, verdict: Verdict) -> int:
        """Experts of all layers with this verdict."""
        return sum(one.verdict == verdict for one in self.experts)


@dataclass(frozen=True)
class SaliencySums:
    """What experts put out, added up for each source of text. Axes: L layers, S sources, E experts."""

    layers: tuple[int, ...]
    tokens: Int64Array
    """[L,S,E] tokens that chose the expert."""
    weighted: Float64Array
    """[L,S,E] sum over them of combine weight times output norm."""
    norm: Float64Array
    """[L,S,E] sum over them of output norm."""
    gate: Float64Array
    """[L,S,E] sum over them of combine weight."""
    source_tokens: Int64Array
    """[S] tokens read of each source."""
    stratum: Int64Array
    """[S] domain of the source."""

    @property
    def read(self) -> int:
        """Tokens read in all."""
        return int(self.source_tokens.sum())

    def of_domain(self, domain: int) -> SaliencySums:
        """The sources of one domain alone."""
        own = self.stratum == domain
        return SaliencySums(
            self.layers, self.tokens[:, own], self.weighted[:, own], self.norm[:, own], self.gate[:, own],
            self.source_tokens[own], self.stratum[own],
        )  # fmt: skip


def list_by_load(routing: AnyRouting, keep: int, *, domain: str | None = None) -> KeepList:
    """Keep the experts that the largest share of tokens choose, from a trace or counts alone.

    Bounds are those of the health verdict (share_bounds). Raises UsageError for a number that does not fit, or a domain
    that is not there.
    """
    if domain is not None and domain not in routing.domains:
        raise UsageError(f"there is no domain {domain!r}; expected one of {', '.join(routing.domains)}")
    if domain is not None:
        routing = routing if isinstance(routing, RoutingCounts) else routing.counts(by="source")
        routing = routing.of_domain(domain)
    found = clusters(routing)
    bounds, share_LE = share_bounds(found), found.counts.sum(axis=1) / max(found.total, 1)
    used_LE = (found.counts > 0).sum(axis=1)
    return listed_experts(
        "load", tuple(routing.layers), keep, share_LE, (bounds.low, bounds.high_of_all), used_LE,
        read=(found.total, found.sources), domain=domain,
    )  # fmt: skip


def list_by_saliency(
    sums: SaliencySums, keep: int, *, by: Literal["reap", "load"] = "reap", domain: str | None = None
) -> KeepList:
    """Keep the experts of the largest REAP (arXiv:2510.13999): the mean over its tokens of weight times output norm.

    The interval of a mean is Student's, its variance that of the ratio over sources; of fewer than MIN_SOURCES that
    used the expert, nothing is told. By load: as list_by_load, of the sources' counts.
    """
    L, _, E = sums.tokens.shape
    used_LE = (sums.tokens > 0).sum(axis=1)
    read = sums.read, int(sums.tokens.any(axis=(0, 2)).sum())
    if by == "load":
        tokens_S = sums.source_tokens
        bounds = share_bounds(Clusters(sums.tokens, tokens_S, without_single(sums.stratum), len(tokens_S)))
        share_LE = sums.tokens.sum(axis=1) / max(int(tokens_S.sum()), 1)
        limits = bounds.low, bounds.high_of_all
        return listed_experts("load", sums.layers, keep, share_LE, limits, used_LE, read=read, domain=domain)
    score_LE = ratio(sums.weighted.sum(axis=1), sums.tokens.sum(axis=1).astype(np.float64))
    low_LE, high_LE = np.full((L, E), np.nan), np.full((L, E), np.nan)
    for layer, expert in np.argwhere(used_LE >= MIN_SOURCES):
        own = sums.tokens[layer, :, expert] > 0
        weights_C = sums.tokens[layer, own, expert].astype(np.float64)
        error, freedom = ratio_error(sums.weighted[layer, own, expert], weights_C, np.zeros(len(weights_C)))
        half = float(special.stdtrit(freedom, 1 - TAILS[0] / (L * E))) * error
        low_LE[layer, expert] = max(0.0, score_LE[layer, expert] - half)
        high_LE[layer, expert] = score_LE[layer, expert] + half
    return listed_experts("reap", sums.layers, keep, score_LE, (low_LE, high_LE), used_LE, read=read, domain=domain)


def listed_experts(
    by: Criterion,
    layers: tuple[int, ...],
    keep: int,
    score_LE: Float64Array,
    bounds: tuple[Float64Array, Float64Array],
    used_LE: Int64Array | None,
    *,
    read: tuple[int, int],
    domain: str | None = None,
) -> KeepList:
    """A keep list from scores [L,E], high = needed, and (low, high) that hold for all at once (NaN = unbounded).

    `read`: tokens and sources. Of equals the larger number stays. Raises UsageError for a number that does not fit.
    """
    E = score_LE.shape[1]
    if not 1 <= keep <= E:
        raise UsageError(f"{keep} experts cannot be kept in each layer; expected 1 to {E}")
    experts: list[ListedExpert] = []
    for place, layer in enumerate(layers):
        score_E, low_E, high_E = (values[place] for values in (score_LE, *bounds))
        order = np.lexsort((np.arange(E), np.nan_to_num(score_E, nan=-np.inf)))
        stays_E = np.zeros(E, dtype=np.bool_)
        stays_E[order[E - keep :]] = True
        surely_kept_E, surely_dropped_E = sure_verdicts(low_E, high_E, keep)
        for expert in range(E):
            verdict: Verdict = "kept" if surely_kept_E[expert] else "dropped" if surely_dropped_E[expert] else "unknown"
            experts.append(
                ListedExpert(
                    layer, expert, _or_none(score_E[expert]), _or_none(low_E[expert]), _or_none(high_E[expert]),
                    None if used_LE is None else int(used_LE[place, expert]), bool(stays_E[expert]), verdict,
                )
            )  # fmt: skip
    return KeepList(by, keep, E, domain, *read, tuple(experts))


def sure_verdicts(low_E: Float64Array, high_E: Float64Array, keep: int) -> tuple[BoolArray, BoolArray]:
    """(surely kept [E], surely dropped [E]) of one layer, where every true value lies in its interval (NaN = anywhere).

    Surely dropped: at least `keep` others are above it wherever all truly lie; surely kept: at least E - keep below it.
    """
    low_E, high_E = np.where(np.isnan(low_E), -np.inf, low_E), np.where(np.isnan(high_E), np.inf, high_E)
    above_EE = low_E[None, :] > high_E[:, None]  # [e, o]: o is surely above e
    E = len(low_E)
    kept_E, dropped_E = above_EE.sum(axis=0) >= E - keep, above_EE.sum(axis=1) >= keep
    if keep == E:
        return np.ones(E, dtype=np.bool_), np.zeros(E, dtype=np.bool_)
    return kept_E, dropped_E


def keep_list_verdict(found: KeepList) -> str:
    """What the list is worth, in words that obey it."""
    of = "all text" if found.domain is None else f"{found.domain} text"
    text = f"{found.tokens:,} tokens of {count_of(found.sources, 'source')} of {of}"
    if found.by == "random":
        return "The experts were drawn at random: nothing says that those which go are needed less."
    sure, unknown = found.count("kept") + found.count("dropped"), found.count("unknown")
    if sure == 0:
        return f"Which experts are needed least {BY[found.by]} cannot be told from {text}: bring more sources."
    said = [f"{found.count('kept')} surely stay", f"{found.count('dropped')} can surely go"]
    if unknown:
        said.append(f"{unknown} are unknown: other text of this kind may put them on the other side")
    certainty = f"{percent(1 - SIGNIFICANCE)} certainty for all at once"
    return f"Of {len(found.experts)} experts, {BY[found.by]} on {text}, {listed(said)} ({certainty})."


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
