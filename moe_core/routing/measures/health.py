"""What the model is, and whether its routing is healthy."""

from __future__ import annotations

import pandas as pd

from moe_core.words import count_of, layers_named, number, percent, short_count

IMBALANCE_LIMIT = 2.0
"""Load imbalance above which a layer is called uneven: its busiest expert does the work of two."""
DROPPED_LIMIT = 0.01
"""Part of the slots dropped above which it is worth a word."""
UNDECIDED_ENTROPY = 0.99
"""Router entropy (of 1) from which the router hardly prefers any expert."""


def describe_model(
    *,
    layers: int,
    experts: int,
    top_k: int,
    varying: bool = False,
    total_parameters: int | None = None,
    active_parameters: int | None = None,
) -> str:
    """What the model is: "4 MoE layers of 8 experts, 2 for each token; 3.1M parameters, ...". `varying`: some tokens
    have fewer experts."""
    text = f"{count_of(layers, 'MoE layer')} of {count_of(experts, 'expert')}"
    text += f", {'at most ' if varying else ''}{top_k} for each token"
    if not layers:
        text = "Dense, without experts"
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
        faults.append(f"nothing was routed in {layers_named(silent['layer'])}")
    if len(dead):
        experts = count_of(int(dead["dead_experts"].sum()), "dead expert")
        faults.append(f"{experts} in {layers_named(dead['layer'])}")
    if len(uneven):
        faults.append(f"uneven load in {layers_named(uneven['layer'])}")
    if len(dropped):
        most = percent(dropped["dropped_fraction"].max())
        faults.append(f"up to {most} of the slots dropped in {layers_named(dropped['layer'])}")
    if entropy is not None:
        undecided = entropy[(entropy["router_entropy"] >= UNDECIDED_ENTROPY) & (entropy["basis"] == "logits")]
        if len(undecided):
            faults.append(f"the router hardly prefers any expert in {layers_named(undecided['layer'])}")
    worst = balance["load_imbalance"].max()
    load = "" if pd.isna(worst) else f"worst load {number(worst)} times the mean"
    if not faults:
        return f"Healthy: no dead expert, {load}."
    return f"Not healthy: {'; '.join(part for part in (*faults, load) if part)}."
