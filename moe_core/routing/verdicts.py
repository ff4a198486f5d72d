"""Plain-word answers, computed from the frames of metrics and baselines; pages, reports and captions share them.

Every sentence says the size, the chance level and the certainty, and may say that there is nothing to see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from moe_core.routing.baselines import CHANCE, CLEARLY, FEW_DOCUMENTS, ONE_DOMAIN, SLIGHTLY

IMBALANCE_LIMIT = 2.0
"""Load imbalance above which a layer is called uneven: its busiest expert does the work of two."""
DROPPED_LIMIT = 0.01
"""Part of the slots dropped above which it is worth a word."""
UNDECIDED_ENTROPY = 0.99
"""Router entropy (of 1) from which the router hardly prefers any expert."""

NOTHING_THERE = "Not distinguishable from chance: do not read patterns into this map."


def describe_model(
    *, layers: int, experts: int, top_k: int, total_parameters: int | None = None, active_parameters: int | None = None
) -> str:
    """What the model is: "4 MoE layers of 8 experts, 2 for each token; 3.1M parameters, ..."."""
    text = f"{_count(layers, 'MoE layer')} of {_count(experts, 'expert')}, {top_k} for each token"
    if total_parameters is not None:
        text += f"; {short_count(total_parameters)} parameters"
        if active_parameters is not None:
            text += f", {short_count(active_parameters)} active for each token"
    return f"{text}."


def routing_health(balance: pd.DataFrame, entropy: pd.DataFrame | None = None) -> str:
    """Is the routing healthy? From metrics.load_balance and, where given, metrics.router_entropy.

    Healthy: every layer routes, no expert is dead, no load imbalance above 2, at most 1 % of slots dropped and no
    router that hardly prefers any expert. Otherwise every fault is named with its layers.
    """
    silent = balance[balance["load_imbalance"].isna()]
    dead = balance[(balance["dead_experts"] > 0) & balance["load_imbalance"].notna()]
    uneven = balance[balance["load_imbalance"] > IMBALANCE_LIMIT]
    dropped = balance[balance["dropped_fraction"].between(DROPPED_LIMIT, 1.0, inclusive="neither")]
    faults = []
    if len(silent):
        faults.append(f"nothing was routed in {_layers(silent)}")
    if len(dead):
        experts = _count(int(dead["dead_experts"].sum()), "dead expert")
        faults.append(f"{experts} in {_layers(dead)}")
    if len(uneven):
        faults.append(f"uneven load in {_layers(uneven)}")
    if len(dropped):
        faults.append(f"up to {percent(dropped['dropped_fraction'].max())} of the slots dropped in {_layers(dropped)}")
    if entropy is not None:
        undecided = entropy[(entropy["router_entropy"] >= UNDECIDED_ENTROPY) & (entropy["basis"] == "logits")]
        if len(undecided):
            faults.append(f"the router hardly prefers any expert in {_layers(undecided)}")
    worst = balance["load_imbalance"].max()
    load = "" if pd.isna(worst) else f"worst load {number(worst)} times the mean"
    if not faults:
        return f"Healthy: no dead expert, {load}."
    return f"Not healthy: {'; '.join(part for part in (*faults, load) if part)}."


def domain_verdict(nmi: pd.DataFrame) -> str:
    """Do experts know a token's domain? From baselines.domain_nmi, all layers or the rows of one."""
    verdicts = set(nmi["verdict"])
    if ONE_DOMAIN in verdicts:
        return "All text is of one domain: whether experts know a token's domain cannot be tested."
    if FEW_DOCUMENTS in verdicts:
        documents = _count(int(nmi["documents"].iloc[0]), "document")
        return f"Too few documents to tell ({documents}): trace more of each domain before reading this map."
    found = nmi[nmi["verdict"].isin([CLEARLY, SLIGHTLY])]
    if found.empty:
        return NOTHING_THERE
    best = found.iloc[int(found["effect"].argmax())]
    where = f"layer {int(best['layer'])} most, " if len(nmi) > 1 else ""
    size = (
        f"{where}NMI {number(best['nmi'])} against {number(best['null_mean'])} by chance "
        f"({p_value(best['p_adjusted'])})"
    )
    others = nmi[nmi["verdict"] == CHANCE]
    rest = f"; {_layers(others)} not distinguishable from chance" if len(others) else ""
    if best["verdict"] == CLEARLY:
        return f"Experts know a token's domain: {size}{rest}."
    return f"Experts know a token's domain only slightly better than chance: {size}, too little to rely on{rest}."


def domain_cell(cell: Mapping[str, Any] | pd.Series[Any]) -> str:
    """One row of metrics.domain_specialization as a sentence without a full stop, for tooltips and captions."""
    if pd.isna(cell["share"]):
        return f"no {cell['domain']} tokens in this trace"
    text = (
        f"expert {cell['expert']} takes {percent(cell['share'])} of {cell['domain']} tokens, "
        f"{number(cell['lift'])} times its even share"
    )
    if pd.isna(cell["lift_low"]):
        return f"{text}; one document only, so uncertain"
    text += f", 95 % interval {number(cell['lift_low'])} to {number(cell['lift_high'])}"
    return f"{text}: uncertain" if cell["uncertain"] else text


def strongest_expert(specialization: pd.DataFrame) -> str:
    """The domain's expert that is most surely above its even share, from metrics.domain_specialization."""
    certain = specialization[~specialization["uncertain"] & (specialization["lift"] > 1)]
    if certain.empty:
        return "No expert takes any domain's tokens surely more often than its even share."
    best = certain.iloc[int(certain["lift_low"].argmax())]
    return f"Strongest: in layer {best['layer']}, {domain_cell(best)}."


def token_verdict(nmi: pd.DataFrame) -> str:
    """How much of the choice the token alone explains, beside what the domain explains; from metrics.token_nmi."""
    known = nmi[nmi["nmi"].notna()]
    if known.empty or not known["tokens"].iloc[0]:
        return "No token occurs often enough to say how much of the choice the token alone explains."
    best = known.iloc[int(known["nmi"].argmax())]
    where = f" in layer {int(best['layer'])}" if len(nmi) > 1 else ""
    return (
        f"The token alone explains {percent(best['nmi'])} of the choice of expert{where} "
        f"({percent(best['chance'])} by chance), its domain {percent(best['domain_nmi'])}."
    )


def number(value: float) -> str:
    """A number for people: two significant digits, never in powers of ten."""
    if math.isnan(value):
        return "unknown"
    if abs(value) >= 10:
        return f"{value:,.0f}"
    if abs(value) < 5e-5:
        return "0"
    text = f"{float(f'{value:.2g}'):.5f}".rstrip("0").rstrip(".")
    return f"{value:.1f}" if abs(value) >= 1 else text


def percent(share: float) -> str:
    """0.314 -> "31 %"; small shares keep a digit, and what is not 0 is never called 0."""
    if math.isnan(share):
        return "unknown"
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.0095 else f"{100 * share:.0f} %"


def p_value(p: float) -> str:
    """0.004975 -> "p < 0.005"; 0.3 -> "p = 0.30"."""
    for limit in (0.001, 0.005, 0.01, 0.05):
        if p < limit:
            return f"p < {limit}"
    return f"p = {p:.2f}"


def short_count(value: int) -> str:
    """27_300_000 -> "27.3M"."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if value < 999.5 * size else f"{value / size:.0f}{letter}"
    return str(value)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _layers(frame: pd.DataFrame, most: int = 4) -> str:
    names = [str(int(layer)) for layer in frame["layer"]]
    if len(names) == 1:
        return f"layer {names[0]}"
    shown = names[:most]
    return f"layers {', '.join(shown)}{f' and {len(names) - most} more' if len(names) > most else ''}"
