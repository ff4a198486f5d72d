"""The head of every page: the question as title, the answer in one computed sentence; and errors as boxes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from app import loaders
from moe_core.errors import MoescopeError
from moe_core.words import count_of, sentence

# Pages as st.page_link takes them: relative to the entry file.
OVERVIEW = "app_pages/overview.py"
TOKENS = "app_pages/tokens.py"
DOMAINS = "app_pages/domains.py"
EXPERTS = "app_pages/experts.py"
FLOW = "app_pages/flow.py"
PLACEMENT = "app_pages/placement.py"
LONG_CONTEXT = "app_pages/long_context.py"
GENERATION = "app_pages/generation.py"
CHAT = "app_pages/chat.py"
INTERVENTIONS = "app_pages/interventions.py"
TRAINING = "app_pages/training.py"
TIME = "app_pages/time.py"
COMPARE = "app_pages/compare.py"

_CODE = re.compile(r"`([^`\n]+)`")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>~$:^=-])")


def plain(text: str) -> str:
    """`text` with every Markdown character escaped: names of runs and domains come from outside and must stay text."""
    return _MARKDOWN.sub(r"\\\1", text)


def prose(text: str) -> str:
    """A sentence of ours: as `plain`, but what it sets between backticks, a command say, is shown as code."""
    parts = _CODE.split(text)
    return "".join(f"`{part}`" if place % 2 else plain(part) for place, part in enumerate(parts))


def header(question: str, answer_text: str | None = None) -> None:
    """Title and, where it is known already, the answer. Both are shown as written: no Markdown in them is read."""
    st.title(plain(question), anchor=False)
    if answer_text:
        answer(answer_text)


def answer(text: str) -> None:
    """The page's answer, shown as written, code as code."""
    st.markdown(prose(text))


def error_box(error: MoescopeError, *, title: str = "This could not be shown") -> None:
    """One line that names the value, what was expected and what to do."""
    st.error(f"**{plain(title)}.** {prose(sentence(str(error)))}", icon=":material/error:")


@contextmanager
def errors_as_boxes(title: str = "This could not be shown") -> Iterator[None]:
    """Show a MoescopeError raised inside as a box. The frame wraps every page; a fragment, which reruns without the
    frame, wraps its own body."""
    try:
        yield
    except MoescopeError as error:
        error_box(error, title=title)


def ago(seconds_since_1970: float) -> str:
    """ "just now", "5 min ago", "3 h ago", "2 days ago", or a date."""
    age = time.time() - seconds_since_1970
    if seconds_since_1970 <= 0:
        return "at an unknown time"
    if age < 60:
        return "just now"
    if age < 3600:
        return f"{age / 60:.0f} min ago"
    if age < 86_400:
        return f"{age / 3600:.0f} h ago"
    if age < 7 * 86_400:
        return f"{count_of(round(age / 86_400), 'day')} ago"
    return time.strftime("%d %b %Y", time.localtime(seconds_since_1970))


def show_notes(name: str) -> None:
    """What must be known about a run: that its training was shortened, and what is wrong with its files."""
    found = next((item for item in loaders.runs() if item.name == name), None)
    if found is None:
        return
    if found.lost is not None and not found.is_live:
        lost = found.lost
        st.warning(
            f"**{plain(lost.sentence)}** The command below trains {plain(lost.rest)}.", icon=":material/timer_off:"
        )
        st.code(lost.command, language=None, wrap_lines=True)
    if found.notes:
        st.caption(prose(" ".join(found.notes)))
