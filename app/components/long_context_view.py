"""What was read beyond the trained length: the button that measures it, and when it was measured."""

from __future__ import annotations

import streamlit as st

from app import effect_loaders, loaders
from app.components.measuring import SOON_SECONDS, show_measuring
from app.components.page import ago, prose
from moe_core.inference.measuring_job import start_measuring
from moe_core.program import program
from moe_core.progress import Progress
from moe_core.runs import RunFolder
from moe_core.runs.context_file import KeptContext
from moe_core.words import count_of, duration


def offer_reading(run: RunFolder, factor: int, kept: KeptContext | None) -> None:
    """The button, or the bar while it runs, here and in any other browser."""
    from moe_core.evaluation.long_context import SPANS, TEXTS, measure_long_context

    key = f"long context {effect_loaders.key_of(run)} {factor}"
    if show_measuring(key, "The longer texts could not be read"):
        return
    loaded = loaders.loaded_run(run)
    length = SPANS[-1][1] * loaded.config.training.seq_len

    def measure(progress: Progress) -> None:
        measure_long_context(run, loaded, factor, progress=progress)

    if kept is None:
        st.markdown(
            prose(
                f"It is not measured yet at factor {factor}: {TEXTS} held-out texts of {length} tokens, four times the "
                "trained length, are read whole under each RoPE scheme and in windows of the trained length. It takes "
                "a minute or several, goes on while other pages are open, and is kept beside the run. The same on the "
                f"command line: `{program()} context --run {run.name} --factor {factor}`."
            )
        )
    label = "Read longer texts" if kept is None else "Measure again"
    if st.button(
        label, key="read_longer", icon=":material/play_arrow:", type="primary" if kept is None else "tertiary"
    ):
        start_measuring(key, "Reading longer texts", measure).wait(SOON_SECONDS)
        st.rerun()


def show_when(run: RunFolder, kept: KeptContext) -> None:
    """What was read and when, and whether the weights have changed since."""
    found, step = kept.found, effect_loaders.step_of(run)
    older = f", at step {kept.of.step:,}, before the weights of today" if kept.of.step != step else ""
    st.caption(
        prose(
            f"Measured {ago(kept.computed_at)}{older} in {duration(kept.seconds)}: {count_of(found.tokens, 'token')} "
            f"in {found.texts} texts of {found.tokens // found.texts}, from {count_of(found.documents, 'document')}; "
            f"intervals are over {found.groups} groups of texts that share no document."
        )
    )
