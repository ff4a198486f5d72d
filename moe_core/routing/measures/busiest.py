"""How much of the work the busiest experts take: whether few experts would do for most of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import without_single
from moe_core.routing.statistics.clusters import Clusters, clusters, share_bounds
from moe_core.routing.statistics.halves import LEAST_CLUSTERS, ways
from moe_core.routing.statistics.intervals import ratio_errors, t_quantile
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.routing.trace.counting import regrouped
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyRouting
from moe_core.routing.trace.types import Float64Array
from moe_core.words import count_of, layers_named, number, percent

PARTS = (0.5, 0.8, 0.9)
"""Of the work: how many experts take so much?"""
LEAST_SOURCES = 12
"""Of fewer sources nothing is said of other text: on 8 documents with runs, 8 of 60 even routers were found uneven."""
SLIGHT = 1.1
"""Times what an even router gives: less than this is little, however sure."""
CHANCE_DRAWS = 499
MORE, SLIGHTLY_MORE, EVEN, UNKNOWN = (
    "surely more than an even router",
    "slightly more than an even router",
    "not distinguishable from an even router",
    "cannot be told",
)


def busiest_experts(trace: AnyRouting, domain: str | None = None) -> pd.DataFrame:
    """The share of a layer's assignments that its N busiest experts take, for every N from 1 to E.

    share, 0..1: the N experts that are busiest in half of the sources, counted in the other half, both ways, over two
    halvings. Of an even router it is N/E on any text; the N busiest counted where they were chosen (`counted`) are
    always more. low, high: its 95 % interval over sources, NaN where nothing says how sure it is: that of one half, as
    both ways agree by chance where experts are alike. even = N/E. chance = what `counted` is of an even router on text
    that tells as much (effective tokens of clusters.Bounds), the mean of CHANCE_DRAWS draws; p_adjusted = how often it
    is as much as counted at a quarter of the experts, over the layers (Benjamini-Hochberg), and the verdict there.
    weight_share = the part of the combine weight that the N experts with most assignments have, as counted, NaN where
    weights were not kept. Further columns: layer, experts (N), tokens, sources, varies_by (as in load_balance).
    Source: hot experts of EPLB (2412.19437, section 3.4); choosing and assessing on different data, Stone 1974.
    """
    found, weight_LE = _counted(trace, domain)
    counts_LCE = found.counts.astype(np.float64)
    L, C, E = counts_LCE.shape
    total_LE = counts_LCE.sum(axis=1)
    can_halve = found.freedom >= 1 and C >= LEAST_CLUSTERS
    is_told = can_halve and (found.sources >= LEAST_SOURCES or found.varies_by == "step")
    unknown = (np.full((L, E), np.nan),) * 3
    share_LE, low_LE, high_LE = _of_other_half(found) if can_halve else unknown
    counted_LE = ratio(np.cumsum(-np.sort(-total_LE, axis=1), axis=1), total_LE.sum(axis=1, keepdims=True))
    even_E = np.arange(1, E + 1) / E
    quarter = -(-E // 4) - 1
    chance_LE, p_L = _chance(found, trace.top_k, counted_LE[:, quarter], quarter)
    p_adjusted_L = adjust(np.where(np.isnan(counted_LE[:, quarter]) | (not is_told), np.nan, p_L))
    verdict_L = [
        _verdict(p, share / even_E[quarter]) for p, share in zip(p_adjusted_L, share_LE[:, quarter], strict=True)
    ]
    order_LE = np.argsort(-total_LE, axis=1, kind="stable")
    weight_share = np.full((L, E), np.nan)
    if weight_LE is not None:
        weight_share = ratio(
            np.cumsum(np.take_along_axis(weight_LE, order_LE, axis=1), axis=1), weight_LE.sum(axis=1, keepdims=True)
        )
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, E),
            "experts": np.tile(np.arange(1, E + 1), L),
            "share": share_LE.reshape(-1),
            "low": low_LE.reshape(-1) if is_told else np.nan,
            "high": high_LE.reshape(-1) if is_told else np.nan,
            "counted": counted_LE.reshape(-1),
            "even": np.tile(even_E, L),
            "chance": chance_LE.reshape(-1),
            "weight_share": weight_share.reshape(-1),
            "p_adjusted": np.repeat(p_adjusted_L, E),
            "verdict": np.repeat(verdict_L, E),
            "tokens": found.total,
            "sources": found.sources,
            "varies_by": found.varies_by,
        }
    )


def experts_for(frame: pd.DataFrame, part: float) -> pd.DataFrame:
    """How many experts of each layer take this part of the work: layer, experts, low, high (95 %), even.

    Of other text where the frame knows its share, else as counted; low, high NaN where nothing says how sure it is.
    """
    rows = []
    for layer, own in frame.groupby("layer", sort=False):
        value = own["share"] if own["share"].notna().all() else own["counted"]
        known = bool(own["low"].notna().all())
        rows.append(
            {
                "layer": layer,
                "experts": _reached(value, part),
                "low": _reached(own["high"], part) if known else np.nan,
                "high": _reached(own["low"], part) if known else np.nan,
                "even": _reached(own["even"], part),
            }
        )
    return pd.DataFrame(rows)


def busiest_verdict(frame: pd.DataFrame) -> str:
    """How many experts take most of the work, against an even router, and how sure that is."""
    E = int(frame["experts"].max())
    layers = frame.groupby("layer", sort=False).first()
    told = layers[layers["verdict"] != UNKNOWN]
    for_most = experts_for(frame, 0.8)
    least, most, even = int(for_most["experts"].min()), int(for_most["experts"].max()), int(for_most["even"].iloc[0])
    needs = f"{least}" if least == most else f"{least} to {most}"
    size = f"80 % of a layer's work takes {needs} of its {count_of(E, 'expert')}, {even} if all were alike"
    text = _extent(frame)
    if told.empty:
        return f"Whether few experts do most of the work cannot be told ({text}). As counted, {size}."
    surely = told[told["verdict"].isin((MORE, SLIGHTLY_MORE))]
    if surely.empty:
        return (
            f"The busiest experts do no more than an even router's would, as far as this text tells ({text}): {size}."
        )
    quarter = -(-E // 4)
    at = frame[(frame["experts"] == quarter) & frame["layer"].isin(surely.index)]
    top = at.iloc[int(at["share"].argmax())]
    where = f"layer {top['layer']}, the most uneven," if len(layers) > 1 else "it"
    rest = layers[~layers.index.isin(surely.index)]
    others = f"; {layers_named(rest.index)} no more than an even router, as far as this text tells" if len(rest) else ""
    slightly = ", but slightly" if (surely["verdict"] == SLIGHTLY_MORE).all() else ""
    busiest = "busiest expert takes" if quarter == 1 else f"{quarter} busiest experts take"
    return (
        f"Few experts do more than their share{slightly}: {size}. In {where} the {busiest} {percent(top['share'])} "
        f"(95 % interval {percent(top['low'])} to {percent(top['high'])}, {percent(top['even'])} if all were alike; "
        f"{text}){others}."
    )


def busiest_sentence(row: Any) -> str:
    """A row of the frame in words."""
    sure = f" (95 % interval {percent(row.low)} to {percent(row.high)})" if row.low == row.low else ""
    value = row.share if row.share == row.share else row.counted
    busiest = "busiest expert takes" if row.experts == 1 else f"{row.experts} busiest experts take"
    return (
        f"Layer {row.layer}: the {busiest} {percent(value)} of the work{sure}, {number(value / row.even)} times even."
    )


def counts_of_domain(trace: AnyRouting, domain: str) -> RoutingCounts:
    """One domain's counts, sources told apart. Raises TraceError for a domain that is not there."""
    counts = trace if isinstance(trace, RoutingCounts) else trace.counts()
    return counts.of_domain(domain)


def _counted(trace: AnyRouting, domain: str | None) -> tuple[Clusters, Float64Array | None]:
    if domain is not None:
        return clusters(counts_of_domain(trace, domain)), None
    if isinstance(trace, RoutingCounts):
        return clusters(trace), trace.extras.get("weights")
    return clusters(trace), regrouped(trace.counts(by="all", extras=("weights",)), "all").extras["weights"]


def _of_other_half(found: Clusters) -> tuple[Float64Array, Float64Array, Float64Array]:
    """(share, low, high) [L,E], as busiest_experts has them."""
    counts_LCE = found.counts.astype(np.float64)
    shares, errors, freedoms = [], [], []
    for chooses, counted in ways(found.stratum):
        order_LE = np.argsort(-counts_LCE[:, chooses].sum(axis=1), axis=1, kind="stable")
        own_LCE = counts_LCE[:, counted]
        part_LCE = np.cumsum(np.take_along_axis(own_LCE, order_LE[:, None], axis=2), axis=2)
        share_LE, error_LE, freedom = ratio_errors(
            part_LCE, own_LCE.sum(axis=2), without_single(found.stratum[counted])
        )
        shares.append(share_LE)
        errors.append(error_LE)
        freedoms.append(freedom)
    share_LE = np.mean(shares, axis=0)
    half_LE = t_quantile(max(min(freedoms), 1)) * np.mean(errors, axis=0)
    return share_LE, np.clip(share_LE - half_LE, 0.0, 1.0), np.clip(share_LE + half_LE, 0.0, 1.0)


def _chance(found: Clusters, top_k: int, counted_L: Float64Array, place: int) -> tuple[Float64Array, Float64Array]:
    """([L,E] the share that the N busiest seem to have of an even router on text worth as many tokens, [L] how often it
    is as large as `counted_L` at one place)."""
    L, _, E = found.counts.shape
    effective = share_bounds(found).effective_tokens
    # A layer's choices add up to so many for each token; drawn ones do not, and vary less about their own mean.
    worth_L = np.where(np.isnan(effective), found.total, effective) * (1 - 1 / E)
    tokens_L = np.maximum(np.rint(worth_L), 1).astype(np.int64)
    rng = np.random.default_rng(0)
    chance_LE, p_L = np.empty((L, E)), np.empty(L)
    for row, tokens in enumerate(tokens_L.tolist()):
        drawn_RE = rng.binomial(tokens, min(top_k / E, 1.0), size=(CHANCE_DRAWS, E))
        cumulated = np.cumsum(-np.sort(-drawn_RE, axis=1), axis=1).astype(np.float64)
        share_RE = ratio(cumulated, cumulated[:, -1:])
        chance_LE[row] = np.nanmean(share_RE, axis=0)
        p_L[row] = (1 + (share_RE[:, place] >= counted_L[row] - 1e-12).sum()) / (CHANCE_DRAWS + 1)
    return chance_LE, p_L


def _verdict(p: float, times_even: float) -> str:
    if np.isnan(p):
        return UNKNOWN
    if p > SIGNIFICANCE:
        return EVEN
    return MORE if times_even >= SLIGHT else SLIGHTLY_MORE


def _reached(share: pd.Series[float], part: float) -> int:
    """The least N whose share is at least the part."""
    return min(int((share.to_numpy() < part - 1e-12).sum()) + 1, len(share))


def _extent(frame: pd.DataFrame) -> str:
    row = frame.iloc[0]
    text = count_of(int(row["tokens"]), "token")
    return (
        f"{text} of {count_of(int(row['sources']), str(row['varies_by']))}"
        if row["varies_by"]
        else f"{text}, which keep no sources apart"
    )


TERMS = (
    Term(
        "coverage",
        "The part of a layer's assignments that its N busiest experts take, of text that did not choose them.",
        "assignments in half of the sources to the N experts busiest in the other half / all in that half",
        "N/E when even",
        "2412.19437, section 3.4; cross-validation, Stone 1974",
    ),
)
