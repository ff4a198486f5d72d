"""How even the load of GPUs is: experts in order, and as the balancer places them by text that is not counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_core.routing.measures.busiest import LEAST_SOURCES, counts_of_domain
from moe_core.routing.measures.term import Term
from moe_core.routing.placement.balancer import Fleet, Placement, balance, default_fleet, in_order
from moe_core.routing.statistics.clusters import Clusters, clusters
from moe_core.routing.statistics.halves import LEAST_CLUSTERS, ways
from moe_core.routing.statistics.intervals import t_quantile
from moe_core.routing.trace.counts import expert_counts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyRouting
from moe_core.routing.trace.types import BoolArray, Float64Array
from moe_core.words import count_of, fixed

Pairs = list[tuple[BoolArray, BoolArray]]
_Values = tuple[Float64Array, Float64Array]


@dataclass(frozen=True)
class GpuBalance:
    """Max/mean load of the GPUs, averaged over layers. 1 = even."""

    low: float
    """95 % interval of what placement takes off, on other text; NaN where nothing says how sure it is."""
    high: float
    before: float
    """Experts in order, on half of the text."""
    after: float
    """Placed by the other half."""
    before_seen: float
    after_seen: float
    """Placed by all of the text and counted on it."""
    sources: int
    tokens: int
    varies_by: str

    @property
    def is_told(self) -> bool:
        """Is there enough text to say anything of other text?"""
        return self.low == self.low


def place_experts(trace: AnyRouting, fleet: Fleet | None = None, domain: str | None = None) -> Placement:
    """Replicas and GPUs of every layer's experts by all of the text, or by that of one domain."""
    counts = trace if domain is None else counts_of_domain(trace, domain)
    return balance(expert_counts(counts), fleet or default_fleet(trace.num_experts))


def gpu_load(trace: AnyRouting, fleet: Fleet | None = None, domain: str | None = None) -> pd.DataFrame:
    """How many times the mean load the busiest GPU has, layer by layer; a last row, layer -1, is their mean.

    Columns: layer; before = experts in the order of their numbers, after = placed by the balancer: both counted on
    halves of the sources, the placement made on the other half, two halvings both ways; gain = before - after with
    its 95 % interval low, high (a cluster of sources left out in turn, Student's t; NaN where nothing says how sure it
    is); before_seen, after_seen = on all of the text, the placement made on it; gpus, slots; tokens, sources, varies_by
    as in load_balance.
    Counts of little text are uneven by chance, so that before and after are both above what much text gives.
    Source: load balancing of 2412.19437, section 3.4.
    """
    fleet = fleet or default_fleet(trace.num_experts)
    found = clusters(trace if domain is None else counts_of_domain(trace, domain))
    counts_LCE = found.counts.astype(np.float64)
    total_LE = counts_LCE.sum(axis=1)
    L = len(total_LE)
    plain = in_order(L, fleet)
    before_L = after_L = low_L = high_L = np.full(L + 1, np.nan)
    if found.freedom >= 1 and len(found.tokens) >= LEAST_CLUSTERS:
        pairs = ways(found.stratum)
        before_L, after_L = (_with_mean(values) for values in _of_halves(counts_LCE, pairs, plain, fleet))
        if found.sources >= LEAST_SOURCES or found.varies_by == "step":
            error_L = _error(found, counts_LCE, pairs, plain, fleet, before_L - after_L)
            half_L = t_quantile(found.freedom) * error_L
            low_L, high_L = before_L - after_L - half_L, before_L - after_L + half_L
    return pd.DataFrame(
        {
            "layer": [*trace.layers, -1],
            "before": before_L,
            "after": after_L,
            "gain": before_L - after_L,
            "low": low_L,
            "high": high_L,
            "before_seen": _with_mean(_imbalance(plain, total_LE)),
            "after_seen": _with_mean(_imbalance(balance(total_LE, fleet), total_LE)),
            "gpus": fleet.gpus,
            "slots": fleet.slots,
            "tokens": found.total,
            "sources": found.sources,
            "varies_by": found.varies_by,
        }
    )


def summary(frame: pd.DataFrame) -> GpuBalance:
    """The mean over layers of the frame of gpu_load."""
    row = frame.iloc[-1]
    numbers = {name: float(row[name]) for name in ("low", "high", "before", "after", "before_seen", "after_seen")}
    return GpuBalance(
        **numbers, sources=int(row["sources"]), tokens=int(row["tokens"]), varies_by=str(row["varies_by"])
    )


def placement_verdict(frame: pd.DataFrame) -> str:
    """Does placement even the GPUs out on text that it has not seen?"""
    found = summary(frame)
    if frame["slots"].iloc[0] == frame["gpus"].iloc[0]:
        return (
            f"With one expert on each GPU there is nothing to place: the busiest has {number2(found.before_seen)} "
            "times the mean; slots for replicas would even it out."
        )
    seen = f"from {number2(found.before_seen)} to {number2(found.after_seen)} times the mean"
    if not found.is_told:
        few = f"{count_of(found.sources, found.varies_by)}" if found.varies_by else "counts that keep no sources apart"
        return (
            f"Whether placement evens the GPUs out on other text cannot be told from {few}; on the text it is made "
            f"of the busiest GPU goes {seen}."
        )
    text = f"{count_of(found.tokens, 'token')} of {count_of(found.sources, found.varies_by)}"
    sizes = f"from {number2(found.before)} to {number2(found.after)} times the mean"
    better = number2(found.before - found.after)
    interval = f"better by {better}, 95 % interval {number2(found.low)} to {number2(found.high)}; {text}"
    if found.low > 0:
        return (
            f"Placement evens the busiest GPU out {sizes} on text it has not seen ({interval}); {seen} on the text it "
            "is made of."
        )
    if found.high < 0:
        return (
            f"Placement makes the busiest GPU worse, {sizes}, on text it has not seen ({interval}): keep the plain "
            "order."
        )
    return (
        f"Placement by this text is not distinguishable from the plain order on text it has not seen: {sizes} "
        f"({interval}). On the text it is made of it looks better: {seen}."
    )


def number2(value: float) -> str:
    """A ratio near 1 with two decimals, or a difference of two: "1.04", "−0.003"."""
    return fixed(value, 2 if abs(value) >= 0.005 else 3).replace("-", "−") if value == value else "unknown"


def _imbalance(placement: Placement, load_LE: Float64Array) -> Float64Array:
    per_gpu = placement.gpu_load(load_LE)
    return ratio(per_gpu.max(axis=1), per_gpu.mean(axis=1))


def _with_mean(values_L: Float64Array) -> Float64Array:
    return np.append(values_L, np.nanmean(values_L) if (~np.isnan(values_L)).any() else np.nan)


def _of_halves(counts_LCE: Float64Array, pairs: Pairs, plain: Placement, fleet: Fleet) -> _Values:
    """([L] before, [L] after), each on the half that the placement was not made of, averaged."""
    before, after = [], []
    for chooses, counted in pairs:
        scored = counts_LCE[:, counted].sum(axis=1)
        before.append(_imbalance(plain, scored))
        after.append(_imbalance(balance(counts_LCE[:, chooses].sum(axis=1), fleet), scored))
    return np.mean(before, axis=0), np.mean(after, axis=0)


def _error(
    found: Clusters,
    counts_LCE: Float64Array,
    pairs: Pairs,
    plain: Placement,
    fleet: Fleet,
    gain_L: Float64Array,
) -> Float64Array:
    """[L+1] standard error of the gain: each cluster left out in turn, the others of its stratum standing for it."""
    square_L = np.zeros(len(gain_L))
    for cluster in range(counts_LCE.shape[1]):
        peers = int((found.stratum == found.stratum[cluster]).sum())
        if peers < 2:
            continue
        weight_C = np.where(found.stratum == found.stratum[cluster], peers / (peers - 1), 1.0)
        weight_C[cluster] = 0.0
        before_L, after_L = _of_halves(counts_LCE * weight_C[None, :, None], pairs, plain, fleet)
        square_L += (peers - 1) / peers * (_with_mean(before_L) - _with_mean(after_L) - gain_L) ** 2
    return np.sqrt(square_L)


TERMS = (
    Term(
        "load of the busiest GPU",
        "How many times the mean load of a layer's GPUs the busiest has: the others wait for it.",
        "max over GPUs / mean over GPUs of the sum over its slots of c_e / replicas of e",
        "1 when even",
        "2412.19437, section 3.4",
    ),
    Term(
        "physical expert",
        "A slot on a GPU that holds an expert; an expert much in demand has several.",
        "",
        "",
        "2412.19437, section 3.4; deepseek-ai/EPLB",
    ),
)
