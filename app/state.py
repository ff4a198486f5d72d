"""Every session key in one place. A run and a layer are chosen once, kept on all pages, and stand in the URL.

Widgets own the keys `run` and `layer` (see components/pickers.py); pages read them through this module only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from moe_core.errors import RunError
from moe_core.runs import RunFolder

RUN = "run"
"""str, in the URL: the chosen run."""
LAYER = "layer"
"""int, in the URL: the chosen MoE layer, counted from 0 over all layers."""
NEW_RUN = "new_run"
"""str, in the URL: "open" while the form for a new training is shown."""
DOMAINS_TOKENS = "domains_tokens"
"""dict[run name, tokens per domain]: runs whose domain map was asked for on more text."""


def selected_run() -> RunFolder:
    """The run chosen in the side bar. Raises RunError when there is none."""
    name = st.session_state.get(RUN)
    if not name:
        raise RunError("no run is chosen; start one on the Training page, or with `python main.py --quick --run first`")
    return RunFolder(name)


def selected_layer() -> int:
    """The MoE layer chosen in the side bar. Raises RunError when the run has none to choose."""
    layer = st.session_state.get(LAYER)
    if layer is None:
        raise RunError("no layer is chosen; choose a run whose configuration can be read")
    return int(layer)


def choose_run(name: str) -> None:
    """Make `name` the chosen run; for callbacks, which run before the side bar is drawn."""
    st.session_state[RUN] = name


def preset(key: str, options: Sequence[Any], default: Any) -> None:
    """Before a widget bound to the URL is drawn: keep what the session or the URL says, if it is still an option.

    A default given to the widget itself would vanish from the URL, so that a link would mean another run tomorrow.
    """
    value = st.session_state[key] if key in st.session_state else st.query_params.get(key)
    if str(value) not in map(str, options):
        st.session_state[key] = default
