"""The curves of the chosen run, and of others beside it: which ones, along what, and what they say in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.page import answer, prose
from moe_core.errors import MoescopeError
from moe_core.experiments.equal_tokens import lower_loss_words, shipped_seed_limits
from moe_core.figures.figure import Figure
from moe_core.figures.palette import RUN_COLOURS
from moe_core.figures.run_curves import ALONG, DRAWN, ZOOM, Along, loss_of_runs_figure, quantity_figure
from moe_core.runs import RunFolder, RunSummary
from moe_core.runs.curves import LOSS, VALID_CODE, RunCurves, run_curves
from moe_core.words import listed, sentence

KEPT_FIGURES = "training_quantities"
"""Session key: the figures drawn last, and of what."""
MOST_BESIDE = len(RUN_COLOURS) - 1
LOSS_TERMS = ("loss", "unseen", "validation", "guessing by token frequency")
_SPLITS = "Thick: unseen text. Dashed: validation. Thin: the text it learns. Shift and the wheel zoom, a drag moves."
_PART = (
    "The curves score the same part of the held-out text at every step; the figures of a finished run are of all of it."
)


@dataclass(frozen=True, eq=False)
class _Kept:
    along: Along
    runs: Sequence[RunCurves]
    figures: list[tuple[str, Figure]]


def choose_curves(chosen: str, runs: Sequence[RunSummary]) -> tuple[list[str], Along]:
    """Draw the choice of other runs and of the horizontal axis, both in the URL. Returns the names of all runs to draw,
    `chosen` first, and the axis."""
    asked = st.session_state.get(state.BESIDE) or []  # one that broke since it was asked for is named, not dropped
    others = [run.name for run in runs if run.name != chosen and (run.error is None or run.name in asked)]
    if state.BESIDE in st.session_state:
        st.session_state[state.BESIDE] = [name for name in asked if name in others]
    state.preset(state.ALONG, ALONG, ALONG[0])
    state.write_link(state.ALONG)
    beside: list[str] = []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if others:
            beside = st.multiselect(
                "Draw beside it", others, key=state.BESIDE, bind="query-params", max_selections=MOST_BESIDE,
                placeholder="other runs", width=420,
                help="Their curves in the same figures, a colour for each run. A run may still be training.",
            )  # fmt: skip
        along: Along = state.present(
            st.segmented_control("Along", ALONG, required=True, key=state.ALONG, bind="query-params",
                                 help="Steps done, tokens trained on, or time spent in the training loop.")
        )  # fmt: skip
    return [chosen, *beside], along


def show_losses(names: Sequence[str], runs: Sequence[RunCurves], along: Along, *, is_live: bool) -> None:
    """The loss of every run; of several in words which is lower, and what state each of the `names` is in."""
    words = ""
    if len(names) > 1:
        words = lower_loss_words(runs, shipped_seed_limits())
        answer(words)
        st.caption(prose(state_words(names)))
    figure = loss_of_runs_figure(runs, along, words or "Lower is better.")
    if figure is None:
        return
    is_watched = all(run.is_watched for run in runs)
    terms = ["loss"] if is_watched else LOSS_TERMS
    show_figure(figure, key="loss", terms=terms, is_live=is_live, zooms=ZOOM, named=False)
    st.caption(_SPLITS if is_watched else f"{_SPLITS} {_PART}")


def show_quantities(runs: Sequence[RunCurves], along: Along, *, is_live: bool) -> None:
    """What moved the loss, two figures a row; and once what a run has not recorded."""
    drawn = _quantity_figures(runs, along)
    if drawn:
        st.markdown("#### What went with it")
    for first in range(0, len(drawn), 2):
        for place, (name, figure) in zip(st.columns(2), drawn[first : first + 2], strict=False):
            with place:
                term = DRAWN[name].term
                terms, title = [term] if term else [], DRAWN[name].title
                show_figure(figure, key=name, terms=terms, title=title, is_live=is_live, named=False)
    for words in missing_words(runs):
        st.caption(prose(words))


def _quantity_figures(runs: Sequence[RunCurves], along: Along) -> list[tuple[str, Figure]]:
    """Those that have something to show, by their names; drawn anew when a run goes on, not at every click."""
    kept: _Kept | None = st.session_state.get(KEPT_FIGURES)
    if kept is None or kept.along != along or not _same(kept.runs, runs):
        figures = [(name, quantity_figure(runs, name, along)) for name in DRAWN if name != LOSS]
        kept = _Kept(along, runs, [(name, figure) for name, figure in figures if figure is not None])
        st.session_state[KEPT_FIGURES] = kept
    return kept.figures


def _same(kept: Sequence[RunCurves], runs: Sequence[RunCurves]) -> bool:
    return len(kept) == len(runs) and all(
        was.name == run.name and was.points.equals(run.points) for was, run in zip(kept, runs, strict=True)
    )


def missing_words(runs: Sequence[RunCurves]) -> list[str]:
    """A sentence for each run that lacks what others have recorded."""
    sentences = []
    for run in runs:
        if not run.missing:
            continue
        lacking = listed([DRAWN[name].title.lower() for name in run.missing])
        given = ", ".join(f"{name}=..." for name in run.missing)
        why = f"`log.record({given})` in its loop gives it" if run.is_watched else "it is from before they were kept"
        sentences.append(f"{run.name} has no {lacking}: {why}.")
    return sentences


def _curves(run: RunFolder) -> RunCurves:
    watched = run.is_watched()
    seed = None if watched else loaders.config(run).training.seed
    return run_curves(run.name, loaders.metric_log(run), is_watched=watched, seed=seed)


def valid_code_figure(run: RunFolder) -> Figure | None:
    """How much of the code that a run writes at its evaluations is valid; None where it was not asked to."""
    return quantity_figure([_curves(run)], VALID_CODE, "step")


def readable_curves(names: Sequence[str]) -> list[RunCurves]:
    """The curves of each; a run whose files are damaged is named and left out."""
    found = []
    for name in names:
        try:
            found.append(_curves(RunFolder(name)))
        except MoescopeError as error:
            st.caption(prose(f"{name} is left out: {sentence(str(error))}"))
    return found


def state_words(names: Sequence[str]) -> str:
    """ "a: finished, step 350 of 350. b: running, step 20 of 350." """
    known = {run.name: run for run in loaders.runs()}
    parts = []
    for name in names:
        run = known.get(name)
        if run is not None:
            of = f" of {run.steps:,}" if run.steps else ""
            parts.append(f"{name}: {run.state}, step {run.step:,}{of}.")
    return " ".join(parts)
