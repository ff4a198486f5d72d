"""What matters: the loss without an expert, and whether anything observed predicts it."""

from __future__ import annotations

import pandas as pd

from moe_core.routing.baselines import SIGNIFICANCE
from moe_core.routing.verdicts.words import count_of, number

SMALL_NATS = 0.01
"""Change of loss below which it is of no use to anyone: 1 % of perplexity."""
STRONG_CORRELATION = 0.5
"""Rank correlation from which a measure is called a predictor: a quarter of the variance of the ranks."""

# Names that are not what the column is called with a capital letter.
_NAMES = {"reap": "REAP score", "ean": "Expert activation norm"}


def ablation_verdict(effects: pd.DataFrame) -> str:
    """What does the model lose without an expert? From evaluation's ablation_map, all experts or one."""
    total = effects[effects["domain"] == "all"]
    if total.empty:
        return "No expert has been switched off yet."
    certain = total[~total["uncertain"].astype(bool)]
    if certain.empty:
        who = (
            f"expert {int(total['expert'].iloc[0])}" if len(total) == 1 else f"any of {count_of(len(total), 'expert')}"
        )
        return f"Not distinguishable from chance: without {who} the loss is surely neither higher nor lower."
    best = certain.iloc[int(certain["delta_nats"].abs().argmax())]
    change = "rises" if best["delta_nats"] > 0 else "falls"
    interval = f"95 % interval {number(best['low'])} to {number(best['high'])}"
    text = (
        f"Without expert {int(best['expert'])} of layer {int(best['layer'])} the loss {change} by "
        f"{number(abs(best['delta_nats']))} nats per token ({interval})"
    )
    if abs(best["delta_nats"]) < SMALL_NATS:
        text += ", too little to matter"
    own = effects[
        (effects["layer"] == best["layer"])
        & (effects["expert"] == best["expert"])
        & (effects["domain"] != "all")
        & ~effects["uncertain"].astype(bool)
    ]
    if len(own):
        most = own.iloc[int(own["delta_nats"].abs().argmax())]
        text += f", most on {most['domain']} text ({most['delta_nats']:+.2g})"
    if len(total) == 1:
        return f"{text}."
    matter = int((certain["delta_nats"] >= SMALL_NATS).sum())
    experts = count_of(len(total), "expert")
    return f"{matter} of {experts} surely cost {number(SMALL_NATS)} nats or more when switched off. {text}."


def importance_verdict(correlations: pd.DataFrame) -> str:
    """Does anything observed predict which expert matters? From evaluation's rank_correlations."""
    known = correlations[correlations["rho"].notna()]
    if known.empty:
        return "Too few experts to tell whether anything observed predicts what matters."
    found = known[known["p_adjusted"] <= SIGNIFICANCE]
    experts = int(known["n"].max())
    if found.empty:
        return (
            f"Not distinguishable from chance: of {count_of(len(known), 'measure')} none predicts which of "
            f"{experts} experts matter."
        )
    best = found.iloc[int(found["rho"].abs().argmax())]
    predicts = "predicts" if abs(best["rho"]) >= STRONG_CORRELATION else "predicts only weakly"
    rest = [str(name) for name in known[~known.index.isin(found.index)]["measure"]]
    others = f"; {', '.join(rest)} not distinguishable from chance" if rest else ""
    name = _NAMES.get(str(best["measure"]), str(best["measure"]).capitalize())
    return (
        f"{name} {predicts} which experts matter: rank correlation {best['rho']:.2f} over "
        f"{experts} experts (95 % interval {best['low']:.2f} to {best['high']:.2f}, 0 by chance){others}."
    )
