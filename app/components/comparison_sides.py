"""What is compared: the two runs, steps, traces or texts that the side bar and the page name."""

from __future__ import annotations

import streamlit as st

from app import loaders, state
from app.components.progress import progress_bar
from app.components.routing_text import deep_or_probe
from app.components.text_picker import pick_text
from moe_core.errors import RunError, UsageError
from moe_core.figures.sides import Comparison, Side, compare, have_same_shape
from moe_core.inference.subjects import Subject
from moe_core.routing.measured import Measured
from moe_core.routing.measures.comparison import token_difference
from moe_core.runs import RunFolder

ONE_MODEL = "one_model"
"""Session key, in the URL: does the user say that both sides are one model?"""


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
        one_model = st.toggle(
            "A and B are one model", key=ONE_MODEL, bind="query-params",
            help="Then expert 3 of A is held against expert 3 of B. The files do not say so.",
        )  # fmt: skip
    return compare(Side(subject.name, first), Side(other.subject.name, second), one_model=one_model)


def against_text(subject: Subject) -> Comparison:
    """Two texts through the chosen run, each the held-out text of a domain or what is typed; of a trace, two of its
    domains. Raises UsageError while there are no two."""
    sides = []
    for place, (letter, column) in enumerate(zip("AB", st.columns(2), strict=True)):
        with column:
            sides.append(pick_text(subject, letter, place))
    return compare(*sides, one_model=True)


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
