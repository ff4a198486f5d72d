"""What stands on a page that has no run to show: none at all, one that is just starting, one that is broken."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from app import loaders
from app.components.page import OVERVIEW, TRAINING, header, prose
from moe_core.inference.subjects import Opened, RoutingFile, Subject
from moe_core.program import program
from moe_core.routing.measures.capability import COMMANDS, DOMAINS, STEPS, needs
from moe_core.routing.measures.measure import Measure
from moe_core.routing.measures.registry import (
    ABLATION,
    COACTIVATION,
    DOMAIN_NMI,
    FORMATION,
    LAYER_FLOW,
    LOAD_BY_STEP,
    PERSISTENCE,
    VOCABULARY,
)
from moe_core.runs import RunFolder, RunSummary
from moe_core.words import sentence

WAIT_SECONDS = 2.0
_MODEL_IS_ELSEWHERE = "This run was watched in another training loop, and its model is there: "
_WATCHED_NEEDS = {
    "generation": f"{_MODEL_IS_ELSEWHERE}to let it write, save the model there and open its folder.",
    "chat": f"{_MODEL_IS_ELSEWHERE}to talk with it, save the model there and open its folder.",
    "interventions": f"{_MODEL_IS_ELSEWHERE}to switch experts off, save the model there and open its folder.",
    "long_context": f"{_MODEL_IS_ELSEWHERE}to read longer texts, train a run here.",
}
_COUNTED_ONLY = (
    "Only counts were kept of this run, no single tokens: give watch(...) a probe text, and this page shows what the "
    "experts do with it."
)
_TAKES_TOKENS = ("tokens", "domains", "flow", "compare")
_MODEL_NEEDS = {
    "time": "The film of a training takes snapshots, which only a run that was trained here has.",
    "long_context": "Rotary angles are stretched in our own model: choose a run that was trained here.",
}
_ASKS: dict[str, tuple[tuple[Measure, str], ...]] = {
    "tokens": ((VOCABULARY, "colouring each token by its expert"),),
    "domains": ((DOMAIN_NMI, "which experts prefer which kind of text"),),
    "flow": ((LAYER_FLOW, "how tokens travel"), (PERSISTENCE, "how tokens travel"),
             (COACTIVATION, "which experts work together")),
    "generation": ((ABLATION, "writing"),),
    "chat": ((ABLATION, "talking with a model"),),
    "interventions": ((ABLATION, "switching experts off"),),
    "long_context": ((ABLATION, "reading longer texts"),),
    "time": ((LOAD_BY_STEP, "how the load changed"), (FORMATION, "the film of a training")),
}  # fmt: skip
"""What a page is about, by URL: it opens where one of these measures can be made."""
_KEEPS = {
    "tokens": "A trace keeps where tokens went and nothing else",
    "counts": "Counts keep how often each expert was chosen and no single tokens",
}
_LACKS = {
    ("tokens", DOMAINS): "All text of this trace is of one kind",
    ("counts", DOMAINS): "All text of these counts is of one kind, as far as they say",
    ("counts", STEPS): "These counts are of one step",
}
"""What is missing there, where that is not what such a file never keeps."""


@dataclass(frozen=True)
class Need:
    """What a page misses that cannot show what is chosen."""

    reason: str
    """In one sentence."""
    command: str = ""
    """What makes it, as given to the program; "" where no one command does."""


DENSE = Need(
    "This run is a dense model: it has no experts, so that there is no routing to look at. See Training for its loss."
)


def need(page: str, subject: Subject) -> Need | None:
    """Why the page with this URL cannot show the subject; None where it can. Raises MoescopeError where its file
    cannot be read."""
    if isinstance(subject, RoutingFile):
        return _need_of_file(page, subject)
    reason = _MODEL_NEEDS.get(page)
    if isinstance(subject, RunFolder):
        counted_only = subject.is_watched() and page in _TAKES_TOKENS and not subject.probe_steps()
        reason = _COUNTED_ONLY if counted_only else _WATCHED_NEEDS.get(page) if subject.is_watched() else None
    return None if reason is None else Need(reason)


def _need_of_file(page: str, file: RoutingFile) -> Need | None:
    asks = _ASKS.get(page, ())
    missing = needs([measure for measure, _ in asks], loaders.trace(file).trace)
    if not asks or len(missing) < len(asks):
        return None
    takes = dict.fromkeys(f"{asked} takes {missing[measure]}" for measure, asked in asks)
    first = missing[asks[0][0]]
    why = _LACKS.get((file.holds, first), _KEEPS[file.holds])
    return Need(f"{why}: {'; '.join(takes)}.", COMMANDS.get(first, ""))


def explain_no_runs() -> None:
    """How to make the first run, with a button to the page that does it."""
    header("Where do tokens go in a Mixture of Experts?", "There is no run yet: train one and watch its experts form.")
    st.markdown(
        "A *run* is a small language model with everything that was measured while it was trained. "
        "The quick one takes at most three minutes on two processor cores and needs no data of yours."
    )
    st.page_link(TRAINING, label="Train a first run", icon=":material/play_arrow:")
    st.caption("Or on the command line:")
    st.code(f"{program()} --quick --run first", language=None)
    st.markdown("Routing that was recorded elsewhere needs no run: open its trace in the side bar.")


def explain_need(chosen: RunSummary | Opened, subject: str, missing: Need) -> None:
    """What a page about `subject` says that cannot show what is chosen: why, how to get there, and where to go on."""
    says = "do" if chosen.name.startswith("counts ") else "does"
    header(f"What {says} {chosen.name} say about {subject}?", missing.reason)
    if missing.command:
        st.code(f"{program()} {missing.command}", language=None)
    if isinstance(chosen, RunSummary):
        st.page_link(TRAINING, label="How it learned", icon=":material/model_training:")
    else:
        kind = chosen.name.partition(" ")[0]
        shows = "counts show" if kind == "counts" else f"{kind} shows"
        st.page_link(OVERVIEW, label=f"What the {shows}", icon=":material/dashboard:")
    if any(run.error is None for run in loaders.runs()):
        st.caption("Or choose a run in the side bar.")
    else:
        st.page_link(TRAINING, label="Train a run", icon=":material/play_arrow:")


def explain_broken_run(run: RunSummary) -> None:
    """Its name, what is broken, what to do; or, while a trainer starts, that it does. The other runs are unaffected."""
    if run.error is None:
        header(f"What is {run.name}?", "Its training is just starting: text is being prepared.")
        st.page_link(TRAINING, label="Follow it on the Training page", icon=":material/monitoring:")
        _wait_for_start(run.name, run.state)
        return
    header(f"What is wrong with {run.name}?", "This run cannot be shown; the others still can.")
    st.error(prose(sentence(run.error)), icon=":material/broken_image:")
    others = [other.name for other in loaders.runs() if other.error is None]
    st.markdown(
        "Choose another run in the side bar." if others else "There is no sound run beside it: train a new one."
    )
    if not others:
        st.page_link(TRAINING, label="Train a run", icon=":material/play_arrow:")


@st.fragment(run_every=WAIT_SECONDS)
def _wait_for_start(name: str, state: str) -> None:
    """Look every two seconds; show the page once the trainer has something to show."""
    now = next((run for run in loaders.runs() if run.name == name), None)
    if now is None or now.state != state:
        st.rerun()
    st.caption("This page opens by itself as soon as training begins.")
