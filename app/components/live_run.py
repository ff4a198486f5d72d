"""One training as it goes: how far, how well, which experts take the load, what changed, and the stop button.

Everything is read from the run's folder, so any number of browsers, and a restarted server, show the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import loaders, state
from app.components.figure import show_figure, term_help
from app.components.page import answer, errors_as_boxes, plain, show_notes
from app.components.training_curves import choose_curves, readable_curves, show_losses, show_quantities
from app.components.watched_run import counted_load_figure, watched_figures
from moe_core.errors import RunError
from moe_core.figures.run_curves import Along
from moe_core.routing.measures.health import IMBALANCE_LIMIT
from moe_core.runs import RunFolder, RunStatus, RunSummary
from moe_core.runs.compute import read_compute
from moe_core.runs.listing import LAUNCH_PATIENCE_SECONDS
from moe_core.words import duration, number, sentence

# Drawing takes some tenths of a second of the very processor that trains, so pictures move less often than numbers.
NUMBERS_SECONDS = 1.5
PICTURES_SECONDS = 4.0
WATCH_SECONDS = 4.0
# Sentences about what changed that are shown at once; the newest first.
SHOWN_EVENTS = 12


def follow(run: RunFolder, summary: RunSummary) -> None:
    """Show the run, and the curves of others beside it; while a trainer lives, look again every moment without
    rerunning the page."""
    alive = summary.is_live or summary.state == "preparing"
    runs = loaders.runs()
    with st.container(key="live"):  # accessibility.js keeps it from fading while it is drawn again
        st.fragment(run_every=NUMBERS_SECONDS if alive else None)(_numbers)(run.name, summary.state)
        names, along = choose_curves(run.name, runs)
        moving = any(item.is_live or item.state == "preparing" for item in runs if item.name in names)
        st.fragment(run_every=PICTURES_SECONDS if moving else None)(_pictures)(names, along, moving)
    _watch(names, _states(names))


@st.fragment(run_every=WATCH_SECONDS)
def _watch(names: Sequence[str], states_before: Sequence[str]) -> None:
    """Draw nothing; notice when a run ends, or when another browser, or the command line, starts it again."""
    if _states(names) != states_before:
        st.rerun()


def _states(names: Sequence[str]) -> tuple[str, ...]:
    known = {run.name: run.state for run in loaders.runs()}
    return tuple(known.get(name, "") for name in names)


def _numbers(name: str, state_before: str) -> None:
    with errors_as_boxes():
        run = RunFolder(name)
        summary = next((item for item in loaders.runs() if item.name == name), None)
        if summary is None:
            raise RunError(f"run {name!r} is gone: its folder was removed; choose another run in the side bar")
        if summary.state != state_before:
            st.rerun()  # the side bar changes with it, and how often to look
        status = run.status() or RunStatus("preparing")
        answer(describe(summary, status))
        show_notes(name)
        if summary.is_watched:
            watched_figures(run, status)
            return
        _controls(run, summary, status)
        _figures(status, loaders.metrics(run, "load"), summary)
        if (compute := read_compute(run)) is not None:
            st.caption(plain(compute.sentence))


def describe(summary: RunSummary, status: RunStatus) -> str:
    """How far the run is and how well it predicts, in one or two sentences; for a failure the reason and the remedy."""
    at = step_words(status)
    if summary.state == "preparing":
        text = "Its text is being prepared; the first step follows."
    elif summary.state == "running":
        left = f", {duration(status.seconds_left)} left" if status.seconds_left is not None else ""
        lost = f" (shortened from {summary.lost.asked:,} to keep its time budget)" if summary.lost is not None else ""
        text = f"Now at {at}{lost}{left}."
    elif summary.state == "scoring":
        text = (
            f"All {status.steps:,} steps are done, in {duration(status.elapsed_seconds)}; its loss on the whole unseen "
            "text is being scored."
        )
    elif summary.state == "finished":
        text = f"Finished {status.steps:,} steps in {duration(status.elapsed_seconds)}."
    elif summary.state == "stopped" and summary.is_watched:
        text = f"Its loop ended at {at}; what was counted is kept."
    elif summary.state == "stopped":
        text = f"Stopped at {at} and saved; resume continues from there."
    elif summary.state == "interrupted":
        rest = "What was counted is kept." if summary.is_watched else "Resume continues from its last checkpoint."
        text = (
            f"Its process ended at {at} without a word: the computer went off, it ran out of memory, or it was killed. "
            f"{rest}"
        )
    else:
        text = f"Failed at {at}: {sentence(status.message or summary.error or 'no reason was recorded')}"
    if summary.unseen_nats is None or summary.state == "scoring":
        return text
    loss = f" Its loss on unseen text is {summary.unseen_nats:.2f} nats per token"
    if summary.unigram_nats is None:
        return f"{text}{loss}."
    gap = summary.unigram_nats - summary.unseen_nats
    side = f"{gap:.2f} better than" if gap > 0 else f"{-gap:.2f} worse than"
    return f"{text}{loss}, {side} guessing by token frequency ({summary.unigram_nats:.2f})."


def step_words(status: RunStatus) -> str:
    """ "step 20 of 350"; of a watched run whose loop did not say how many there will be, "step 20"."""
    return f"step {status.step:,}" + (f" of {status.steps:,}" if status.steps else "")


def _controls(run: RunFolder, summary: RunSummary, status: RunStatus) -> None:
    """Progress with time left and a stop button while it lives; afterwards, where it can continue, resume."""
    if summary.state == "scoring":
        return
    if summary.is_live:
        with st.container(horizontal=True, vertical_alignment="center"):
            share = min(1.0, status.step / status.steps) if status.steps else 0.0
            left = duration(status.seconds_left) + " left" if status.seconds_left is not None else "measuring speed"
            text = f"{step_words(status)}, {left}" if status.step else plain(status.message)
            st.progress(share, text=text)
            stopping = run.stop_requested()
            st.button(
                "Stopping ..." if stopping else "Stop",
                icon=":material/stop_circle:",
                disabled=stopping,
                on_click=run.request_stop,
                key="stop_training",
                help="Saves a checkpoint after the current step, then ends; the run can be resumed.",
            )
        return
    label, why, arguments = "Resume", "Continues from the last checkpoint, to the bit as if it had never stopped.", None
    if summary.state == "finished" and summary.lost is not None:
        label, arguments = f"Train {summary.lost.rest}", summary.lost.arguments
        why = "Continues without a time budget. The learning rate goes back up to where a whole training would be."
    elif summary.state not in ("stopped", "interrupted", "failed") or status.step >= status.steps:
        return
    if st.button(label, icon=":material/resume:", key="resume_training", help=why):
        with errors_as_boxes("The run was not resumed"), st.spinner("Starting the trainer ...", show_time=True):
            resume(run, arguments)
            st.rerun()


def resume(run: RunFolder, arguments: Sequence[str] | None = None) -> None:
    """Start the trainer on the run again and wait until it trains; `arguments` other than to resume it as it is.

    Raises RunError with its last words if it cannot.
    """
    from moe_core.training.launch import start_training

    before = run.status()
    pid = start_training(arguments or ["--run", run.name, "--resume"], run.root)
    deadline = time.monotonic() + LAUNCH_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        is_alive, status = _is_alive(pid), run.status()
        if status is not None and status != before and status.state == "running":
            break
        if not is_alive:
            if status == before:  # a run that cannot be continued keeps its status; the reason is in the log
                words = log_tail(run, lines=1) or "it printed nothing"
                raise RunError(f"the trainer of {run.name!r} ended at once: {words}")
            break
        time.sleep(0.1)
    loaders.forget_runs()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _figures(status: RunStatus, loads: pd.DataFrame, summary: RunSummary) -> None:
    """Four figures, each with what to hold it against."""
    loss = balance = speed = took = st.container(horizontal=True)
    scoring = summary.state == "scoring"
    unigram, nats = summary.unigram_nats, None if scoring else summary.unseen_nats
    gap = None if unigram is None or nats is None else nats - unigram
    loss.metric(
        "Loss on unseen text",
        "scoring" if scoring else "–" if nats is None else f"{nats:.2f} nats",
        None if gap is None else f"{gap:+.2f}",
        delta_color="inverse",
        delta_description=None if gap is None else f"vs guessing, {unigram:.2f}",
        help=term_help("loss"),
    )
    last = loads[loads["step"] == loads["step"].max()] if len(loads) else loads
    balance.metric(
        "Busiest expert",
        "–" if last.empty else f"{number(last['load_imbalance'].max())} × mean",
        delta_description=f"1 is even, {IMBALANCE_LIMIT:.0f} still fine",
        help=term_help("load imbalance"),
    )
    speed.metric(
        "Tokens a second",  # not beside the number, which would then be cut in a narrow window
        "–" if not status.tokens_per_second else f"{status.tokens_per_second:,.0f}",
        delta_description=f"{status.tokens:,} tokens so far",
    )
    trains = summary.is_live and not scoring
    seconds = status.seconds_left if trains else status.elapsed_seconds
    took.metric(
        "Time left" if trains else "Time taken",
        "–" if seconds is None else duration(seconds),
        delta_description="preparing" if summary.state == "preparing" else step_words(status),
    )


def _pictures(names: Sequence[str], along: Along, is_live: bool) -> None:
    with errors_as_boxes():
        run = RunFolder(names[0])
        if run.exists():  # else the numbers say that it is gone
            curves = readable_curves(names)
            show_losses(names, curves, along, is_live=is_live)
            _load(run, is_live)
            show_quantities(curves, along, is_live=is_live)
            _show_words(run)


def _load(run: RunFolder, is_live: bool) -> None:
    """The load of the chosen layer's experts, by step."""
    from moe_core.figures.load import load_over_time_figure, loads_over_time

    records = loaders.metrics(run, "load")
    layers = set(records["layer"]) if len(records) else set()
    if layers:
        chosen = st.session_state.get(state.LAYER)
        layer = chosen if isinstance(chosen, int) and chosen in layers else int(min(layers))
        counted = counted_load_figure(run, layer) if run.is_watched() else None
        figure = counted or load_over_time_figure(loads_over_time(records), layer)
        show_figure(figure, key="load_over_time", terms=["expert load", "load imbalance"], is_live=is_live)


def _show_words(run: RunFolder) -> None:
    """What changed, newest first, and the last text the model wrote."""
    events, samples = loaders.metrics(run, "event"), loaders.metrics(run, "sample")
    if len(events):
        st.markdown("#### What changed")
        newest = [
            f"- Step {step:,}: {plain(str(message))}"
            for step, message in zip(events["step"][::-1], events["message"][::-1], strict=True)
        ]
        st.markdown("\n".join(newest[:SHOWN_EVENTS]))
        if len(newest) > SHOWN_EVENTS:
            with st.expander(f"{len(newest) - SHOWN_EVENTS} earlier changes"):
                st.markdown("\n".join(newest[SHOWN_EVENTS:]))
    if len(samples):
        st.markdown("#### What it writes by now")
        st.caption(f"Written by the model at step {samples['step'].iloc[-1]:,}, from nothing.")
        st.code(str(samples["text"].iloc[-1]), language=None, wrap_lines=True)


def log_tail(run: RunFolder, lines: int = 15) -> str:
    """The last lines the run's trainer printed; "" when it printed nothing."""
    try:
        text = run.log_path.read_bytes()[-20_000:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.replace("\r", "\n").strip().split("\n")[-lines:])
