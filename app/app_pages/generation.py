"""Change: let the model write, and see each new token coloured by its expert as it comes."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import loaders, state
from app.components.figure import show_figure
from app.components.own_text import own_text
from app.components.page import errors_as_boxes, header, plain, prose
from app.components.token_view import token_view, view_payload
from moe_core.errors import MoescopeError
from moe_core.figures.tokens import WINDOW, token_map_figure, token_path_figure
from moe_core.inference.job import GenerationJob, arrays_of_job, trace_of_job
from moe_core.inference.passages import fit, opening_words
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing.measures.experts import layer_verdict
from moe_core.runs import RunFolder

# Session keys of this page: the running or last job, the prompt it was given, how many jobs there were, the view, the
# prompt being typed, the sampling settings.
JOB, GIVEN, COUNT, VIEW = "generation_job", "generation_given", "generation_count", "generation_view"
PROMPT, SETTINGS = "generation_prompt", (
    "generation_tokens", "generation_temperature", "generation_top_k", "generation_top_p", "generation_seed",
)  # fmt: skip
PROMPT_TOKENS = 500
# That a run writes unasked, in a second or two; and another model, which may be large.
EXAMPLE_TOKENS, EXAMPLE_TOKENS_OF_OTHERS = 120, 40
REFRESH_SECONDS = 0.3


def write() -> None:
    """Start a new job in place of the one there is."""
    stop()
    new, temperature, top_k, top_p, seed = (st.session_state[key] for key in SETTINGS)
    with errors_as_boxes("Nothing was written"):
        prompt = fit(st.session_state[PROMPT], loaded.tokenizer, PROMPT_TOKENS)
        st.session_state[JOB] = GenerationJob(loaded, prompt, SamplingConfig(new, temperature, top_k, top_p, seed))
        st.session_state[GIVEN] = st.session_state[PROMPT]
        st.session_state[COUNT] = st.session_state.get(COUNT, 0) + 1


def stop() -> None:
    if JOB in st.session_state:
        st.session_state[JOB].stop()


def settings() -> None:
    """Sampling, each with what it does; the defaults are right for a small model."""
    with st.popover("Sampling", icon=":material/tune:", key="generation_settings"):
        st.slider("New tokens", 10, 1000, 200, 10, key=SETTINGS[0], bind="query-params", persist_state="session",
                  help="Tokens to write at most; the model may end the text earlier.")  # fmt: skip
        st.slider("Temperature", 0.0, 2.0, 0.8, 0.05, key=SETTINGS[1], bind="query-params", persist_state="session",
                  help="0 always takes the likeliest token; higher values are bolder.")  # fmt: skip
        st.slider("Top-k", 0, 200, 50, 5, key=SETTINGS[2], bind="query-params", persist_state="session",
                  help="Only the k likeliest tokens are drawn from; 0 = all.")  # fmt: skip
        st.slider("Top-p", 0.05, 1.0, 0.95, 0.05, key=SETTINGS[3], bind="query-params", persist_state="session",
                  help="Only the likeliest tokens that together reach this probability are drawn from.")  # fmt: skip
        st.number_input("Seed", 0, 2**31 - 1, 0, key=SETTINGS[4], bind="query-params", persist_state="session",
                        help="The same seed, prompt and settings give the same text.")  # fmt: skip


def answer(job: GenerationJob | None) -> str:
    """The answer in one sentence: of the finished text, with its even share; before that, what will be seen."""
    if job is None:
        return "Give the model a beginning: it writes on, and every new token takes the colour of its expert."
    if job.is_running:
        return "The model is writing; every new token takes the colour of its expert."
    trace = trace_of_job(job)
    return layer_verdict(trace, layer) if trace is not None else "The model ended the text at once."


def progress_line(job: GenerationJob, live: bool) -> str:
    """How far and how fast."""
    speed = job.tokens_per_second
    parts = [f"{len(job.written):,} of at most {job.sampling.max_new_tokens:,} tokens", f"{job.seconds:.1f} s"]
    parts += [f"**{speed:,.0f} tokens/s**"] if speed is not None else []
    ended = "stopped" if job.was_stopped else "finished"
    return f"{'writing' if live else ended} · {' · '.join(parts)}"


def write_example() -> GenerationJob:
    """Let the model write on from the first words of a held-out text, with the settings that it starts with."""
    tokens = EXAMPLE_TOKENS if isinstance(subject, RunFolder) else EXAMPLE_TOKENS_OF_OTHERS
    return GenerationJob(loaded, opening_words(loaders.example_text(subject)), SamplingConfig(tokens))


def show(job: GenerationJob, layer: int, live: bool) -> None:
    """The text with what can be done about it; runs several times a second while the model writes (`live`)."""
    with errors_as_boxes("Writing ended early"):
        if live and not job.is_running:
            st.rerun()  # the whole page once more: its answer, and an end to these reruns
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(progress_line(job, live))
            if live:
                st.button(
                    "Stop", icon=":material/stop_circle:", key="generation_stop", on_click=job.stop, type="primary"
                )
        if not is_example and job.prompt != st.session_state.get(GIVEN):
            st.caption(f"Only the first {PROMPT_TOKENS} tokens of the beginning are used.")
        series = f"{id(job)}-{st.session_state.get(COUNT, 0)}"
        payload = view_payload(arrays_of_job(job), series=series, live=live)
        choice = token_view(payload, layer=layer, key=VIEW, on_layer=partial(state.follow_layer, VIEW))
        if choice.layer is not None and choice.layer != layer:
            st.rerun()
        if not live:
            job.raise_error()
            show_figures(job, choice.token)


def show_figures(job: GenerationJob, token: int | None) -> None:
    """Once the text is whole: its tokens through all layers, and the path of the selected one."""
    trace = trace_of_job(job)
    if trace is None:
        return
    prompt_tokens = len(loaded.tokenizer.encode(job.prompt))
    place = None if token is None or token < prompt_tokens else token - prompt_tokens
    terms = ["token", "layer", "expert", "router score", "loss"]
    show_figure(token_map_figure(trace, (place or 0) - WINDOW // 2, layer), key="written_layer_map", terms=terms)
    if place is not None:
        path = token_path_figure(trace, place, layer)
        show_figure(path, key="written_path", title=path.verdict, terms=["expert", "router score"])
    st.download_button("Prompt and text", job.prompt + job.text, "written.txt", key="generation_text", type="tertiary",
                       icon=":material/download:", on_click="ignore")  # fmt: skip


subject, layer = state.live_subject(), state.selected_layer()
loaded = loaders.language_model(subject)
own: GenerationJob | None = st.session_state.get(JOB)
if own is not None and own.loaded is not loaded:
    own.stop()
    own = None  # of another run, or of an older checkpoint
is_example, why_none, job = own is None, None, own
if own is None:
    try:
        job = loaders.example_place(subject).once(write_example)
    except MoescopeError as error:  # a model that cannot write
        why_none = error
header("Which experts write which words?", answer(job))
about = f"Up to {PROMPT_TOKENS} tokens of it are read; empty starts a new text."
example = opening_words(loaders.example_text(subject))
own_text("Beginning", PROMPT, state.GENERATION_SAVED, example, height=80, about=about, show_label=True)
with st.container(horizontal=True, vertical_alignment="center"):
    label = "Write" if is_example else "Write again"
    st.button(label, icon=":material/edit_note:", key="generation_write", on_click=write, type="primary")
    settings()
if why_none is not None:
    st.info(prose(f"No example was written: {why_none}."), icon=":material/edit_off:")
if job is not None:
    if is_example:
        text = "held-out" if isinstance(subject, RunFolder) else "made-up"
        given = f"on from the first words of a {text} text" if job.prompt else "from nothing"
        st.caption(plain(
            f"An example, written by {job.language.name} {given}: {job.sampling.words}. What you let it write takes "
            "its place."
        ))  # fmt: skip
    live = job.is_running
    st.fragment(show, run_every=REFRESH_SECONDS if live else None)(job, layer, live)
