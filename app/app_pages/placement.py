"""Look: which experts are hot, what would a cache of some do, and on which GPU does each belong?"""

from __future__ import annotations

import streamlit as st

from app import state
from app.components.figure import show_figure
from app.components.one_choice import pick
from app.components.page import answer, header, prose
from app.components.placement_view import pick_fleet, show_cache, show_files
from app.components.routing_text import deep_or_probe, independence_warning, text_caption
from moe_core.figures.placement import coverage_figure, gpu_load_figure
from moe_core.routing.measures.busiest import busiest_experts, busiest_verdict
from moe_core.routing.measures.gpu_load import gpu_load, place_experts, placement_verdict

DOMAIN, ALL = "placement_domain", "all text"
subject, layer = state.subject(), state.selected_layer()
header("Which experts are hot, and where should they go?")
place = st.empty()
measured, text = deep_or_probe(subject)
trace = measured.trace
independence_warning(measured)

domain = None
if len(trace.domains) > 1:
    names = [ALL, *trace.domains]
    chosen = pick("By which text", DOMAIN, names, ALL, width=400)
    domain = None if chosen == ALL else chosen
busiest = measured.get(busiest_experts, domain)
show_figure(coverage_figure(busiest, layer), key="expert_coverage", terms=["coverage", "expert load", "interval"])
st.caption(
    prose(f"Strong: layer {layer}, with its 95 % interval where that is known; grey: the other layers; dashed: even.")
)
text_caption(measured, text)

st.markdown("#### Where should they go?")
fleet = pick_fleet(trace.num_experts)
load = measured.get(gpu_load, fleet, domain)
with place:
    answer(f"{busiest_verdict(busiest)} {placement_verdict(load)}")
figure = gpu_load_figure(load)
show_figure(figure, key="gpu_load", title="", terms=["load of the busiest GPU", "physical expert", "interval"])
show_files(measured.get(place_experts, fleet, domain), trace.layers)

st.markdown("#### How often would a cache do?")
show_cache(measured)
