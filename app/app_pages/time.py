"""Follow: when did each expert become what it is? The routing at every snapshot of training."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import loaders, state
from app.components.counted_film import film_of_counts
from app.components.figure import show_figure
from app.components.map_view import map_places, pick_map_view
from app.components.page import answer, errors_as_boxes, header, show_notes
from app.components.routing_text import first_routing
from app.components.snapshots import snapshot_payload, watch_snapshots
from app.components.token_view import token_view
from app.components.training_curves import valid_code_figure
from app.components.watched_run import counted_film, counted_load_figure
from moe_core.figures.changes import saturation_figure
from moe_core.figures.domains import domain_map_figure
from moe_core.figures.formation import formation_figure
from moe_core.figures.load import load_map_figure
from moe_core.inference.subjects import RoutingFile
from moe_core.routing.measures.domains import domain_cells, domain_nmi_test
from moe_core.routing.measures.formation import formation
from moe_core.routing.measures.load import expert_load, load_balance
from moe_core.routing.measures.saturation import saturation
from moe_core.runs import RunFolder

TEXT, DOMAINS, LOAD = SHOWS = "Text", "Domains", "Load"
SHOWN, VIEW, PLAYING = "time_shown", "time_view", "time_playing"
FRAME_SECONDS = 1.2


def next_frame(steps: list[int]) -> None:
    """The button that plays the film and, while it plays, the next snapshot; it stops at the last."""
    playing = st.session_state.get(PLAYING, False)
    # A link's step is in the URL only, until the slider is drawn.
    place = steps.index(int(st.session_state.get(state.STEP, st.query_params.get(state.STEP, steps[-1]))))
    if playing and place < len(steps) - 1:
        st.session_state[state.STEP] = steps[place + 1]
    icon = ":material/stop:" if playing else ":material/play_arrow:"
    pressed = st.button("Stop" if playing else "Play", icon=icon, key="time_play", width="content")
    if pressed and not playing and place == len(steps) - 1:
        st.session_state[state.STEP] = steps[0]
    if pressed or (playing and place >= len(steps) - 2):
        st.session_state[PLAYING] = pressed and not playing
        st.rerun()  # the whole page: how often a fragment runs is fixed when it is made


def film(run: RunFolder, steps: list[int], layer: int) -> None:
    """One snapshot, chosen by the slider or, while it plays, one after the other. A fragment: it reruns by itself."""
    with errors_as_boxes():
        state.preset(state.STEP, steps, steps[-1], in_link=False)
        step = steps[-1]
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            if len(steps) > 1:
                next_frame(steps)
                step = st.select_slider("Training step", steps, steps[-1], key=state.STEP, bind="query-params",
                                        width="stretch")  # fmt: skip
            state.preset(SHOWN, SHOWS, TEXT)
            what = state.present(st.segmented_control("Show", SHOWS, required=True, key=SHOWN, bind="query-params"))
        snapshot = loaders.probe(run, step)
        if what == TEXT:
            payload = snapshot_payload(snapshot.tokens, series=f"{run.path}")
            choice = token_view(payload, layer=layer, key=VIEW, on_layer=partial(state.follow_layer, VIEW))
            if choice.layer is not None and choice.layer != layer:
                st.rerun()
        elif what == DOMAINS:
            view = pick_map_view(snapshot, layers=False)
            cells, nmi = snapshot.get(domain_cells), snapshot.get(domain_nmi_test)
            figure = domain_map_figure(cells, nmi, layer, view, map_places(snapshot, view))
            answer(f"Step {step:,}, layer {layer}: {figure.verdict}")
            if len(snapshot.trace.domains) > 1:
                show_figure(figure, key=figure.name, title="", terms=["domain", "lift", "interval"])
        else:
            view = pick_map_view(snapshot)
            load, balance = snapshot.get(expert_load), snapshot.get(load_balance)
            figure = load_map_figure(load, balance, view, map_places(snapshot, view))
            answer(f"Step {step:,}: {figure.verdict}")
            show_figure(figure, key="expert_load", title="", terms=["expert load", "lift", "load imbalance"])


subject, layer = state.subject(), state.selected_layer()
if isinstance(subject, RoutingFile):
    film_of_counts(*first_routing(subject), layer)
    st.stop()
run = state.selected_run()
if run.is_watched() and not run.probe_steps():
    counted_film(run, layer)
    st.stop()
loaders.probe_step(run)  # says what to do before the first
steps = run.probe_steps()
forming = loaders.over_time(run, formation)
latest = loaders.probe(run)  # keeps the figures until there is a newer snapshot
figure = latest.keep(("formation", layer, *steps), lambda: formation_figure(forming, layer))
header("When did each expert become what it is?", figure.verdict)
if any(item.is_live and item.name == run.name for item in loaders.runs()):
    watch_snapshots(run.name, len(steps))
    st.caption(
        "The run is being trained: what it is now need not be what it will be. New snapshots appear by themselves."
    )
if len(steps) > 1:
    show_figure(figure, key=figure.name, title="", terms=["formation", "expert", "layer"])

st.markdown("#### What the experts took at each step")
playing = st.session_state.get(PLAYING, False) and len(steps) > 1
st.fragment(run_every=FRAME_SECONDS if playing else None)(film)(run, steps, layer)

if len(steps) > 1:
    settling = loaders.over_time(run, saturation)
    settled = latest.keep(("saturation", *steps), lambda: saturation_figure(settling))
    show_figure(settled, key=settled.name, title="Since when do all layers route as they do now?", terms=["saturation"])
    answer(settled.verdict)
if run.is_watched():
    show_figure(
        counted_load_figure(run, layer),
        key="load_over_time",
        title="What it took of the text it is trained on",
        terms=["expert load"],
    )
if (written := valid_code_figure(run)) is not None:
    show_figure(written, key=written.name, title="How much of the code it writes is valid?")
events = loaders.metrics(run, "event")
show_notes(run.name)
if len(events):
    st.markdown("#### What became of them, in words")
    st.dataframe(
        events[["step", "message"]].iloc[::-1],
        hide_index=True,
        key="time_events",
        height=min(36 * (len(events) + 1), 320),
        column_config={"step": st.column_config.NumberColumn("Step", width="small"), "message": "What happened"},
    )
