"""Text with every token on the colour of its expert; hover, click, arrow keys and a layer scrubber, all in the browser.

Python sends compact arrays once; the browser repaints without asking again. Tokens are untrusted: they travel as JSON
strings and become text nodes (see token_view.js), never markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import streamlit as st

from app import state
from app.components.goto import go_to_expert
from moe_core.data.characters import SharedToken, shared_characters
from moe_core.figures.palette import DOMAIN_COLOURS, EXPERT_COLOURS, HEAT, TOKEN_STRENGTH
from moe_core.inference.named_experts import names_of
from moe_core.inference.subjects import Subject
from moe_core.routing.token_arrays import TokenArrays

EASIER, HARDER = "#6f63b8", HEAT
"""Change of loss below and above 0: purple and orange, as on every map that diverges."""
CHANGE_LIMIT_NATS = 2.0
"""Tokens whose loss changes by this much or more have the full colour, in every text and for every intervention."""

_HERE = Path(__file__).resolve().parent
_MOUNT = st.components.v2.component(
    "moescope_token_view",
    html=(_HERE / "token_view.html").read_text(encoding="utf-8"),
    css=(_HERE / "token_view.css").read_text(encoding="utf-8"),
    # A component is one script: what stands in one of these files is seen in all of them.
    js="".join((_HERE / name).read_text(encoding="utf-8") for name in ("words.js", "token_steps.js", "token_view.js")),
)
# Characters that would hide or reorder text are written as codes: control, format, surrogate, private, separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SPACES = {" ": "space", "\n": "line break", "\t": "tab"}


@dataclass(frozen=True)
class TokenChoice:
    """What the user did in the view."""

    token: int | None
    """Selected token of this text."""
    layer: int | None
    """Layer number the scrubber was left at in this rerun; None when it was not moved."""


def token_view(
    payload: dict[str, Any],
    *,
    layer: int,
    key: str,
    on_layer: Callable[[], None] | None = None,
    selected: int | None = None,
    link_from: int | None = None,
    subject: Subject | None = None,
) -> TokenChoice:
    """Mount the view for `view_payload(...)`, coloured by `layer` at first.

    `on_layer` runs before the rerun that moving the scrubber causes; the value is st.session_state[key].layer.
    `selected`: the token that is selected until the reader selects another. `link_from`: the number that the first
    token has in the URL, which then follows the selection; None leaves the URL alone. `subject`: whose experts these
    are, if not those of what the side bar shows.
    """
    whose = state.subject() if subject is None else subject
    known = selected if selected is not None and 0 <= selected < payload["count"] else None
    result = _MOUNT(
        key=key,
        data={
            **payload,
            "layer": layer,
            "names": names_of(whose)[0].by_layer,
            "selected": known,
            "link_from": link_from,
        },
        on_picked_change=_declare_key,
        on_layer_change=on_layer or _declare_key,
        on_expert_change=partial(_go_to_expert, key, whose.name),
    )
    if st.session_state.get(state.GOING_TO):
        st.rerun()  # this was a fragment alone: the frame sends on what goes elsewhere
    picked = result.picked if isinstance(result.picked, dict) else {}
    token = picked.get("token")
    belongs = picked.get("series") == payload["series"] and isinstance(token, int) and 0 <= token < payload["count"]
    return TokenChoice(token if belongs else known, result.layer)


def view_payload(arrays: TokenArrays, *, series: str, live: bool = False, mode: str = "first") -> dict[str, Any]:
    """The view's data as JSON values; arrays as base64 of little-endian numbers.

    `series` names the text: as long as it stays, tokens are only ever added at the end (`live`: while they come).
    `mode` is what tokens are coloured by at first, one of the MODES of token_view.js; the reader may choose another.
    """
    order_LTK = np.argsort(-arrays.scores, axis=2, kind="stable")
    indices_LTK = np.take_along_axis(arrays.indices, order_LTK, axis=2)
    scores_LTK = np.take_along_axis(arrays.scores, order_LTK, axis=2)
    scale = max(float(scores_LTK.max(initial=0.0)), 1e-9)
    weights_LTK = np.round(np.clip(scores_LTK / scale, 0, 1) * 65535)
    shown = display(arrays.tokens)
    # Pieces are numbered in order of first use.
    places = {piece: place for place, piece in enumerate(dict.fromkeys(shown))}
    T = len(arrays.tokens)
    domain_ids = np.zeros(T, np.int16) if arrays.domain_ids is None else arrays.domain_ids
    entropies = None if arrays.entropies is None else np.round(np.clip(np.nan_to_num(arrays.entropies), 0, 1) * 255)
    payload: dict[str, Any] = {
        "series": series,
        "live": live,
        "count": T,
        "layers": [int(layer) for layer in arrays.layers],
        "experts": arrays.num_experts,
        "top_k": int(indices_LTK.shape[2]),
        "pieces": [astuple(piece) for piece in places],
        "tokens": _packed([places[piece] for piece in shown], "<i4"),
        "indices": _packed(indices_LTK, "<i2"),
        "weights": _packed(weights_LTK, "<u2"),
        "weight_scale": scale,
        "entropy": _packed(entropies, "u1"),
        "losses": _packed(arrays.losses, "<f4"),
        "ranks": _packed(arrays.ranks, "<i4"),
        "changes": _packed(arrays.changes, "<f4"),
        "change_limit": CHANGE_LIMIT_NATS,
        "change_colours": [EASIER, HARDER],
        "marks": _packed(arrays.marks, "u1"),
        "mark_label": arrays.mark_label,
        "mode": mode,
        "domain_ids": _packed(domain_ids, "<i2"),
        "domains": list(arrays.domains),
        "headings": len(arrays.domains) > 1,
        "starts": [int(start) for start in arrays.starts],
        "expert_colours": list(EXPERT_COLOURS),
        "domain_colours": list(DOMAIN_COLOURS),
        "heat_colour": HEAT,
        "strength": TOKEN_STRENGTH,
    }
    payload["id"] = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]
    return payload


@dataclass(frozen=True)
class Piece:
    """How a token is shown."""

    text: str
    """In the text: its whole characters, and the one that it begins."""
    is_code: bool
    """Whether that is small, like a code."""
    line: str
    """In one line of its own."""
    name: str
    """Read aloud."""
    reach: int = 0
    """Over how many tokens its last character reaches, this one included; 0 = over this one only."""
    goes_on: bool = False
    """Whether it holds bytes of a character that an earlier token began, which is not in `text`."""
    last: str = ""
    """The character that reaches on, at the end of `text`."""


def display(tokens: Sequence[bytes | None]) -> list[Piece]:
    """How each token of a text is shown.

    Line breaks and tabs stay what they are, with a sign before them; bytes of one character that lie in several tokens
    are shown as that character, over them all; bytes that are no characters, and characters that would be invisible or
    reorder the line, are written as codes.
    """
    return [
        _display_alone(token) if shared is None else _display_shared(token or b"", shared)
        for token, shared in zip(tokens, shared_characters(tokens), strict=True)
    ]


def _display_alone(token: bytes | None) -> Piece:
    if token is None:
        return Piece("start", True, "start of text", "start of text")
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return Piece(f"‹{_codes(token)}›", True, f"bytes {_codes(token)}", f"bytes {_codes(token)}")
    shown = "".join(_shown(character) for character in text)
    line = "".join(_in_line(character, text) for character in text)
    is_code = not any(character not in "\n\t" and _shown(character) == character for character in text)
    return Piece(shown, is_code, line, _spoken(text, line))


def _display_shared(token: bytes, shared: SharedToken) -> Piece:
    last = _shown(shared.begun) if shared.begun else ""
    rest = f"‹{_codes(shared.rest)}›" if shared.rest else ""
    characters = shared.ended + shared.whole + shared.begun
    line = "".join(_in_line(character, characters) for character in characters)
    about = f"bytes {_codes(token)} of {line}"
    text = "".join(_shown(character) for character in shared.whole) + rest + last
    return Piece(text, False, about, f"part of {line}", shared.reach, bool(shared.ended), last)


def _shown(character: str) -> str:
    if character in "\n\t":
        return ("↵" if character == "\n" else "⇥") + character
    return f"‹U+{ord(character):04X}›" if unicodedata.category(character) in _HIDDEN else character


def _in_line(character: str, text: str) -> str:
    """`character` of `text` where that is named: the sign of a space only where there is nothing else."""
    if character == " ":
        return " " if text.strip(" ") else "␣"
    return _shown(character).rstrip("\n\t")


def _spoken(text: str, line: str) -> str:
    """What stands in a line, in words where that is white space alone: signs are not read aloud."""
    if text and not text.strip(" \n\t"):
        return ", ".join(
            _SPACES[character] if times == 1 else f"{times} {_SPACES[character]}s"
            for character, times in ((character, len(list(run))) for character, run in groupby(text))
        )
    return line.strip() or "empty token"


def _codes(data: bytes) -> str:
    return " ".join(f"{byte:02X}" for byte in data)


def _packed(values: npt.ArrayLike | None, dtype: str) -> str | None:
    return None if values is None else base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()


def _go_to_expert(key: str, name: str) -> None:
    """For the callback of a view: to the expert of a token, {"layer", "expert"}, of what has this name."""
    if (wanted := st.session_state[key].expert) is not None:
        go_to_expert(int(wanted["layer"]), int(wanted["expert"]), name)


def _declare_key() -> None:
    """Declares a key of the component, so that its value is always there to read."""
