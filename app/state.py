"""Every session key in one place. What is chosen in the side bar is chosen once, kept on all pages, and in the URL.

Widgets own the keys `run`, `layer` and `compare` (see components/pickers.py); pages read them through this module only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st
from streamlit.errors import StreamlitAPIException

from moe_core.errors import RunError
from moe_core.inference.subjects import OPENED, Live, RoutingFile, Subject
from moe_core.program import program
from moe_core.runs import RunFolder
from moe_core.runs.names import is_run_name

RUN = "run"
"""str, in the URL: the chosen run, or the name of what was opened instead ("trace text.parquet")."""
LAYER = "layer"
"""int, in the URL: the chosen MoE layer, counted from 0 over all layers."""
COMPARE = "compare"
"""str or None, in the URL: what the run is held against, another run's name or "step 100" (a snapshot of its own)."""
EXPERT = "expert"
"""int, in the URL: the chosen expert of the chosen layer, on the Experts page."""
CHANGED_EXPERT = "changed_expert"
"""int, in the URL: the one on the Interventions page. A name of its own, as Streamlit drops from a URL what the page
that is left has bound to a widget, also where Back leads from one to the other."""
STEP = "step"
"""int, in the URL: the snapshot of training that the Time page shows; a URL without it means the newest."""
BESIDE = "beside"
"""list of str, in the URL: other runs whose curves the Training page draws with those of the chosen one."""
ALONG = "along"
"""str, in the URL: the horizontal axis of the Training page's curves, see figures.run_curves.ALONG."""
DOCUMENT, TOKEN = "document", "token"
"""int, in the URL: a document of the routing that is measured, and a position in it, which the Tokens page shows."""
NEW_FIELDS = "new_fields"
"""list of str: fields of the configuration that the form changes; what they are changed to has keys that begin so."""
NEW_PRESET, NEW_ROUTER, NEW_BALANCING, NEW_SOURCE, NEW_UPLOAD, NEW_PATH, NEW_NAME, NEW_SEED = (
    "new_preset",
    "new_router",
    "new_balancing",
    "new_source",
    "new_upload",
    "new_path",
    "new_name",
    "new_seed",
)
"""Fields of the form that starts a training (components/new_run.py)."""
NEW_RUN = "new_run"
"""bool: is the form that starts a training open?"""
_FOLD_NEW_RUN = "fold_new_run"
"""bool: a training was started, so the form folds away when it is drawn next."""
MORE_TEXT = "more_text"
"""bool, in the URL: is the domain map wanted of more text than the probe?"""
GOING_PAGE, GOING_TO = "going_page", "going_to"
"""str: the page to go to next, and what follows the page in its address (components/goto.py)."""
TOKENS_SAVED, GENERATION_SAVED, PAIR_SAVED, LOSS_SAVED, TEXTS = (
    "tokens_saved",
    "generation_saved",
    "pair_saved",
    "loss_saved",
    "texts",
)
"""str, in the URL: names of what was typed on the Tokens and the Generation page, and on Interventions as a beginning
and as a text to read; and which two texts Interventions shows."""
THREAD = "thread"
"""str, in the URL: the id of the thread that the Chat page shows."""
_ONE_PAGE = {
    **dict.fromkeys((TOKENS_SAVED, DOCUMENT, TOKEN), "tokens"),
    GENERATION_SAVED: "generation",
    THREAD: "chat",
    **dict.fromkeys((PAIR_SAVED, LOSS_SAVED, TEXTS), "interventions"),
    **dict.fromkeys(("text_a_saved", "text_b_saved", "compare_saved"), "compare"),
}
"""What stands in the URL without a widget that is bound to it, by the one page that it is for."""
T = TypeVar("T")
_STEP = "step "
_LAYER_OF = "layer_of"
"""str: what the layer picker was drawn for last."""
_LAST_EXPERT = "last_expert"
"""int: the expert that a page showed last; other pages begin with it."""
_TRAIL = "trail"
"""list of str: what was chosen in this session, the latest last."""
_NEXT_RUN = "next_run"
"""str: run to choose when the side bar is drawn next."""
_NEXT_COMPARE = "next_compare"
"""str: what to hold it against when the side bar is drawn next."""
_MISSING_RUN = "missing_run"
"""str: run that a link or an earlier choice named and that is not there; until another is chosen."""


def selected_run() -> RunFolder:
    """The run chosen in the side bar. Raises RunError when there is none."""
    chosen = subject()
    if not isinstance(chosen, RunFolder):
        raise RunError(f"{chosen.name} is no run; choose a run in the side bar")
    return chosen


def live_subject() -> Live:
    """The run or model that is chosen. Raises RunError when a trace is."""
    chosen = subject()
    if isinstance(chosen, RoutingFile):
        raise RunError(f"{chosen.name} cannot read or write text; choose a run or a model in the side bar")
    return chosen


def subject() -> Subject:
    """The run, or what was opened, that is chosen in the side bar. Raises RunError when there is none."""
    name = st.session_state.get(RUN)
    if not name:
        raise RunError(f"no run is chosen; start one on the Training page, or with `{program()} --quick --run first`")
    return OPENED.find(name) or RunFolder(name)


def selected_layer() -> int:
    """The MoE layer chosen in the side bar. Raises RunError when the run has none to choose."""
    layer = st.session_state.get(LAYER)
    if layer is None:
        raise RunError("no layer is chosen; choose a run whose configuration can be read")
    return int(layer)


def layer_if_any() -> int:
    """The same where a dense model may be chosen; -1 if it is."""
    layer = st.session_state.get(LAYER)
    return -1 if layer is None else int(layer)


@dataclass(frozen=True)
class Compared:
    """What the chosen run is held against."""

    subject: Subject
    step: int | None
    """Step of a probe snapshot; None = the run's newest state."""


def compared() -> Compared | None:
    """What the side bar's "compare with" names; None when nothing is chosen there."""
    value = st.session_state.get(COMPARE)
    if not value:
        return None
    step = str(value).removeprefix(_STEP)
    if step == value:
        return Compared(OPENED.find(value) or RunFolder(value), None)
    return Compared(selected_run(), int(step))


def step_option(step: int) -> str:
    """How "compare with" names a snapshot of the chosen run: no run's name, as those have no spaces."""
    return f"{_STEP}{step}"


def open_expert(layer: int, expert: int) -> None:
    """Choose an expert of a layer. For callbacks: the widgets that own these keys are drawn after them."""
    st.session_state[LAYER] = layer
    st.session_state[EXPERT] = st.session_state[CHANGED_EXPERT] = st.session_state[_LAST_EXPERT] = expert


def preset_expert(key: str, num_experts: int, default: int) -> list[int]:
    """Before a picker of experts is drawn under `key`, EXPERT or CHANGED_EXPERT: its options. What it begins with is
    the expert that another page showed last, else `default`."""
    experts = list(range(num_experts))
    given = st.session_state.get(_LAST_EXPERT, st.query_params.get(EXPERT))  # links to other pages once had it so
    preset(key, experts, next((expert for expert in experts if str(expert) == str(given)), default))
    return experts


def remember_expert(expert: int) -> int:
    """This is the expert that the page shows now."""
    st.session_state[_LAST_EXPERT] = expert
    return expert


def linked_token() -> tuple[int | None, int | None]:
    """The document of a routing that the URL names by its number, and a token by its position in it; None = none."""
    found = []
    for key in (DOCUMENT, TOKEN):
        digits = str(st.query_params.get(key, "")).partition(" ")[0]  # older links went on with the first words
        found.append(int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None)
    document, token = found
    return document, None if document is None else token


def link_token(document: int | None, token: int | None) -> None:
    """Write into the URL what linked_token reads."""
    for key, value in ((DOCUMENT, document), (TOKEN, token)):
        if value is not None:
            st.query_params[key] = str(value)
        elif key in st.query_params:
            del st.query_params[key]


def follow_layer(view: str) -> None:
    """For callbacks: the layer that the scrubber of the token view under the key `view` was left at becomes the layer
    of all pages."""
    if (scrubbed := st.session_state[view].layer) is not None:
        st.session_state[LAYER] = scrubbed


def open_run(name: str) -> None:
    """Choose `name` when the side bar is drawn next: its widget owns the key until then."""
    st.session_state[_NEXT_RUN] = name
    forget_missing_run()


def compare_with(name: str) -> None:
    """As open_run, for what is held against it."""
    st.session_state[_NEXT_COMPARE] = name


def preset_comparison(options: Sequence[str]) -> None:
    """What `preset` does, for what is held against it; what compare_with asked for comes first."""
    if (wanted := st.session_state.pop(_NEXT_COMPARE, None)) in options:
        st.session_state[COMPARE] = wanted
    preset(COMPARE, options, None)


def fold_new_run() -> None:
    """The form that starts a training folds away when it is drawn next: its widget owns the key until then."""
    st.session_state[_FOLD_NEW_RUN] = True


def preset_new_run() -> None:
    """Before the form is drawn: fold it away once a training was started from it."""
    if st.session_state.pop(_FOLD_NEW_RUN, False):
        st.session_state[NEW_RUN] = False


def close(name: str) -> None:
    """For callbacks: what was opened under this name is offered no longer. What was shown before it is chosen."""
    OPENED.close(name)
    if trail := [other for other in st.session_state.get(_TRAIL, []) if other != name]:
        open_run(trail[-1])


def preset_run(names: Sequence[str], default: str) -> None:
    """What `preset` does, for the run; a run that open_run asked for comes first, and one not there is remembered.

    One that was closed, here or in another browser, gives way to what was shown before it.
    """
    shown = st.session_state[_TRAIL] = [name for name in st.session_state.get(_TRAIL, []) if name in names]
    wanted = st.session_state.pop(_NEXT_RUN, None)
    if wanted in names:
        st.session_state[RUN] = wanted
    asked = st.session_state.get(RUN) or st.query_params.get(RUN)
    if asked and asked not in names:
        st.session_state[_MISSING_RUN] = asked
    preset(RUN, names, shown[-1] if shown else default, in_link=False)


def remember_shown(name: str) -> None:
    """This is what the side bar shows now."""
    st.session_state[_TRAIL] = [*(other for other in st.session_state.get(_TRAIL, []) if other != name), name]


def has_subject() -> bool:
    """Whether this session has chosen something already."""
    return bool(st.session_state.get(RUN))


def missing_run() -> str | None:
    """The run that was asked for and is not there, or None."""
    return st.session_state.get(_MISSING_RUN)


def forget_missing_run() -> None:
    """Another run was chosen."""
    st.session_state.pop(_MISSING_RUN, None)


def preset(
    key: str, options: Sequence[Any], default: Any, shown: Callable[[Any], str] = str, *, in_link: bool = True
) -> None:
    """Before a widget bound to the URL is drawn: keep what the session or the URL says, if it is still an option.

    A default given to the widget itself would vanish from the URL, so that a link would mean another run tomorrow.
    `shown`: the widget's format_func; the URL holds what is shown. `in_link`: write it into the URL where it is
    missing there.
    """
    value = st.session_state[key] if key in st.session_state else st.query_params.get(key)
    written = {str(option): option for option in options}
    if value is None:  # also what the browser's Back to a URL without it makes of it
        st.session_state[key] = default
    elif str(value) in written and key not in st.session_state:
        if str(value) not in map(shown, options):
            st.session_state[key] = written[str(value)]  # a link that was typed: the widget knows what it shows alone
    elif str(value) not in {*written, *map(shown, options)}:
        st.session_state[key] = default
    elif in_link and key not in st.query_params:
        st.session_state[key] = value  # as if it were new: then the widget writes it into the URL again
    if in_link and (chosen := st.session_state.get(key)) is not None:
        _write_link({key: shown(chosen) if chosen in options else str(chosen)})


def needs_layer(name: str, layers: Sequence[int]) -> bool:
    """Whether the layer picker of what has this name must begin anew, drawn for the first time or after something else.

    From one run to another the layer stays, so that both can be held against each other. A layer of another model says
    nothing of a file.
    """
    before = st.session_state.get(_LAYER_OF)
    st.session_state[_LAYER_OF] = name
    if before is None or before == name:
        given = st.session_state.get(LAYER) if LAYER in st.session_state else st.query_params.get(LAYER)
        return str(given) not in map(str, layers)
    return not (is_run_name(before) and is_run_name(name))


def present(value: T | None) -> T:
    """What a widget that always has a choice gave back, once it was `preset`.

    The browser's Back to a URL without its key leaves it with nothing, whatever the session says: the page is drawn
    again, now with the default.
    """
    if value is None:
        st.rerun()
    return value


def drop_links_of_other_pages(page: str) -> None:
    """Before a page is drawn: what is for another page alone goes out of the URL, as it does for bound widgets."""
    for key in [key for key in st.query_params if _ONE_PAGE.get(key, page) != page]:
        del st.query_params[key]


def write_link(*keys: str) -> None:
    """Before widgets bound to the URL are drawn the first time: what was `preset` goes into it where it is missing.

    All at once, as each change of the URL of a page that has just been opened is one more step of the browser's Back.
    """
    _write_link({key: str(st.session_state[key]) for key in keys if key in st.session_state})


def _write_link(chosen: dict[str, str]) -> None:
    missing = {key: value for key, value in chosen.items() if key not in st.query_params}
    if missing:
        with suppress(StreamlitAPIException):  # a widget was drawn under the key before: it writes by itself
            st.query_params.update(missing)
