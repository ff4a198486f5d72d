"""Change: what happens when an expert is switched off, or forced?"""

from __future__ import annotations

import secrets
from typing import Any

import pandas as pd
import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.loss_view import show_loss
from app.components.map_view import map_places, pick_map_view
from app.components.own_text import own_text
from app.components.page import answer, errors_as_boxes, header, plain
from app.components.progress import progress_bar
from app.components.routing_text import first_routing
from app.components.text_pair import PROMPT_TOKENS, TextPair, show_pair
from moe_core.data.windows import WINDOW_RULE, window_words
from moe_core.figures.causes import ablation_map_figure
from moe_core.figures.effects import domain_effects_figure, with_outline
from moe_core.figures.load import load_map_figure
from moe_core.inference.passages import opening_words
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing.instruments.change import ABOUT, FORCE, MODES, Change
from moe_core.routing.measures.load import expert_load, load_balance
from moe_core.runs import RunFolder

# Keys of this page, the first two in the URL: what is done, which two texts are shown; then the form of those.
MODE, TEXTS = "mode", state.TEXTS
PROMPT, TOKENS, TEMPERATURE, SEED = "pair_prompt", "pair_tokens", "pair_temperature", "pair_seed"
MAP_TERMS = ["expert", "nats", "interval"]


def measured_map() -> pd.DataFrame | None:
    """The effects of switching off every expert, if all are known for the newest checkpoint."""
    effects = None if mode == FORCE or not isinstance(subject, RunFolder) else loaders.ablation(subject, mode)
    if not isinstance(subject, RunFolder) or effects is None:
        return None
    if effects.attrs["step"] != loaders.loaded_run(subject).step:
        return None
    known = effects[["layer", "expert"]].drop_duplicates()
    return effects if len(known) == len(loaded.moe_layers) * loaded.num_experts else None


def measure_map(run: RunFolder) -> None:
    """Switch off one expert after the other; those that are done are kept, whatever happens."""
    from moe_core.evaluation.ablation import ablation_map

    with errors_as_boxes("The experts could not be measured"):
        with progress_bar("Switching off one expert after the other") as bar:
            ablation_map(loaders.loaded_run(run), mode=mode, run=run, progress=bar)  # type: ignore[arg-type]
        st.rerun()


def show_map(effects: pd.DataFrame | None) -> None:
    """The map whose cells are experts to click: what each is worth or, before that is known, what each does."""
    measured, _ = first_routing(subject)
    view = pick_map_view(measured)
    places = map_places(measured, view)
    if effects is not None:
        figure = with_outline(ablation_map_figure(effects, view, places), layer, expert)
        show_figure(figure, key="causal_map", on_cell=choose, terms=MAP_TERMS)
        return
    figure = load_map_figure(measured.get(expert_load), measured.get(load_balance), view, places)
    figure = with_outline(figure, layer, expert)
    show_figure(figure, key="load_map", on_cell=choose, terms=["expert load", "lift"])
    if mode != FORCE and isinstance(subject, RunFolder):
        experts = len(loaded.moe_layers) * loaded.num_experts
        hint = "What is measured stays with the run; leaving this page only pauses it."
        if st.button(f"Switch off each of {experts} experts", icon=":material/science:", key="measure_map", help=hint):
            measure_map(subject)


def choose(cell: dict[str, Any]) -> None:
    """A cell that stands for many experts names no one: then only the layer is chosen."""
    state.open_expert(int(cell["layer"]), int(cell.get("expert", expert)))


def effect(effects: pd.DataFrame | None) -> pd.DataFrame:
    """The chosen change's effect on each domain."""
    if effects is not None:
        own = effects[(effects["layer"] == layer) & (effects["expert"] == expert)]
        return own.reset_index(drop=True)
    with progress_bar("Reading held-out text with and without the change") as bar:
        return loaders.expert_effect(subject, change.intervention, bar)


def write() -> None:
    """Start two texts in place of those there are, under a new key in the URL."""
    if pair is not None:
        pair.stop()
    with errors_as_boxes("Nothing was written"):
        new, temperature, seed = (st.session_state[key] for key in (TOKENS, TEMPERATURE, SEED))
        sampling = SamplingConfig(new, temperature, seed=seed)
        started = TextPair.write(loaded, st.session_state[PROMPT], sampling, change.intervention, change.what)
        st.session_state[TEXTS] = secrets.token_urlsafe(9)
        loaders.texts_place(st.session_state[TEXTS]).pair = started


def kept_pair() -> TextPair | None:
    """The texts that the session or the URL names, if they are of this model; a reloaded page finds them again."""
    key = st.session_state.setdefault(TEXTS, st.query_params.get(TEXTS))
    if key is None:
        return None
    st.query_params[TEXTS] = key
    found = loaders.texts_place(key).pair
    return found if found is not None and found.original.loaded is loaded else None


def show_texts() -> None:
    """The form and, once written or while being written, both texts."""
    st.markdown("#### What does the model write?")
    example = pair.given if pair is not None else opening_words(loaders.example_text(subject))
    about = f"Up to {PROMPT_TOKENS} tokens of it are read; empty starts a new text."
    own_text("Beginning", PROMPT, state.PAIR_SAVED, example, height=80, about=about, show_label=True)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Write both", icon=":material/edit_note:", key="pair_write", on_click=write, type="primary",
                  help="With the same seed: where the model expects the same, it writes the same.")  # fmt: skip
        with st.popover("Sampling", icon=":material/tune:", key="pair_settings"):
            st.slider("New tokens", 10, 400, 120, 10, key=TOKENS, persist_state="session")
            st.slider("Temperature", 0.0, 2.0, 0.8, 0.05, key=TEMPERATURE, persist_state="session")
            st.number_input("Seed", 0, 2**31 - 1, 0, key=SEED, persist_state="session")
    if pair is not None:
        if pair.what != change.what:
            st.caption(f"These were written {plain(pair.what)}; write both again for the change chosen now.")
        show_pair(pair, layer, key="pair", series=st.session_state[TEXTS], on_layer=state.follow_layer)


subject, layer = state.live_subject(), state.selected_layer()
loaded = loaders.language_model(subject)
head = st.container()
with head:
    header("What happens without an expert?")
with st.container(horizontal=True, vertical_alignment="bottom"):
    experts = state.preset_expert(state.CHANGED_EXPERT, loaded.num_experts, 0)
    state.preset(MODE, list(MODES), next(iter(MODES)))
    expert = state.remember_expert(state.present(st.selectbox(
        f"Expert of layer {layer}", experts, index=None, required=True, key=state.CHANGED_EXPERT, bind="query-params",
        width=160, help="Or click it in the map. The layer is chosen in the side bar."
    )))  # fmt: skip
    mode = MODES[state.present(st.segmented_control("What is done to it", list(MODES), required=True, key=MODE,
                                                    bind="query-params", help=ABOUT))]  # fmt: skip
change = Change(layer, expert, mode)
pair = kept_pair()
effects = measured_map()
picture = st.container()
with errors_as_boxes("The effect could not be measured"):
    figure = domain_effects_figure(effect(effects), change.what)
    with head:
        answer(figure.verdict)
    with picture:
        show_map(effects)
    show_figure(figure, key="domain_effects", terms=["loss", "nats", "interval", "domain"])
    measured_by = WINDOW_RULE if effects is None else effects.attrs["windows"]
    st.caption(window_words(loaded.context_window, measured_by))
show_texts()
show_loss(subject, loaded, change)
