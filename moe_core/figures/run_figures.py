"""All figures of a run or of a trace, by name: what `main.py plots` writes and what the pages show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from moe_core.errors import RunError, UsageError
from moe_core.figures.associations import (
    coactivation_figure,
    coactivation_test_figure,
    flow_map_figure,
    flow_test_figure,
    persistence_figure,
)
from moe_core.figures.causes import (
    ablation_domains_figure,
    ablation_map_figure,
    correlations_figure,
    importance_figure,
    similarity_figure,
)
from moe_core.figures.changes import diff_figure, movers_figure, saturation_figure
from moe_core.figures.domains import domain_map, domain_nmi_by_layer
from moe_core.figures.experts import dropped_figure, expert_domains_figure, expert_history_figure
from moe_core.figures.figure import Figure, figure_bytes, save_figure
from moe_core.figures.load import expert_load_map, expert_load_over_time, router_entropy_by_layer
from moe_core.figures.sankey import flow_sankey_figure
from moe_core.figures.tokens import token_choices, token_layer_map, token_path, visible
from moe_core.figures.training import loss_curves
from moe_core.figures.training import nats as as_nats
from moe_core.figures.vocabulary import vocabulary_figure, vocabulary_test_figure
from moe_core.routing import RoutingTrace, baselines, metrics, verdicts
from moe_core.routing.baselines import CLEARLY, SLIGHTLY
from moe_core.routing.verdicts import number, percent

if TYPE_CHECKING:
    from moe_core.runs import RunFolder

__all__ = [
    "Figure",
    "ablation_domains_figure",
    "ablation_map_figure",
    "coactivation_figure",
    "coactivation_test_figure",
    "correlations_figure",
    "diff_figure",
    "domain_map_figure",
    "domain_nmi_figure",
    "dropped_figure",
    "entropy_figure",
    "expert_domains_figure",
    "expert_history_figure",
    "figure_bytes",
    "figures_of_run",
    "figures_of_trace",
    "flow_map_figure",
    "flow_sankey_figure",
    "flow_test_figure",
    "importance_figure",
    "load_map_figure",
    "load_over_time_figure",
    "loads_over_time",
    "loss_figure",
    "movers_figure",
    "persistence_figure",
    "saturation_figure",
    "save_figure",
    "similarity_figure",
    "token_map_figure",
    "token_path_figure",
    "vocabulary_figure",
    "vocabulary_test_figure",
]

MAX_LAYER_FIGURES = 8
"""figures_of_run and figures_of_trace draw figures of single layers for at most this many layers, evenly spaced."""


def figures_of_trace(trace: RoutingTrace) -> dict[str, Figure]:
    """Load, entropy and, where the trace has several domains, the domain figures. Keys are the figures' names."""
    figures = [
        load_map_figure(metrics.expert_load(trace), metrics.load_balance(trace)),
        entropy_figure(metrics.router_entropy(trace)),
    ]
    if len(set(trace.domain_ids.tolist())) > 1:
        nmi, specialization = baselines.domain_nmi(trace), metrics.domain_specialization(trace)
        figures.append(domain_nmi_figure(nmi))
        figures += [domain_map_figure(specialization, nmi, layer) for layer in spaced(trace.layers)]
    else:
        figures.append(token_map_figure(trace))
    return {figure.name: figure for figure in figures}


def figures_of_run(run: RunFolder) -> dict[str, Figure]:
    """The figures of training (loss, load over time) and those of the latest probe set's routing.

    Raises RunError when the run has measured nothing yet.
    """
    figures: dict[str, Figure] = {}
    losses = loss_figure(run.metrics("train"), run.metrics("evaluation"), run.metrics("baseline"))
    if losses is not None:
        figures[losses.name] = losses
    loads = loads_over_time(run.metrics("load"))
    for layer in spaced(sorted(set(loads["layer"]))):
        figure = load_over_time_figure(loads, int(layer))
        figures[figure.name] = figure
    steps = run.probe_steps()
    if steps:
        figures |= figures_of_trace(RoutingTrace.load(run.probe_path(steps[-1])))
    if not figures:
        raise RunError(
            f"run {run.name!r} has measured nothing yet; wait for its first evaluation, or resume it with "
            f"`python main.py --run {run.name} --resume`"
        )
    return figures


def load_map_figure(load: pd.DataFrame, balance: pd.DataFrame) -> Figure:
    """Is the work shared evenly? Frames of metrics.expert_load and metrics.load_balance."""
    return Figure(
        "expert_load_map", "Load of every expert", "Is the work shared evenly among the experts?",
        verdicts.routing_health(balance), expert_load_map(load), load,
    )  # fmt: skip


def entropy_figure(entropy: pd.DataFrame) -> Figure:
    """How sure is the router? Frame of metrics.router_entropy."""
    low, high = (percent(float(value)) for value in (entropy["router_entropy"].min(), entropy["router_entropy"].max()))
    size = f"is {low} of the maximum" if low == high else f"is {low} to {high} of the maximum"
    if (entropy["basis"] == "logits").all():
        verdict = f"Router entropy {size}, where all experts are alike."
    else:
        verdict = (
            f"Router entropy {size}, counted over the chosen experts only, as the others' logits were not kept: do not "
            "compare it with an entropy over all experts."
        )
    return Figure(
        "router_entropy", "How sure the router is", "How decided is the router about each token?", verdict,
        router_entropy_by_layer(entropy), entropy,
    )  # fmt: skip


def domain_nmi_figure(nmi: pd.DataFrame) -> Figure:
    """Do experts know the domain? Frame of baselines.domain_nmi."""
    return Figure(
        "domain_nmi", "What experts know of domains", "Does the choice of expert tell the domain of a token?",
        verdicts.domain_verdict(nmi), domain_nmi_by_layer(nmi), nmi,
    )  # fmt: skip


def domain_map_figure(specialization: pd.DataFrame, nmi: pd.DataFrame, layer: int) -> Figure:
    """Which experts prefer which domain in one layer? Frames of metrics.domain_specialization and baselines.domain_nmi.

    Where the layer as a whole is not distinguishable from chance, no cell of it is called a preference.
    """
    frame = specialization[specialization["layer"] == layer].reset_index(drop=True)
    row = nmi[nmi["layer"] == layer]
    verdict = verdicts.domain_verdict(row)
    if row["verdict"].isin([CLEARLY, SLIGHTLY]).all():
        verdict = f"{verdict} {verdicts.strongest_expert(frame)}"
    return Figure(
        f"domain_map_layer_{layer}", f"Experts and domains in layer {layer}",
        "Which experts prefer which kind of text?", verdict, domain_map(specialization, layer), frame,
    )  # fmt: skip


def load_over_time_figure(loads: pd.DataFrame, layer: int) -> Figure:
    """How has the load of one layer's experts changed? Frame of loads_over_time."""
    frame = loads[loads["layer"] == layer].reset_index(drop=True)
    last = frame[frame["step"] == frame["step"].max()]
    top = last.iloc[int(last["share"].argmax())]
    verdict = (
        f"At step {top['step']:,.0f} expert {top['expert']:.0f} of layer {layer} takes the most, "
        f"{percent(top['share'])} of the choices, {number(top['share'] * len(last))} times its even share."
    )
    return Figure(
        f"expert_load_over_time_layer_{layer}", f"Load of layer {layer}'s experts over time",
        "How does the sharing of work change while training?", verdict, expert_load_over_time(loads, layer), frame,
    )  # fmt: skip


def loss_figure(train: pd.DataFrame, evaluations: pd.DataFrame, baselines: pd.DataFrame) -> Figure | None:
    """Does the model learn? Frames of the run's metrics of kind train, evaluation and baseline; None if both first
    ones are empty."""
    parts = []
    if len(train):
        parts.append(pd.DataFrame({"step": train["step"], "series": "train", "nats": train["loss"]}))
    if len(evaluations):
        parts.append(
            evaluations.rename(columns={"split": "series", "nats_per_token": "nats"})[["step", "series", "nats"]]
        )
    if not parts:
        return None
    curves = pd.concat(parts, ignore_index=True).astype({"nats": float})
    unigram = float(baselines["unigram_nats"].iloc[-1].get("unseen", float("nan"))) if len(baselines) else float("nan")
    unseen = curves[curves["series"] == "unseen"]
    verdict = "The first evaluation on held-out text is still to come."
    if len(unseen):
        nats = float(unseen.sort_values("step", kind="stable")["nats"].iloc[-1])
        gain = f", {as_nats(unigram - nats)} under the unigram baseline" if unigram == unigram else ""
        verdict = f"Loss on unseen text is {as_nats(nats)} nats per token{gain}; lower is better."
    chart = loss_curves(curves, unigram if unigram == unigram else None)
    return Figure(
        "loss", "Loss by training step", "Does the model learn, also for unseen text?", verdict, chart, curves
    )


def token_map_figure(trace: RoutingTrace, start: int = 0) -> Figure:
    """Where do the tokens of a text go? A window of tokens through all layers."""
    choices = token_choices(trace, start)
    first, last = int(choices["token"].min()), int(choices["token"].max())
    shown = choices[choices["slot"] == 0]
    stays = shown.groupby("token")["expert"].nunique().eq(1).mean() if trace.num_layers > 1 else float("nan")
    verdict = f"Tokens {first} to {last} of {trace.num_tokens:,}: first expert in each of {trace.num_layers} layer(s)."
    if stays == stays:
        verdict += f" {percent(float(stays))} of them keep one expert number all the way (the numbers are unrelated)."
    return Figure(
        "token_layer_map", "Tokens through the layers", "Which expert does each token go to, layer by layer?", verdict,
        token_layer_map(choices), choices,
    )  # fmt: skip


def token_path_figure(trace: RoutingTrace, token: int) -> Figure:
    """Where does one token go? Its k experts in every layer. Raises UsageError for a token outside the trace."""
    if not 0 <= token < trace.num_tokens:
        raise UsageError(f"token {token} is not in the trace; expected 0 to {trace.num_tokens - 1}")
    choices = token_choices(trace, token, 1)
    path = " → ".join(str(expert) for expert in choices[choices["slot"] == 0]["expert"])
    verdict = f"Token {token} “{visible(trace.token_text(token))}” goes to expert {path or 'none'}, layer by layer."
    return Figure(
        "token_path", f"Path of token {token}", "Which experts does this token go through?", verdict,
        token_path(choices), choices,
    )  # fmt: skip


def loads_over_time(records: pd.DataFrame) -> pd.DataFrame:
    """The run's metrics of kind load as one row per expert: step, layer, expert, share (0..1)."""
    columns = ["step", "layer", "expert", "share"]
    if records.empty:
        return pd.DataFrame({name: pd.Series(dtype=float) for name in columns})
    long = records[["step", "layer", "expert_load"]].explode("expert_load", ignore_index=True)
    long["expert"] = long.groupby(["step", "layer"]).cumcount()
    return long.rename(columns={"expert_load": "share"}).astype({"share": float})[columns]


def spaced(layers: list[int]) -> list[int]:
    """At most MAX_LAYER_FIGURES of `layers`, evenly spaced, the first and the last among them."""
    if len(layers) <= MAX_LAYER_FIGURES:
        return list(layers)
    last = len(layers) - 1
    return [layers[round(i * last / (MAX_LAYER_FIGURES - 1))] for i in range(MAX_LAYER_FIGURES)]
