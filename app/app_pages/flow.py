"""Look: how do tokens travel from layer to layer, and which experts work together?"""

from __future__ import annotations

import streamlit as st

from app import state
from app.components.expert_streams import show_expert_flow, show_streams
from app.components.figure import show_figure
from app.components.goto import go_to_cell
from app.components.page import answer, header
from app.components.routing_text import (
    Step,
    deep_or_probe,
    independence_warning,
    layers_around,
    measure_all,
    text_caption,
)
from moe_core.figures.associations import coactivation_figure, flow_map_figure
from moe_core.figures.layout import window_around
from moe_core.figures.measures import chance_figure
from moe_core.figures.sankey import MAX_SANKEY_LAYERS, flow_sankey_figure, streams_drawn
from moe_core.routing.measured import Measured
from moe_core.routing.measures.capability import TWO_EXPERTS, TWO_LAYERS, capability
from moe_core.routing.measures.coactivation import (
    coactivation,
    coactivation_pairs,
    coactivation_test,
    pairs_as_counted,
)
from moe_core.routing.measures.flow import flow_verdict, layer_flow, layer_flow_test
from moe_core.routing.measures.persistence import persistence_test
from moe_core.routing.measures.registry import COACTIVATION, LAYER_FLOW, PERSISTENCE

NEXT_LAYER, ONE_EXPERT, TOGETHER, NEXT_TOKEN = "Layer to layer", "One expert", "Chosen together", "Token to token"
VIEWS = {NEXT_LAYER: LAYER_FLOW, ONE_EXPERT: LAYER_FLOW, TOGETHER: COACTIVATION, NEXT_TOKEN: PERSISTENCE}
SHOWN = "flow_shown"


def sankey(around: Measured) -> None:
    """The main picture: bands between the layers around the chosen one."""
    window = window_around(around.trace.layers, layer, MAX_SANKEY_LAYERS)
    flow, test = around.get(layer_flow), around.get(layer_flow_test)
    figure = around.keep(("sankey", *window), lambda: flow_sankey_figure(flow, test, window))
    show_figure(figure, key="flow_sankey", title="", terms=["cross-layer flow", "expert", "layer"])
    notes = [streams_drawn(figure)]
    if len(window) < len(run_layers):
        notes.append(
            f"Layers {window[0]} to {window[-1]} of {len(run_layers)}: those around the layer in the side bar."
        )
    if any(notes):
        st.caption(" ".join(note for note in notes if note))
    show_streams(flow[flow["layer"].isin(window[:-1])], test)


def next_layer(around: Measured) -> None:
    """Where the tokens of each expert go in the following layer."""
    layers = around.trace.layers
    start = layer if layer != layers[-1] else layers[-2]
    flow, test = around.get(layer_flow), around.get(layer_flow_test)
    figure = around.keep(("flow map", start), lambda: flow_map_figure(flow, test, start))
    note = "" if start == layer else f"Layer {layer} is the last: this is how tokens come into it. "
    answer(f"{note}{figure.verdict}")
    show_figure(figure, key=figure.name, title="", on_cell=go_to_cell, terms=["cross-layer flow", "lift"])
    show_figure(
        around.keep(("flow test",), lambda: chance_figure(LAYER_FLOW, test)),
        key="flow",
        terms=["NMI", "null of vocabulary and flow", "p-value", "effect", "interval"],
    )


def one_expert(around: Measured) -> None:
    """Where the tokens of one expert come from, and where they go."""
    show_expert_flow(measured, around, layer)


def together(around: Measured) -> None:
    """Which experts of the layer the same tokens choose."""
    told = capability(COACTIVATION, around.trace)
    if told.answer == "no":
        st.info("Every token passes one expert of a layer only, so none are chosen together.", icon=":material/info:")
        return
    if told.answer == "yes":
        measures: list[Step] = [(coactivation, ()), (coactivation_test, ()), (coactivation_pairs, ())]
        measure_all(around, measures, "Choosing experts at random, to compare with")
        test, pairs = around.get(coactivation_test), around.get(coactivation_pairs)
    else:
        test, pairs = None, around.get(pairs_as_counted)
    found = around.get(coactivation)
    figure = around.keep(("coactivation", layer), lambda: coactivation_figure(found, test, layer, pairs))
    answer(f"Layer {layer}: {figure.verdict}")
    show_figure(
        figure,
        key=figure.name,
        title="",
        on_cell=go_to_cell,
        terms=["co-activation", "lift over chance", "co-activation strength", "null of co-activation"],
    )


def next_token(around: Measured) -> None:
    """Whether a token keeps the expert of the one before it."""
    measure_all(around, [(persistence_test, ())], "Shuffling the tokens of each document, to compare with")
    figure = around.keep(("persistence",), lambda: chance_figure(PERSISTENCE, around.get(persistence_test)))
    answer(figure.verdict)
    show_figure(figure, key=figure.name, title="", terms=["persistence", "null of persistence", "p-value", "interval"])


subject, layer = state.subject(), state.selected_layer()
head = st.empty()
with head:
    header("How do tokens travel through the layers?")
measured, text = deep_or_probe(subject)
independence_warning(measured)
run_layers = measured.trace.layers
around = measured.part(layers_around(run_layers, layer, measured.trace.num_experts))

told = {view: capability(measure, measured.trace) for view, measure in VIEWS.items()}
views = [view for view, one in told.items() if one.answer != "no" or one.needs == TWO_EXPERTS]
if NEXT_LAYER in views:
    measure_all(around, [(layer_flow, ()), (layer_flow_test, ())], "Following tokens through the layers")
    said = flow_verdict(around.get(layer_flow_test))
elif told[NEXT_LAYER].needs == TWO_LAYERS:
    said = f"Through one only: layer {layer} has the only experts."
else:
    said = f"That takes {told[NEXT_LAYER].needs}. What is counted is which experts work together."
with head.container():
    header("How do tokens travel through the layers?", said)
if NEXT_LAYER in views:
    sankey(around)
text_caption(measured, text)

what = views[0]
if len(views) > 1:
    state.preset(SHOWN, views, views[0])
    what = state.present(st.segmented_control("Look closer", views, required=True, key=SHOWN, bind="query-params"))
{NEXT_LAYER: next_layer, ONE_EXPERT: one_expert, TOGETHER: together, NEXT_TOKEN: next_token}[what](around)
