"""One expert in one sentence, and the one that leads in a layer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.measures.domains import preferred
from moe_core.routing.measures.persistence import first_choice
from moe_core.routing.measures.vocabulary import VOCABULARY_FINDING
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.words import count_of, number, parts_of_all, percent


def expert_sentence(
    layer: int,
    expert: int,
    *,
    load: pd.DataFrame | None = None,
    cells: pd.DataFrame | None = None,
    tokens: pd.DataFrame | None = None,
    vocabulary: pd.DataFrame | None = None,
    effects: pd.DataFrame | None = None,
    name: str = "",
) -> str:
    """What this expert does, from whatever is known of it.

    `load`: metrics.expert_load; `cells`: baselines.domain_cells; `tokens`: metrics.token_experts of this expert;
    `vocabulary`: baselines.vocabulary: where it finds nothing in this layer no token is named; `effects`: evaluation's
    ablation_map; `name`: what somebody called it. Frames may hold other experts' rows too.
    Example: "Expert 3 of layer 1 takes 18 % of the layer's choices (13 % when even); specialises in legal text (2.1
    times its even share); ..."
    """
    parts = []
    if load is not None and len(own := _rows_of_expert(load, layer, expert)):
        even = 1 / max(int((load["layer"] == layer).sum()), 1)
        parts.append(f"takes {percent(float(own['share'].iloc[0]))} of the layer's choices ({percent(even)} when even)")
    if cells is not None and len(own := _rows_of_expert(cells, layer, expert)):
        certain = preferred(own)
        if len(certain):
            best = certain.iloc[0]
            parts.append(f"specialises in {best['domain']} text ({number(best['lift'])} times its even share)")
        elif "p_value" in own and own["p_value"].isna().all():
            parts.append("whether it prefers a domain cannot be tested on this text")
        else:
            parts.append("prefers no domain distinguishably from chance")
    verdicts = [] if vocabulary is None else vocabulary.loc[vocabulary["layer"] == layer, "verdict"].tolist()
    if any(verdict == CHANCE for verdict in verdicts):
        parts.append("takes no token distinguishably from chance")
    elif any(verdict not in VOCABULARY_FINDING.both for verdict in verdicts):
        parts.append("whether it follows tokens cannot be tested on this text")
    elif tokens is not None and len(tokens):
        best = tokens.iloc[0]
        parts.append(
            f"takes {percent(float(best['share']))} of the token {str(best['text'])!r} "
            f"({number(best['lift'])} times its usual share)"
        )
    if effects is not None and len(own := _rows_of_expert(effects[effects["domain"] == "all"], layer, expert)):
        row = own.iloc[0]
        if pd.isna(row["low"]):
            parts.append("whether switching it off changes the loss cannot be tested on text of one source")
        elif bool(row["uncertain"]):
            parts.append("switching it off changes the loss not distinguishably from chance")
        else:
            change = "costs" if row["delta_nats"] > 0 else "gains"
            parts.append(
                f"switching it off {change} {number(abs(row['delta_nats']))} nats per token "
                f"(95 % interval {number(row['low'])} to {number(row['high'])})"
            )
    named = f", “{name}”," if name else ""
    return f"Expert {expert}{named} of layer {layer} {'; '.join(parts) if parts else 'has not been measured yet'}."


def layer_verdict(trace: RoutingTrace, layer: int) -> str:
    """Which expert leads in a layer, beside its even share: from the first choices of all tokens that have one.

    Where a token chooses several, the expert's share of all choices stands beside it.
    """
    row = trace.layer_position(layer)
    first = first_choice(trace, row)
    counts = np.bincount(first[first >= 0], minlength=trace.num_experts)
    tokens = int(counts.sum())
    if not tokens:
        return f"Layer {layer}: no token is routed."
    leader = int(counts.argmax())
    every_TK = trace.router_indices[row]
    every = parts_of_all(np.bincount(every_TK[every_TK >= 0], minlength=trace.num_experts).tolist())[leader]
    and_all = f" and takes {every} of all choices" if trace.top_k > 1 else ""
    return (
        f"Layer {layer}: expert {leader} is the first choice of {parts_of_all(counts.tolist())[leader]} of "
        f"{count_of(tokens, 'token')}{and_all} (even share {percent(1 / trace.num_experts)}); "
        f"{int((counts > 0).sum())} of {trace.num_experts} experts are somebody's first choice."
    )


def _rows_of_expert(frame: pd.DataFrame, layer: int, expert: int) -> pd.DataFrame:
    return frame[(frame["layer"] == layer) & (frame["expert"] == expert)]
