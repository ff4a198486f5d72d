"""Experts to look at: of thousands the few that are overloaded, idle, most specialised or most costly, each against
what is expected of it, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from moe_core.routing.measures.causes import SMALL_NATS
from moe_core.routing.measures.domains import CLEARLY, SLIGHTLY, domain_verdict, preferred
from moe_core.routing.measures.health import IMBALANCE_LIMIT
from moe_core.routing.measures.load import DEAD_SHARE, NAMED
from moe_core.routing.statistics.intervals import p_of_intervals
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.words import count_of, number, p_value, signed

Kind = Literal["overloaded", "idle", "most specialised", "most costly"]
CANNOT_BE_TOLD = "cannot be told"
AS_COUNTED = "As counted: nothing says how sure a load is, as these counts keep neither sources nor steps apart."


@dataclass(frozen=True)
class Standout:
    """One expert that stands out, with its figure."""

    layer: int
    expert: int
    figure: str
    """ "2.6 times its even share (95 % interval 2.1 to 3.2)"; without an interval where nothing says how sure it is."""
    verdict: str
    """In words, without a full stop; begins with CANNOT_BE_TOLD where the data is too little."""


@dataclass(frozen=True)
class Standouts:
    """The experts of one kind that stand out most, at most NAMED; what is said of the kind where there are none."""

    kind: Kind
    experts: tuple[Standout, ...]
    more: int
    """Others of which the same is sure."""
    note: str
    """Why no expert is named, or what cannot be known of those that are; "" where nothing need be said."""


def standouts(
    bounds: pd.DataFrame, cells: pd.DataFrame, nmi: pd.DataFrame, effects: pd.DataFrame | None, unmeasured: str
) -> list[Standouts]:
    """The experts to look at, by kind. Frames of metrics.load_bounds, baselines.domain_cells, baselines.domain_nmi and
    evaluation's ablation_map; without effects `unmeasured` says how they are got."""
    return [
        overloaded(bounds),
        idle(bounds),
        most_specialised(cells, nmi),
        _none("most costly", unmeasured) if effects is None else most_costly(effects),
    ]


def overloaded(bounds: pd.DataFrame) -> Standouts:
    """The busiest experts: surely more than IMBALANCE_LIMIT times their even share or, where none is, perhaps."""
    routed = bounds.dropna(subset="lift").sort_values("lift", ascending=False, kind="stable")
    limit = f"above {IMBALANCE_LIMIT:g} times its even share"
    surely = routed[routed["lift_low"] > IMBALANCE_LIMIT]
    perhaps = routed[(routed["lift_high"] > IMBALANCE_LIMIT) & (routed["lift"] > 1)]
    return _of_load("overloaded", surely, perhaps, limit) if len(routed) else _none("overloaded", "Nothing was routed.")


def idle(bounds: pd.DataFrame) -> Standouts:
    """The least busy experts: surely below DEAD_SHARE of their even share or, where none is, perhaps. An expert of a
    layer that routes nothing is idle too."""
    ordered = bounds.assign(lift=bounds["lift"].fillna(0.0)).sort_values("lift", kind="stable")
    surely = ordered[ordered["lift_high_of_all"] < DEAD_SHARE]
    return _of_load("idle", surely, ordered[ordered["lift"] < DEAD_SHARE], "below a quarter of its even share")


def most_specialised(cells: pd.DataFrame, nmi: pd.DataFrame) -> Standouts:
    """The experts that most surely prefer a domain, each with its strongest one; of layers whose experts know domains
    at all."""
    found = set(nmi["layer"][nmi["verdict"].isin([CLEARLY, SLIGHTLY])])
    certain = preferred(cells[cells["layer"].isin(found)]).drop_duplicates(["layer", "expert"])
    if certain.empty:
        note = domain_verdict(nmi) if not found else "No single expert is surely preferred by any domain."
        return _none("most specialised", note)
    named = [
        Standout(
            int(row["layer"]),
            int(row["expert"]),
            f"{number(row['lift'])} times its even share of {row['domain']} tokens (95 % interval "
            f"{number(row['lift_low'])} to {number(row['lift_high'])})",
            f"surely prefers {row['domain']} text ({p_value(row['p_adjusted'])}, over all experts and domains)",
        )
        for _, row in certain.head(NAMED).iterrows()
    ]
    return Standouts("most specialised", tuple(named), len(certain) - len(named), "")


def most_costly(effects: pd.DataFrame) -> Standouts:
    """The experts without which the loss surely rises most: of those named at most 5 of 100 by accident, however many
    were switched off (Benjamini-Hochberg)."""
    total = effects[effects["domain"] == "all"]
    if len(total) and total["low"].isna().all():
        return _none("most costly", f"Which expert costs most {CANNOT_BE_TOLD}: it was measured on text of one source.")
    p_values = p_of_intervals(*(total[name].to_numpy(float) for name in ("delta_nats", "low", "high")))
    costs = total[(adjust(p_values) <= SIGNIFICANCE) & (total["delta_nats"] > 0)]
    costs = costs.sort_values("delta_nats", ascending=False, kind="stable")
    if costs.empty:
        return _none(
            "most costly", f"Without any one of {count_of(len(total), 'expert')} the loss does not surely rise."
        )
    named = [
        Standout(
            int(row["layer"]),
            int(row["expert"]),
            f"{signed(row['delta_nats'])} nats per token without it (95 % interval {signed(row['low'])} to "
            f"{signed(row['high'])})",
            "surely of use" if row["delta_nats"] >= SMALL_NATS else "surely of use, too little to matter",
        )
        for _, row in costs.head(NAMED).iterrows()
    ]
    return Standouts("most costly", tuple(named), len(costs) - len(named), "")


def _of_load(kind: Kind, surely: pd.DataFrame, perhaps: pd.DataFrame, what: str) -> Standouts:
    if perhaps.empty and surely.empty:
        return _none(kind, f"No expert is {what}.")
    found, verdict = (surely, f"surely {what}") if len(surely) else (perhaps, f"{CANNOT_BE_TOLD} whether it is {what}")
    named = []
    for _, row in found.head(NAMED).iterrows():
        interval = f" (95 % interval {number(row['lift_low'])} to {number(row['lift_high_of_all'])})"
        figure = f"{number(row['lift'])} times its even share{interval if row['varies_by'] else ''}"
        named.append(Standout(int(row["layer"]), int(row["expert"]), figure, verdict))
    is_known = bool((found["varies_by"] != "").all())
    return Standouts(kind, tuple(named), max(len(surely) - NAMED, 0), "" if is_known else AS_COUNTED)


def _none(kind: Kind, note: str) -> Standouts:
    return Standouts(kind, (), 0, note)
