"""How many experts can go? The curves of a run or a model: shown where they are known, else measured on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from app import effect_loaders, loaders, state
from app.components.figure import show_figure
from app.components.measuring import SOON_SECONDS, show_measuring
from app.components.page import ago, errors_as_boxes, plain
from moe_core.figures.pruning import pruning_figure, top_k_figure
from moe_core.inference.measuring_job import start_measuring
from moe_core.routing.measures.pruning import pruning_verdict, top_k_verdict
from moe_core.runs import RunFolder
from moe_core.words import count_of, duration

if TYPE_CHECKING:
    from moe_core.inference.protocol import LanguageModel
    from moe_core.inference.subjects import Live
    from moe_core.progress import Progress
    from moe_core.runs.pruning_file import KeptCurves

# Keys in the URL: what the loss is drawn against, of which text.
AGAINST, TEXT = "against", "pruning_text"
AGAINSTS = ["experts taken out", "experts for each token"]
ALL = "all text"


def show_pruning(subject: Live, loaded: LanguageModel) -> None:
    """Both curves with their verdicts and when they were measured; or what measuring them takes."""
    st.markdown("#### How many experts can go?")
    with errors_as_boxes("The curves could not be shown"):
        kept = effect_loaders.curves(subject)
        if kept is not None:
            _show(kept, effect_loaders.step_of(subject))
        _offer(subject, loaded, kept)


def _show(kept: KeptCurves, step: int) -> None:
    curves = kept.curves
    names = [ALL if domain == "all" else domain for domain in curves.domains]
    state.preset(TEXT, names, ALL)
    if len(names) > 2:
        st.segmented_control("Text", names, key=TEXT, required=True, bind="query-params", format_func=plain)
    chosen = st.session_state.get(TEXT) or ALL
    domain = "all" if chosen == ALL else chosen
    st.markdown(plain(pruning_verdict(curves)))
    st.markdown(plain(top_k_verdict(curves)))
    state.preset(AGAINST, AGAINSTS, AGAINSTS[0])
    against = st.segmented_control("Loss against", AGAINSTS, key=AGAINST, required=True, bind="query-params")
    if against == AGAINSTS[1]:
        show_figure(top_k_figure(curves, domain), key="top_k", terms=["top-k curve", "top-k", "interval"])
    elif curves.points:
        figure = pruning_figure(curves, domain)
        show_figure(figure, key="pruning", terms=["pruning curve", "REAP", "causal effect", "interval"])
    older = f", at step {kept.of.step:,}, before the weights of today" if kept.of.step != step else ""
    st.caption(
        f"Measured {ago(kept.computed_at)}{older}: put in order by {kept.tuning_tokens:,} tokens, scored on "
        f"{kept.of.tokens:,} others of {plain(kept.of.text)}, in {duration(kept.seconds)}. No source is in both. "
        "Experts that are gone are masked and the router chooses again; as many go from each layer."
    )


def _offer(subject: Live, loaded: LanguageModel, kept: KeptCurves | None) -> None:
    from moe_core.evaluation.pruning import plan_curves

    key = f"curves {effect_loaders.key_of(subject)}"
    if show_measuring(key, "The curves could not be measured"):
        return
    plan = plan_curves(loaded)
    alone = len(loaded.moe_layers) * (loaded.num_experts - loaded.null_experts) if "effect" in plan.by else 0
    about = duration(effect_loaders.seconds_of_expert(subject) * (plan.readings / 2 + alone))
    if kept is None:
        without = "" if alone else " By effect is left out: each of so many experts would need a reading of its own."
        st.caption(
            f"The loss with fewer and fewer experts in each layer, down to {loaded.top_k}: the least needed first by "
            "REAP, by load, by causal effect or at random, put in order on other text than is scored; and the loss "
            f"with fewer or more experts for each token.{without}"
        )
    label = "Measure again" if kept is not None else "Measure the curves"
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(label, icon=":material/content_cut:", key="measure_curves",
                     type="tertiary" if kept is not None else "secondary",
                     help="The page may be left meanwhile; other pages go on."):  # fmt: skip
            start_measuring(key, "Curves", _work(subject)).wait(SOON_SECONDS)
            st.rerun()
        st.caption(f"{count_of(plan.readings, 'reading')} of the text, about {about}")


def _work(subject: Live) -> Callable[[Progress], None]:
    """Loaded here, in the page's thread: caches belong to it."""
    from moe_core.evaluation.pruning import pruning_curves
    from moe_core.evaluation.pruning_text import split_by_source

    if isinstance(subject, RunFolder):
        loaded = loaders.loaded_run(subject)

        def measure(progress: Progress) -> None:
            pruning_curves(loaded, run=subject, progress=progress)

        return measure
    model, documents, place = (
        loaders.language_model(subject),
        loaders.beginnings_of(subject),
        effect_loaders.curves_place(subject),
    )

    def measure_model(progress: Progress) -> None:
        text = split_by_source(model, documents, "generated text")
        place.kept = pruning_curves(model, text, progress=progress)

    return measure_model
