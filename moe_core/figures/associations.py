"""Figures of what goes together: experts chosen together, experts of consecutive layers, neighbouring tokens."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from moe_core.errors import UsageError
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import COLUMN_AXIS, MAX_COLUMNS, ROW_AXIS
from moe_core.figures.maps import lift_map
from moe_core.routing.measures.coactivation import coactivation_verdict
from moe_core.routing.measures.flow import FEW_EXPECTED, flow_found, flow_verdict, strongest_flow
from moe_core.words import number, percent

MAX_UNSORTED = 20
"""Up to so many experts stand in the order of their numbers; more are ordered by who goes with whom."""


def coactivation_figure(
    coactivation: pd.DataFrame, test: pd.DataFrame | None, layer: int, pairs: pd.DataFrame
) -> Figure:
    """Which experts of a layer are chosen together? Frames of metrics.coactivation, baselines.coactivation and
    baselines.coactivation_pairs.

    A cell is the pair's tokens over the mean of load-matched random choices; a pair that does not differ surely
    (Benjamini-Hochberg over all pairs) is faded. Counts of pairs have no `test`: `pairs` are then those of
    pairs_as_counted, over even routing, all of them faded.
    """
    frame = _of_layer(coactivation, layer, "pairs of experts")
    every = _held_against(frame, pairs)
    data = every.assign(expert=every["expert_i"])
    data, note = _strongest(data, "expert_i", "expert_j", square=True, as_counted=test is None)
    order = _by_company(data)
    chance = "even routing has it" if test is None else "chance"
    data["sentence"] = [
        f"Layer {layer}: experts {row.expert_i} and {row.expert_j} are chosen together by {row.tokens:,.0f} tokens, "
        + (f"{number(row.lift)} times as often as {chance}" if row.lift == row.lift else "where chance expects none")
        + (": uncertain." if row.uncertain else ".")
        for row in rows(data)
    ]
    chart = lift_map(
        _map_columns(data, ["expert_i", "expert_j"]),
        x=alt.X("expert_j:O", title=f"expert of layer {layer}{note}", axis=COLUMN_AXIS, sort=order),
        y=alt.Y("expert_i:O", title="expert", axis=ROW_AXIS, sort=order),
        title=f"times as often as {'even routing' if test is None else 'chance'}",
    )
    verdict = _as_counted(every) if test is None else coactivation_verdict(test[test["layer"] == layer], pairs)
    return Figure(
        f"coactivation_layer_{layer}", f"Experts chosen together in layer {layer}",
        "Which experts work as a team on the same token?", verdict, chart, frame.reset_index(drop=True),
    )  # fmt: skip


def flow_map_figure(flow: pd.DataFrame, test: pd.DataFrame, layer: int) -> Figure:
    """Where do the tokens of each expert go in the next layer? Frames of metrics.layer_flow and baselines.layer_flow.

    A cell is P(next expert | expert) over the next expert's own share, chance 1; cells of which chance expects fewer
    than FEW_EXPECTED tokens are faded, and all of them where the layers have nothing to do with each other.
    """
    frame = _of_layer(flow, layer, "flow to a next layer")
    following = int(frame["next_layer"].iloc[0])
    share = frame["probability"] / frame["lift"].where(frame["lift"] > 0)
    share = share.groupby(frame["next_expert"]).transform("max")
    expected = frame.groupby("expert")["tokens"].transform("sum") * share
    found = flow_found(test[test["layer"] == layer])
    data = frame.assign(uncertain=~(expected >= FEW_EXPECTED) | (not found))
    data, note = _strongest(data, "expert", "next_expert", square=False)
    data["sentence"] = [
        f"{percent(row.probability)} of the tokens of expert {row.expert} (layer {layer}) go to expert "
        f"{row.next_expert} (layer {following}), {number(row.lift)} times its share ({row.tokens:,.0f} choices)"
        + ("." if not row.uncertain else ": too few to tell." if found else ": no more than chance may give.")
        for row in rows(data)
    ]
    chart = lift_map(
        _map_columns(data, ["expert", "next_expert"]),
        x=alt.X("next_expert:O", title=f"expert of layer {following}{note}", axis=COLUMN_AXIS, sort=_by_source(data)),
        y=alt.Y("expert:O", title=f"expert of layer {layer}", axis=ROW_AXIS),
    )
    verdict = flow_verdict(test[test["layer"] == layer])
    if found:
        verdict = f"{verdict} {strongest_flow(frame)}"
    return Figure(
        f"flow_map_layer_{layer}", f"From layer {layer} to layer {following}",
        "Where do the tokens of each expert go next?", verdict, chart, frame.reset_index(drop=True),
    )  # fmt: skip


def _of_layer(frame: pd.DataFrame, layer: int, what: str) -> pd.DataFrame:
    own = frame[frame["layer"] == layer]
    if own.empty:
        known = sorted({int(value) for value in frame["layer"]})
        raise UsageError(f"layer {layer} has no {what}; expected one of {known}")
    return own


def _held_against(frame: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    columns = ["layer", "expert_i", "expert_j", "lift_over_chance", "uncertain"]
    both = pd.concat([pairs[columns], pairs[columns].rename(columns={"expert_i": "expert_j", "expert_j": "expert_i"})])
    joined = frame.drop(columns="lift").merge(both, on=columns[:3], how="left")
    joined["uncertain"] = joined["uncertain"].fillna(True).astype(bool)
    return joined.rename(columns={"lift_over_chance": "lift"})


def _as_counted(data: pd.DataFrame) -> str:
    """What counts of pairs tell: the most frequent pair, and that it is no finding."""
    untold = "Whether that is more than chance cannot be told, as pairs are not counted by source."
    known = data[data["lift"].notna()]
    if known.empty:
        return f"No pair of experts was chosen together. {untold}"
    most = known.iloc[int(known["lift"].argmax())]
    return (
        f"As counted, experts {int(most['expert_i'])} and {int(most['expert_j'])} are chosen together most for their "
        f"load, {number(most['lift'])} times as often as by even routing. {untold}"
    )


def _strongest(
    data: pd.DataFrame, row: str, column: str, *, square: bool, as_counted: bool = False
) -> tuple[pd.DataFrame, str]:
    """At most MAX_COLUMNS experts, those with the strongest certain lift either way; a note if any are left out.

    The first ones where nothing is certain: then none has stronger ties than another. `as_counted`: nothing was tested,
    and those with the largest lift are drawn.
    """
    experts = data[column].nunique()
    if max(experts, data[row].nunique()) <= MAX_COLUMNS:
        return data.copy(), ""
    weight = np.log2(data["lift"].clip(1 / 16, 16)).abs().where(~data["uncertain"], 0.0).fillna(0.0)
    if as_counted:
        weight = data["lift"].fillna(0.0)
    strength = [weight.groupby(data[name]).max().sort_values(ascending=False, kind="stable") for name in (row, column)]
    kept_rows, kept_columns = (set(values.index[:MAX_COLUMNS]) for values in strength)
    kept = data[data[row].isin(kept_rows) & data[column].isin(kept_rows if square else kept_columns)]
    ties = "most frequent pairs" if as_counted else "strongest ties"
    why = f", those with the {ties}" if weight.any() else ", the first ones"
    return kept.copy(), f" ({MAX_COLUMNS} of {experts}{why})"


def _by_company(data: pd.DataFrame) -> list[int]:
    """Experts in the order of a hierarchical clustering of who is chosen with whom, so that teams stand together."""
    table = data.pivot(index="expert_i", columns="expert_j", values="lift")
    experts = [int(expert) for expert in table.index]
    if len(experts) <= MAX_UNSORTED:
        return experts
    from scipy.cluster.hierarchy import leaves_list, linkage

    apart = -np.log2(table.reindex(columns=table.index).fillna(1.0).clip(1 / 16, 16).to_numpy())
    upper = np.triu_indices(len(experts), 1)
    distance = (apart + apart.T)[upper] / 2
    tree = linkage(distance - distance.min(), method="average", optimal_ordering=True)
    return [experts[i] for i in leaves_list(tree)]


def _by_source(data: pd.DataFrame) -> list[int]:
    """Columns in the order of the row they lean to most, when there are too many to look up by number."""
    columns = sorted(int(value) for value in data["next_expert"].unique())
    if len(columns) <= MAX_UNSORTED:
        return columns
    best = data.loc[data.assign(lift=data["lift"].fillna(-1.0)).groupby("next_expert")["lift"].idxmax()]
    return [int(value) for value in best.sort_values(["expert", "next_expert"])["next_expert"]]


def _map_columns(data: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Only what the map needs: thousands of cells travel to the browser."""
    return data[list(dict.fromkeys([*keys, "layer", "expert", "lift", "uncertain", "sentence"]))].reset_index(drop=True)
