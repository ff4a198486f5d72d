"""Which experts to keep: every expert with its interval and verdict, and the pruned run written from here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from app import effect_loaders, loaders
from app.components.goto import go_to_saved
from app.components.measuring import SOON_SECONDS, show_measuring
from app.components.one_choice import pick
from app.components.page import OVERVIEW, errors_as_boxes, plain
from moe_core.inference.measuring_job import start_measuring
from moe_core.program import program
from moe_core.routing.measures.keep_list import KeepList, keep_list_verdict, list_by_saliency
from moe_core.runs import RunFolder

if TYPE_CHECKING:
    from moe_core.inference.protocol import LanguageModel
    from moe_core.inference.subjects import Live
    from moe_core.progress import Progress

# Keys in the URL: how many experts stay, by what, of which text.
KEEP, BY, TEXT = "keep", "keep_by", "keep_text"
WAYS = {"REAP": "reap", "load": "load"}
ALL = "all text"
WORDS = {"kept": "surely stays", "dropped": "can surely go", "unknown": "unknown"}


def show_keep_list(subject: Live, loaded: LanguageModel) -> None:
    """The list where its text was read, or a button that reads it; for a run, what writes the pruned one."""
    if not loaded.moe_layers or loaded.num_experts <= loaded.top_k:
        return
    st.markdown("#### Which experts can go?")
    with errors_as_boxes("The list could not be made"):
        place = effect_loaders.saliency_place(subject)
        if place.sums is None:
            _offer(subject, loaded)
            return
        keep, way, text = _choices(loaded, place.domains)
        domain, by = None if text == ALL else text, WAYS[way]
        of = place.sums if domain is None else place.sums.of_domain(place.domains.index(domain))
        found = list_by_saliency(of, keep, by="load" if by == "load" else "reap", domain=domain)
        st.markdown(plain(keep_list_verdict(found)))
        figures = {name: st.column_config.NumberColumn(format="%.4g") for name in ("score", "low", "high")}
        st.dataframe(_table(found), hide_index=True, height=320, key="keep_list", column_config=figures)
        st.caption(
            "An interval holds for all experts at once with 95 % certainty. Unknown: other text of this kind may put "
            "the expert on the other side, so that it is not droppable on this text's word."
        )
        if isinstance(subject, RunFolder):
            _write(subject, found)


def _choices(loaded: LanguageModel, domains: tuple[str, ...]) -> tuple[int, str, str]:
    """How many stay, by what, of which text."""
    counts = list(range(loaded.top_k, loaded.num_experts))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        keep = pick("Experts that stay in each layer", KEEP, counts, max(loaded.top_k, loaded.num_experts * 3 // 4))
        by = pick("By", BY, list(WAYS), next(iter(WAYS)))
        text = pick("Text", TEXT, [ALL, *domains], ALL)
    return keep, by, text


def _table(found: KeepList) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "layer": one.layer, "expert": one.expert, "stays": one.keep, "verdict": WORDS[one.verdict],
                "score": one.score, "low": one.low, "high": one.high, "sources": one.sources,
            }
            for one in found.experts
        ]
    )  # fmt: skip


def _offer(subject: Live, loaded: LanguageModel) -> None:
    key = f"saliency {effect_loaders.key_of(subject)}"
    if show_measuring(key, "The text could not be read"):
        return
    if st.button("Read the text and list them", icon=":material/checklist:", key="measure_keep_list"):
        start_measuring(key, "Keep list", _work(subject, loaded)).wait(SOON_SECONDS)
        st.rerun()
    st.caption("By how much each expert adds to what the model computes (REAP), or how many tokens choose it.")


def _work(subject: Live, loaded: LanguageModel) -> Callable[[Progress], None]:
    """Loaded here, in the page's thread: caches belong to it."""
    from moe_core.evaluation.pruning_text import split_by_source, text_of_run
    from moe_core.inference.expert_outputs import saliency_by_source

    place = effect_loaders.saliency_place(subject)
    run = loaders.loaded_run(subject) if isinstance(subject, RunFolder) else None
    documents = None if isinstance(subject, RunFolder) else loaders.beginnings_of(subject)

    def measure(progress: Progress) -> None:
        text = text_of_run(run) if run is not None else split_by_source(loaded, documents or [], "generated text")
        sums = saliency_by_source(loaded, text.tuning, progress)
        place.domains, place.sums = text.tuning.domains, sums

    return measure


def _write(run: RunFolder, found: KeepList) -> None:
    """Write the pruned run in the background, then lead to it; beside it the command that also tells what it costs."""
    new = f"{run.name}-{found.keep}" + ("" if found.domain is None else f"-{found.domain}")
    written = RunFolder(new, run.root)
    key = f"prune {run.root} {new}"
    domain = "" if found.domain is None else f" --domain {found.domain}"
    if not show_measuring(key, "The pruned run was not written"):
        with st.container(horizontal=True, vertical_alignment="center"):
            if written.exists():
                st.caption(f"Run {plain(new)} is there.")
                st.button("Go to it", icon=":material/arrow_forward:", key="go_to_pruned", on_click=go_to_saved,
                          args=(OVERVIEW, {}, new))  # fmt: skip
            elif st.button("Write a run with these alone", icon=":material/content_cut:", key="write_pruned",
                           help=f"As {new}; this run stays as it is."):  # fmt: skip
                start_measuring(key, f"Run {new}", _writing(run, written, found)).wait(SOON_SECONDS)
                st.rerun()
    st.caption("The command writes it too, and measures what it costs beside as many taken out by load and at random:")
    st.code(f"{program()} prune --run {run.name} --keep {found.keep} --by {found.by}{domain} --as {new}", language=None)


def _writing(run: RunFolder, written: RunFolder, found: KeepList) -> Callable[[Progress], None]:
    from moe_core.exchange.pruned_run import prune_model, refuse_router, write_pruned_run

    whole = loaders.loaded_run(run)

    def write(progress: Progress) -> None:
        refuse_router(whole.config.model)
        progress("comparing with the whole run", 0, 1)
        write_pruned_run(whole, prune_model(whole, found.kept), written, progress)

    return write
