"""The map of what each expert is worth: shown where it is known, measured on demand for a layer, a sample, or all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from app import effect_loaders, loaders
from app.components.figure import show_figure
from app.components.map_view import map_places, pick_map_view
from app.components.measuring import SOON_SECONDS, show_measuring
from app.components.routing_text import first_routing
from moe_core.figures.causes import ablation_map_figure
from moe_core.figures.effects import with_outline
from moe_core.figures.load import load_map_figure
from moe_core.inference.measuring_job import start_measuring
from moe_core.routing.instruments.change import FORCE
from moe_core.routing.measures.load import expert_load, load_balance
from moe_core.runs import RunFolder
from moe_core.words import count_of, duration

if TYPE_CHECKING:
    from moe_core.ablation_modes import Mode
    from moe_core.inference.protocol import LanguageModel
    from moe_core.inference.subjects import Live
    from moe_core.progress import Progress

WHICH = "which_experts"
MAP_TERMS = ["expert", "nats", "interval"]
SAMPLE = 64
"""Up to so many experts are switched off without being asked which."""


@dataclass(frozen=True)
class Part:
    """Some of a model's experts: those of these numbers, in these layers."""

    label: str
    layers: Sequence[int]
    experts: Sequence[int]

    @property
    def count(self) -> int:
        """How many."""
        return len(self.layers) * len(self.experts)


def parts_of(loaded: LanguageModel, layer: int) -> list[Part]:
    """What may be measured at once, the quickest first: one layer, some of every layer, all."""
    layers, experts = list(loaded.moe_layers), list(range(loaded.num_experts))
    everything = Part("all layers", layers, experts)
    if everything.count <= SAMPLE:
        return [everything]
    each = max(1, SAMPLE // len(layers))
    sample = Part(f"{count_of(each, 'expert')} of every layer", layers, experts[:: -(-len(experts) // each)])
    return [Part(f"layer {layer}", [layer], experts), sample, everything]


def known_effects(subject: Live, mode: str) -> pd.DataFrame | None:
    """What is known of the present weights: the effects of the experts that were switched off so far; None of none."""
    if mode == FORCE:
        return None
    if not isinstance(subject, RunFolder):
        return effect_loaders.remembered_effects(subject, mode)
    effects = loaders.ablation(subject, mode)
    return effects if effects is not None and effects.attrs["step"] == loaders.loaded_run(subject).step else None


def is_map(effects: pd.DataFrame | None, loaded: LanguageModel, layer: int) -> bool:
    """Whether enough is known to draw it: all experts of the layer, or a sample of a large model."""
    if effects is None:
        return False
    known = effects[["layer", "expert"]].drop_duplicates()
    enough = min(SAMPLE // 2, len(loaded.moe_layers) * loaded.num_experts)
    return len(known) >= enough or int((known["layer"] == layer).sum()) == loaded.num_experts


def show_effect_map(
    subject: Live,
    loaded: LanguageModel,
    effects: pd.DataFrame | None,
    chosen: tuple[int, int, str],
    on_cell: Callable[[dict[str, Any]], None],
) -> None:
    """The map whose cells are experts to click: what each is worth or, before that is known, what each does.

    `chosen`: layer, expert and what is done to it.
    """
    layer, expert, mode = chosen
    measured, _ = first_routing(subject)
    view = pick_map_view(measured)
    places = map_places(measured, view)
    if effects is not None and is_map(effects, loaded, layer):
        figure = with_outline(ablation_map_figure(effects, view, places), layer, expert)
        show_figure(figure, key="causal_map", on_cell=on_cell, terms=MAP_TERMS)
    else:
        figure = load_map_figure(measured.get(expert_load), measured.get(load_balance), view, places)
        show_figure(with_outline(figure, layer, expert), key="load_map", on_cell=on_cell, terms=["expert load", "lift"])
    if mode != FORCE:
        _offer(subject, loaded, effects, layer, mode)


def _offer(subject: Live, loaded: LanguageModel, effects: pd.DataFrame | None, layer: int, mode: str) -> None:
    """The button that measures what is not known yet, with the time it will take; or the bar while it does."""
    key = f"effects {effect_loaders.key_of(subject)} {mode}"
    if show_measuring(key, "The experts could not be measured"):
        return
    known = set() if effects is None else set(zip(effects["layer"], effects["expert"], strict=True))
    missing = {
        part.label: (part, count)
        for part in parts_of(loaded, layer)
        if (count := sum((at, expert) not in known for at in part.layers for expert in part.experts))
    }
    if not missing:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        which = next(iter(missing))
        if len(missing) > 1:
            which = st.selectbox("Which experts", list(missing), key=WHICH, width=240) or which
        part, count = missing[which]
        done = part.count - count
        label = f"Switch off each of {part.count:,} experts" + (f" ({count:,} to go)" if done > 1 else "")
        about = duration(effect_loaders.seconds_of_expert(subject) * count)
        hint = "What is measured is kept; this page may be left, and Cancel only pauses it."
        if st.button(label, icon=":material/science:", key="measure_map", help=hint):
            job = start_measuring(key, "Switching off experts", _work(subject, mode, part))
            job.wait(SOON_SECONDS)
            st.rerun()
        st.caption(f"about {about}" + ("" if isinstance(subject, RunFolder) else ", kept while the server runs"))


def _work(subject: Live, mode: str, part: Part) -> Callable[[Progress], None]:
    """Loaded here, in the page's thread: caches belong to it."""
    from moe_core.evaluation.ablation import ablation_map

    of_mode: Mode = mode  # type: ignore[assignment]
    if isinstance(subject, RunFolder):
        loaded = loaders.loaded_run(subject)

        def measure(progress: Progress) -> None:
            ablation_map(loaded, mode=of_mode, layers=part.layers, experts=part.experts, run=subject, progress=progress)

        return measure
    model, text, memory = (
        loaders.language_model(subject),
        effect_loaders.ablated_text(subject),
        effect_loaders.memory(subject, mode),
    )

    def measure_model(progress: Progress) -> None:
        ablation_map(
            model, text, mode=of_mode, layers=part.layers, experts=part.experts, memory=memory, progress=progress
        )

    return measure_model
