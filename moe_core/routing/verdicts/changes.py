"""What changed: over training, between two traces, and which experts moved."""

from __future__ import annotations

import pandas as pd

from moe_core.routing.verdicts.words import layers_of, number, percent, points

SETTLED = 0.8
"""Part of the way from chance to identity from which routing counts as settled: its experts can be given names."""


def saturation_verdict(saturation: pd.DataFrame) -> str:
    """Since when is the routing what it is? From metrics.saturation, all layers or the rows of one."""
    frame = saturation.assign(
        done=(saturation["top_k"] - saturation["chance_top_k"]) / (1 - saturation["chance_top_k"]).clip(lower=1e-9)
    )
    steps = sorted(int(step) for step in frame["step"].unique())
    if len(steps) < 2:
        return "One snapshot only: when the routing settled cannot be told."
    last = steps[-1]
    settled: dict[int, int] = {}
    for layer in frame["layer"].unique():
        ordered = frame[frame["layer"] == layer].sort_values("step")
        unsettled = ordered[ordered["done"] < SETTLED]["step"]
        after = [step for step in ordered["step"] if unsettled.empty or step > unsettled.max()]
        settled[int(layer)] = int(after[0])
    slowest = max(settled, key=lambda layer: settled[layer])
    start = frame[frame["step"] == steps[0]]
    begin = (
        f"at step {steps[0]:,} a token had {percent(start['top_k'].mean())} of its final experts "
        f"({percent(start['chance_top_k'].mean())} by chance)"
    )
    if settled[slowest] == last:
        late = frame[frame["layer"].isin([layer for layer, step in settled.items() if step == last])]
        return f"Still changing at the last snapshot, step {last:,}, in {layers_of(late)}; {begin}."
    where = f", layer {slowest} last" if len(set(settled.values())) > 1 else ""
    return (
        f"Settled from step {settled[slowest]:,} of {last:,}{where}: from there on {percent(SETTLED)} of the way from "
        f"chance to the final choice is made; {begin}."
    )


def diff_verdict(diff: pd.DataFrame) -> str:
    """How differently do two traces route the same tokens? From metrics.routing_diff, all layers or the rows of one."""
    tokens = int(diff["tokens"].max())
    if not (diff["flip_rate"] > 0).any():
        return f"The same: not one of {tokens:,} tokens chooses other experts in any layer."
    most = diff.iloc[int(diff["flip_rate"].argmax())]
    where = f"layer {int(most['layer'])} most, " if len(diff) > 1 else ""
    interval = "" if pd.isna(most["low"]) else f" (95 % interval {percent(most['low'])} to {percent(most['high'])})"
    text = (
        f"Different: {where}{percent(most['flip_rate'])} of {tokens:,} tokens choose other experts{interval}, "
        f"{percent(most['first_flip_rate'])} another first one"
    )
    if pd.notna(most["margin_flipped"]) and pd.notna(most["margin_kept"]):
        text += (
            f"; the router's margin was {number(most['margin_flipped'])} where the choice changed, "
            f"{number(most['margin_kept'])} where it stayed"
        )
    return f"{text}."


def movers_verdict(movers: pd.DataFrame) -> str:
    """Which expert changed its share most? From metrics.routing_movers, all rows or those of a layer or domain."""
    certain = movers[~movers["uncertain"].astype(bool)]
    if certain.empty:
        return "Not distinguishable from chance: no expert's share of any domain surely changed."
    best = certain.iloc[int(certain["change"].abs().argmax())]
    whose = "all" if best["domain"] == "all" else str(best["domain"])
    return (
        f"{len(certain):,} of {len(movers):,} shares surely changed. Most: expert {int(best['expert'])} of layer "
        f"{int(best['layer'])}, from {percent(best['share_a'])} to {percent(best['share_b'])} of {whose} tokens "
        f"({points(best['change'])}, 95 % interval {points(best['low'])} to {points(best['high'])})."
    )
