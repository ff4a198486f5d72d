"""What the model is, and whether its routing is healthy on the text that was traced, as far as so much text tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting
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
    top_k: int | None,
    varying: bool = False,
    total_parameters: int | None = None,
    active_parameters: int | None = None,
) -> str:
    """What the model is: "4 MoE layers of 8 experts, 2 for each token; 3.1M parameters, ...". `varying`: some tokens
    have fewer experts; `top_k` None: it is not known."""
    text = f"{count_of(layers, 'MoE layer')} of {count_of(experts, 'expert')}"
    if top_k is not None:
        text += f", {'at most ' if varying else ''}{top_k} for each token"
    if not layers:
        text = "Dense, without experts"
    if total_parameters is not None:
        text += f"; {short_count(total_parameters)} parameters"
        if active_parameters is not None:
            text += f", {short_count(active_parameters)} active for each token"
    return f"{text}."


def describe_routing(routing: AnyRouting) -> str:
    """describe_model of what was routed; counts of choices do not know how many experts a token has."""
    is_unknown = isinstance(routing, RoutingCounts) and routing.unit == "choice"
    return describe_model(
        layers=routing.num_layers,
        experts=routing.num_experts,
        top_k=None if is_unknown else routing.top_k,
        varying=routing.varying_experts,
    )


def extent_words(routing: AnyRouting) -> str:
    """ "2,000 tokens of 12 sources in 2 domains", "8,000 choices at 12 steps"."""
    words = count_of(routing.num_tokens, routing.unit if isinstance(routing, RoutingCounts) else "token")
    if not isinstance(routing, RoutingCounts) or routing.knows_sources:
        words += f" of {count_of(routing.count_sources(), 'source')}"
    if isinstance(routing, RoutingCounts) and len(routing.steps) > 1:
        words += f" at {count_of(len(routing.steps), 'step')}"
    if len(routing.domains) > 1:
        words += f" in {count_of(len(routing.domains), 'domain')}"
    return words


TOO_LITTLE = "Too little text to tell whether the routing is healthy"
UNKNOWN_SPREAD = (
    "Whether the routing is healthy cannot be told, as these counts keep neither sources nor steps apart; as counted"
)
State = Literal["healthy", "not healthy", "too little text"]


@dataclass(frozen=True)
class Health:
    """The verdict on the load of all layers."""

    state: State
    worst: pd.Series[Any]
    """The row of metrics.load_balance that decides it."""
    surely_dead: int
    """Experts of all layers without a token, of which the text is enough to say that they are idle."""
    unseen: int
    """Experts of all layers without a token that need not be dead: the text is too little."""
    sentence: str


def undecided_layers(balance: pd.DataFrame) -> pd.Series[bool]:
    """Is the text too little to tell whether the layer's load is healthy? By row of metrics.load_balance.

    A layer is at fault if its load imbalance is surely above IMBALANCE_LIMIT, an expert surely dead, or surely more
    than DROPPED_LIMIT of its slots dropped; it is healthy if the imbalance is surely not, no expert is unseen and no
    more slots are dropped; else it is undecided.
    """
    unseen = balance["dead_experts"] > balance["surely_dead"]
    perhaps_dropped = _drops(balance) & ~_surely_drops(balance)
    faulty = _surely_uneven(balance) | (balance["surely_dead"] > 0) | _surely_drops(balance)
    undecided: pd.Series[bool] = ~faulty & ((balance["load_high"] > IMBALANCE_LIMIT) | unseen | perhaps_dropped)
    return undecided


def routing_health(balance: pd.DataFrame, entropy: pd.DataFrame | None = None) -> str:
    """Is the routing healthy? From metrics.load_balance and, where given, metrics.router_entropy; see health."""
    return health(balance, entropy).sentence


def health(balance: pd.DataFrame, entropy: pd.DataFrame | None = None) -> Health:
    """Is the routing healthy? From metrics.load_balance and, where given, metrics.router_entropy.

    Healthy: every layer routes, no expert is dead, no load imbalance above 2, at most 1 % of slots dropped and no
    router that hardly prefers any expert. Otherwise every fault that is sure is named with its layers. What decides is
    the size: the interval of the imbalance, not whether it differs from 1, which specialised experts always do on a
    text of a few domains. Where the interval holds the limit the text is too little to tell.
    """
    undecided = undecided_layers(balance)
    faults = _faults(balance, entropy)
    state: State = "not healthy" if faults else "too little text" if undecided.any() else "healthy"
    worst = _deciding_row(balance, undecided, state)
    dead = int(balance["surely_dead"].sum())
    unseen = int(balance["dead_experts"].sum()) - dead
    load = (
        ""
        if pd.isna(worst["load_imbalance"])
        else _load_in_words(worst, " on this text" if state != "not healthy" else "")
    )
    if state == "healthy":
        parts = [f"no dead expert, {load}"]
    else:
        little = " in this little text" if (balance["varies_by"] != "").all() else ""
        not_seen = f"{count_of(unseen, 'expert')} not seen{little}" if unseen else ""
        parts = [*faults, load, not_seen]
        if faults and undecided.any():
            parts.append(f"too little text to tell of {layers_named(balance['layer'][undecided])}")
    opening = {
        "healthy": "Healthy",
        "not healthy": "Not healthy on this text",
        "too little text": TOO_LITTLE if (balance["varies_by"] != "").all() else UNKNOWN_SPREAD,
    }[state]
    return Health(state, worst, dead, unseen, f"{opening}: {'; '.join(part for part in parts if part)}.")


def _faults(balance: pd.DataFrame, entropy: pd.DataFrame | None) -> list[str]:
    """Every fault that is sure, with its layers."""
    routes, faults = balance["load_imbalance"].notna(), []
    silent = balance[~routes & (balance["surely_dead"] > 0)]
    dead = balance[routes & (balance["surely_dead"] > 0)]
    uneven, dropped = balance[_surely_uneven(balance)], balance[_surely_drops(balance)]
    if len(silent):
        faults.append(f"nothing was routed in {layers_named(silent['layer'])}")
    if len(dead):
        experts = count_of(int(dead["surely_dead"].sum()), "dead expert")
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
    return faults


def _surely_uneven(balance: pd.DataFrame) -> pd.Series[bool]:
    return balance["load_low"] > IMBALANCE_LIMIT


def _drops(balance: pd.DataFrame) -> pd.Series[bool]:
    return balance["dropped_fraction"].between(DROPPED_LIMIT, 1.0, inclusive="neither")


def _surely_drops(balance: pd.DataFrame) -> pd.Series[bool]:
    return _drops(balance) & (balance["dropped_low"] > DROPPED_LIMIT)


def _deciding_row(balance: pd.DataFrame, undecided: pd.Series[bool], state: State) -> pd.Series[Any]:
    """The row whose load stands in the verdict: surely the worst, perhaps the worst, or the worst by estimate."""
    column = {"not healthy": "load_low", "too little text": "load_high", "healthy": "load_imbalance"}[state]
    if not balance["varies_by"].all():
        column = "load_imbalance"  # every bound is then the widest
    rows = balance[undecided] if state == "too little text" else balance
    values = rows[column].fillna(0.0)
    if state == "not healthy" and not _surely_uneven(balance).any():
        values = rows["load_imbalance"].fillna(0.0)
    return rows.iloc[int(values.argmax())]


def _load_in_words(row: pd.Series[Any], where: str) -> str:
    """ "worst load 1.5 times the mean on this text (95 % interval 1.3 to 1.9; 2,016 tokens of 32 sources, ...)"."""
    text = count_of(int(row["tokens"]), str(row["unit"]))
    if not row["varies_by"]:
        return f"worst load {number(row['load_imbalance'])} times the mean{where} ({text})"
    text += f" of {count_of(int(row['sources']), str(row['varies_by']))}"
    if pd.notna(row["effective_tokens"]):
        text += f", worth {count_of(max(1, int(row['effective_tokens'])), 'independent one')}"
    return (
        f"worst load {number(row['load_imbalance'])} times the mean{where} "
        f"(95 % interval {number(row['load_low'])} to {number(row['load_high'])}; {text})"
    )
