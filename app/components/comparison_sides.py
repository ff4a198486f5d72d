"""What is compared: the two runs, steps, traces or texts that the side bar and the page name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import loaders, state
from app.components.goto import expert_of, go_to_expert
from app.components.progress import progress_bar
from app.components.routing_text import deep_or_probe
from app.components.side_views import LEAST_WIDTH
from app.components.text_picker import pick_text
from moe_core.errors import RunError, UsageError
from moe_core.figures.sides import Comparison, Side, compare, have_same_shape
from moe_core.inference.subjects import ForeignModel, Live, RoutingFile, Subject
from moe_core.routing.measured import Measured
from moe_core.routing.measures.comparison import token_difference
from moe_core.runs import RunFolder

ONE_MODEL = "one_model"
"""Session key, in the URL: does the user say that both sides are one model?"""
ONE_MODEL_NEXT = "one_model_next"
"""bool: to be said for the user, who named a model and its fine-tuned copy, when the toggle is drawn next."""


def go_to_cell_of(comparison: Comparison, letter: str, of_runs: bool, cell: Mapping[str, Any]) -> None:
    """For show_figure's on_cell: go to the expert of a map of side `letter`, by the number that it has in its own
    model. `of_runs`: B is what the side bar names; else both are of one model."""
    if (named := expert_of(cell)) is None:
        return
    layer, expert = named
    other = state.compared()
    run = other.subject.name if letter == "B" and of_runs and other is not None else None
    go_to_expert(layer, comparison.own_number(letter, layer, expert), run)


def against_other(subject: Subject) -> Comparison:
    """What is chosen held against what the side bar names; a run else against its first snapshot. Raises
    MoescopeError."""
    other = state.compared()
    if isinstance(subject, RunFolder) and (other is None or isinstance(other.subject, RunFolder)):
        return _against_run(subject, other)
    if other is None:
        raise UsageError(f"{subject.name} is held against nothing yet: choose a run or another trace in the side bar")
    (first, _), (second, _) = deep_or_probe(subject), deep_or_probe(other.subject)
    one_model = _of_one_model(first, second)
    if not one_model and have_same_shape(first.trace, second.trace):
        if st.session_state.pop(ONE_MODEL_NEXT, False):
            st.session_state[ONE_MODEL] = True
        one_model = st.toggle(
            "A and B are one model", key=ONE_MODEL, bind="query-params",
            help="Then expert 3 of A is held against expert 3 of B. The files do not say so.",
        )  # fmt: skip
    return compare(Side(subject.name, first), Side(other.subject.name, second), one_model=one_model)


def against_text(subject: Subject) -> Comparison:
    """Two texts through the chosen run, each the held-out text of a domain or what is typed; of a trace, two of its
    domains. Raises UsageError while there are no two."""
    sides = []
    grid = st.grid(2, min_column_width=LEAST_WIDTH)
    for place, letter in enumerate("AB"):
        with grid, st.container():
            sides.append(pick_text(subject, letter, place))
    return compare(*sides, one_model=True)


def models_of_both(subject: Subject) -> tuple[Live, Live] | None:
    """What reads a text of one's own on both sides: two runs or models as they are now; None where one cannot."""
    other = state.compared()
    if other is None or other.step is not None:
        return None
    first, second = subject, other.subject
    if isinstance(first, RoutingFile) or isinstance(second, RoutingFile):
        return None
    if any(isinstance(one, RunFolder) and one.is_watched() for one in (first, second)):
        return None
    return first, second


def is_fine_tuned(subject: Subject) -> bool:
    """Does the user hold a model of the transformers library against another and say that they are one?"""
    other = state.compared()
    both = isinstance(subject, ForeignModel) and other is not None and isinstance(other.subject, ForeignModel)
    return both and bool(st.session_state.get(ONE_MODEL))


def _against_run(run: RunFolder, other: state.Compared | None) -> Comparison:
    steps = run.probe_steps()
    if other is None:
        loaders.probe_step(run)
        if len(steps) < 2:
            raise RunError(f"run {run.name!r} has one snapshot only; choose another run in the side bar")
        other = state.Compared(run, steps[0])
    against = other.subject
    assert isinstance(against, RunFolder)
    step = loaders.probe_step(against) if other.step is None else other.step
    first, second = loaders.probe(run), loaders.probe(against, step)
    # The later one is the second: what changed is told in the order in which it happened.
    names = [f"{run.name}, step {steps[-1]:,}", f"{against.name}, step {step:,}"]
    if against.name == run.name:
        return compare(Side(names[1], second), Side(names[0], first), one_model=True)
    if token_difference(first.tokens, second.tokens):
        with progress_bar("Sending the same text through both models") as bar:
            first, second = loaders.deep_routing(run, bar), loaders.deep_routing(run, bar, through=against)
        names = [f"{one.name}, newest checkpoint" for one in (run, against)]
    return compare(Side(names[0], first), Side(names[1], second), one_model=False)


def _of_one_model(first: Measured, second: Measured) -> bool:
    """Do both traces say that they are of one model at one step? Then an expert is told by its number."""
    return bool(first.trace.source) and first.trace.source == second.trace.source
