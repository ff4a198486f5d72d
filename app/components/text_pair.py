"""Two texts from one beginning and one seed, side by side: as the model writes, and as it writes once it is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import streamlit as st

from app.components.page import errors_as_boxes, plain, prose
from app.components.token_view import token_view, view_payload
from moe_core.inference.job import GenerationJob, arrays_of_job
from moe_core.inference.passages import fit
from moe_core.routing.token_arrays import TokenArrays, aligned

if TYPE_CHECKING:
    from moe_core.inference.protocol import LanguageModel, Loaded
    from moe_core.inference.sampling import SamplingConfig
    from moe_core.routing import Intervention

PROMPT_TOKENS = 200
REFRESH_SECONDS = 0.4


@dataclass(frozen=True, eq=False)
class TextPair:
    """Both continuations of one beginning; they are written at the same time, by two threads."""

    given: str
    """The beginning as it was typed; of a long one the jobs have the first PROMPT_TOKENS tokens."""
    what: str
    """What was done to the second text's model, such as "without expert 5 of layer 2"."""
    original: GenerationJob
    changed: GenerationJob

    @classmethod
    def write(
        cls, loaded: Loaded | LanguageModel, given: str, sampling: SamplingConfig, intervention: Intervention, what: str
    ) -> TextPair:
        """Start both. Raises DataError when UTF-8 cannot hold the beginning, UsageError when the model has no such
        expert."""
        prompt = fit(given, loaded.tokenizer, PROMPT_TOKENS)
        changed = GenerationJob(loaded, prompt, sampling, intervention)
        return cls(given, what, GenerationJob(loaded, prompt, sampling), changed)

    @property
    def jobs(self) -> tuple[GenerationJob, GenerationJob]:
        return self.original, self.changed

    @property
    def is_running(self) -> bool:
        """True until both are written."""
        return any(job.is_running for job in self.jobs)

    def stop(self) -> None:
        """Ask both to end after the token they are writing."""
        for job in self.jobs:
            job.stop()


def differences(
    first: Sequence[object], second: Sequence[object]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which tokens of each text are not in the other, in order: what a comparison of two files would mark."""
    own, other = np.ones(len(first), np.bool_), np.ones(len(second), np.bool_)
    own_places, other_places = aligned(first, second)
    own[own_places], other[other_places] = False, False
    return own, other


def pair_verdict(pair: TextPair) -> str:
    """See difference_words; while the texts are written, as far as both have come."""
    first, second = ([token.token_id for token in list(job.written)] for job in pair.jobs)
    return difference_words(first, second, pair.what, "read the change of loss below for the size of the effect")


def difference_words(first: Sequence[int], second: Sequence[int], what: str, advice: str) -> str:
    """How far two texts agree, by their token ids, in one sentence; what to do to learn more."""
    both = min(len(first), len(second))
    parted = next((i for i in range(both) if first[i] != second[i]), both)
    if parted == both and len(first) == len(second):
        return f"Not one of {both:,} tokens changed {what}, with the same seed." if both else "Nothing was written."
    if parted == both:
        return f"The first {both:,} tokens are the same {what}, with the same seed."
    _, changed = differences(first, second)
    return (
        f"The texts part at token {parted + 1:,}; {what}, {int(changed.sum()):,} of {len(second):,} tokens are "
        f"other ones. One other token changes all that follow: {advice}."
    )


def arrays_of_pair(pair: TextPair) -> tuple[TokenArrays, TokenArrays]:
    """Both texts as the token view takes them; the tokens that the other text does not have are marked."""
    first, second = (arrays_of_job(job) for job in pair.jobs)
    before = len(pair.original.language.tokenizer.encode(pair.original.prompt))
    marks = differences(first.tokens[before:], second.tokens[before:])
    marked = []
    for arrays, changed in zip((first, second), marks, strict=True):
        of_text = np.concatenate([np.zeros(before, np.bool_), changed])
        every_layer = np.broadcast_to(of_text, (len(arrays.layers), len(of_text)))
        marked.append(replace(arrays, marks=every_layer, mark_label="not in the other text"))
    return marked[0], marked[1]


def show_pair(pair: TextPair, layer: int, *, key: str, series: str, on_layer: Callable[[str], None]) -> None:
    """Draw both texts, several times a second while they are written; `on_layer` gets the key of the view whose
    scrubber was let go."""
    live = pair.is_running
    st.fragment(_draw, run_every=REFRESH_SECONDS if live else None)(pair, layer, key, series, on_layer, live)


def _draw(pair: TextPair, layer: int, key: str, series: str, on_layer: Callable[[str], None], live: bool) -> None:
    with errors_as_boxes("Writing ended early"):
        if live and not pair.is_running:
            st.rerun()  # the whole page once more: its answer, and an end to these reruns
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(_progress(pair, live))
            if live:
                st.button("Stop", icon=":material/stop_circle:", key=f"{key}_stop", on_click=pair.stop, type="primary")
        if pair.original.prompt != pair.given:
            st.caption(f"Only the first {PROMPT_TOKENS} tokens of the beginning are used.")
        if not live:
            st.markdown(prose(pair_verdict(pair)))
        titles = ("As the model is", pair.what[:1].upper() + pair.what[1:])
        for place, (column, title, arrays) in enumerate(zip(st.columns(2), titles, arrays_of_pair(pair), strict=True)):
            view = f"{key}_view_{place}"
            with column:
                st.markdown(f"**{plain(title)}**")
                payload = view_payload(arrays, series=f"{series}-{place}", live=live)
                choice = token_view(payload, layer=layer, key=view, on_layer=partial(on_layer, view))
                if choice.layer is not None and choice.layer != layer:
                    st.rerun()
        if not live:
            for job in pair.jobs:
                job.raise_error()
            st.download_button("Both texts", _sentence_of_both(pair), "texts.txt", key=f"{key}_text", type="tertiary",
                               icon=":material/download:", on_click="ignore")  # fmt: skip


def _progress(pair: TextPair, live: bool) -> str:
    tokens = " and ".join(f"{len(job.written):,}" for job in pair.jobs)
    stopped = any(job.was_stopped for job in pair.jobs)
    speeds = [speed for job in pair.jobs if (speed := job.tokens_per_second) is not None]
    parts = [f"{tokens} of at most {pair.original.sampling.max_new_tokens:,} tokens"]
    parts += [f"**{sum(speeds):,.0f} tokens/s** in both"] if speeds else []
    return f"{'writing' if live else 'stopped' if stopped else 'finished'} · {' · '.join(parts)}"


def _sentence_of_both(pair: TextPair) -> str:
    first, second = pair.jobs
    return (
        f"Seed {first.sampling.seed}, temperature {first.sampling.temperature:g}\n\n"
        f"As the model is:\n{first.prompt}{first.text}\n\n"
        f"{pair.what[:1].upper()}{pair.what[1:]}:\n{second.prompt}{second.text}\n"
    )
