"""Change: what happens when an expert is switched off, or forced?"""

from __future__ import annotations

import secrets
from typing import Any

import pandas as pd
import streamlit as st

from app import effect_loaders, loaders, state
from app.components.effect_map import known_effects, show_effect_map
from app.components.figure import show_figure
from app.components.heads_view import show_heads
from app.components.keep_list_view import show_keep_list
from app.components.loss_view import show_loss
from app.components.own_text import own_text
from app.components.page import answer, errors_as_boxes, header, plain
from app.components.progress import progress_bar
from app.components.pruning_view import show_pruning
from app.components.text_pair import PROMPT_TOKENS, TextPair, show_pair
from moe_core.data.windows import WINDOW_RULE, window_words
from moe_core.figures.effects import domain_effects_figure
from moe_core.inference.passages import opening_words
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import Intervention
from moe_core.routing.instruments.change import ABOUT, MODES, Change
from moe_core.runs import RunFolder

# Keys of this page, the first three in the URL: what is done, to which experts besides, which two texts are shown; then
# the form of those.
MODE, ALSO, TEXTS = "mode", "also", state.TEXTS
PROMPT, TOKENS, TEMPERATURE, SEED = "pair_prompt", "pair_tokens", "pair_temperature", "pair_seed"


def others() -> tuple[tuple[int, int], ...]:
    """The experts that it is done to as well: typed or picked here, or kept by the button while others are clicked."""
    names = [f"{at}:{one}" for at in loaded.moe_layers for one in range(loaded.num_experts)]
    if st.session_state.get(ALSO) is not None:
        st.session_state[ALSO] = [name for name in st.session_state[ALSO] if name in names]  # of another run
    picked = st.multiselect("And to these", names, key=ALSO, bind="query-params", placeholder="layer:expert", width=280,
                            help="Layer and expert, such as 2:5. Type to find one.") or []  # fmt: skip
    st.button("Keep, and choose another", key="keep_expert", icon=":material/add:", on_click=keep, type="tertiary",
              help="Puts the expert chosen now among these; the next click on the map adds one.")  # fmt: skip
    return Intervention.parse_experts(picked)


def keep() -> None:
    """Before the page is drawn again: the chosen expert is one of several."""
    kept = st.session_state.get(ALSO) or []
    name = f"{layer}:{expert}"
    st.session_state[ALSO] = [*kept, *([] if name in kept else [name])]


def choose(cell: dict[str, Any]) -> None:
    """A cell that stands for many experts names no one: then only the layer is chosen."""
    state.open_expert(int(cell["layer"]), int(cell.get("expert", expert)))


def effect(effects: pd.DataFrame | None) -> pd.DataFrame:
    """The chosen change's effect on each domain."""
    if effects is not None and len(change.experts) == 1:
        own = effects[(effects["layer"] == layer) & (effects["expert"] == expert)]
        if len(own):
            return own.reset_index(drop=True)
    with progress_bar("Reading held-out text with and without the change") as bar:
        return effect_loaders.expert_effect(subject, change.intervention, bar)


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
            st.slider("New tokens", 10, 400, 120, 10, key=TOKENS, bind="query-params", persist_state="session")
            st.slider("Temperature", 0.0, 2.0, 0.8, 0.05, key=TEMPERATURE, bind="query-params", persist_state="session")
            st.number_input("Seed", 0, 2**31 - 1, 0, key=SEED, bind="query-params", persist_state="session")
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
        width=210, help="Or click it in the map. The layer is chosen in the side bar."
    )))  # fmt: skip
    mode = MODES[state.present(st.selectbox("What is done to it", list(MODES), index=None, required=True, key=MODE,
                                            bind="query-params", width=320, help=ABOUT))]  # fmt: skip
    also = others()
change = Change(layer, expert, mode, also)
pair = kept_pair()
effects = known_effects(subject, mode)
picture = st.container()
with errors_as_boxes("The effect could not be measured"):
    figure = domain_effects_figure(effect(effects), change.what)
    with head:
        answer(figure.verdict)
    with picture:
        show_effect_map(subject, loaded, effects, (layer, expert, mode), choose)
    show_figure(figure, key="domain_effects", terms=["loss", "nats", "interval", "domain"])
    measured_by = WINDOW_RULE if effects is None else effects.attrs.get("windows", WINDOW_RULE)
    st.caption(window_words(loaded.context_window, measured_by))
if isinstance(subject, RunFolder):
    show_heads(subject)
show_pruning(subject, loaded)
show_keep_list(subject, loaded)
show_texts()
show_loss(subject, loaded, change)
