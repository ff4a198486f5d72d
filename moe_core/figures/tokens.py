"""Figures of single tokens: which expert each token of a text goes to, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd

from moe_core.data.characters import shared_characters
from moe_core.data.tokenizer import END_OF_TEXT, bytes_of_readable
from moe_core.errors import UsageError
from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.layout import AUTOSIZE, AXIS_ROOM, WIDTH, window_around
from moe_core.figures.palette import NEUTRAL, TOKEN_STRENGTH, expert_colour, ink_on
from moe_core.routing.measures.decisions import token_entropy
from moe_core.routing.token_arrays import TokenArrays
from moe_core.words import fixed, percent

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import RoutingTrace

WINDOW = 64
"""Tokens drawn by token_layer_map: more cannot be read, and raw tokens never go to the browser by the thousand."""
LAYERS_DRAWN = 12
"""Of more layers, those around the chosen one are drawn: each has room for the number of its expert."""
LABEL_CHARACTERS = 9  # of a token below its column
TOKENS_OF_EACH_DOMAIN = 120
"""Shown of the first document of every domain, so that the film needs no scrolling."""
MOST_DOMAINS = 5
_DIGIT, _MARGIN, _LINE = 5.8, 4, 12
"""Points that a digit in a cell takes, the room between two numbers, and the height of one."""
_LABEL_ROOM = 84  # for the tokens' text, written upwards


def token_choices(trace: RoutingTrace, start: int = 0, count: int = WINDOW) -> pd.DataFrame:
    """The experts of tokens start .. start + count - 1, one row per token, layer and used slot.

    Columns: token (place in the trace), text, layer, slot (0 = largest weight), expert, weight (0..1). The window is
    moved to lie within the trace; UsageError if count < 1.
    """
    if count < 1:
        raise UsageError(f"count is {count}; expected 1 or more tokens")
    start = max(0, min(start, trace.num_tokens - count))
    window = slice(start, start + count)
    scores_LTK = trace.router_scores[:, window]
    order_LTK = np.argsort(-scores_LTK, axis=2, kind="stable")
    indices_LTK = np.take_along_axis(trace.router_indices[:, window], order_LTK, axis=2)
    scores_LTK = np.take_along_axis(scores_LTK, order_LTK, axis=2)
    L, T, K = indices_LTK.shape
    frame = pd.DataFrame(
        {
            "token": np.tile(np.repeat(np.arange(start, start + T), K), L),
            "text": np.tile(np.repeat([trace.token_text(start + i) for i in range(T)], K), L),
            "layer": np.repeat(trace.layers, T * K),
            "slot": np.tile(np.arange(K), L * T),
            "expert": indices_LTK.reshape(-1).astype(int),
            "weight": scores_LTK.reshape(-1).astype(float),
        }
    )
    return frame[frame["expert"] >= 0].reset_index(drop=True)


def token_layer_map(choices: pd.DataFrame) -> alt.LayerChart:
    """Layers x tokens: the first expert of every token by colour, its weight by strength, and by number where
    that fits.

    `choices` comes from token_choices.
    """
    first = choices[choices["slot"] == 0]
    texts = _names_of_tokens(first)
    data = _with_colours(first).assign(
        name=[f"{row.token} {_short_label(texts[row.token])}" for row in rows(first)],
        sentence=[
            f"Token {row.token} “{texts[row.token]}”, layer {row.layer}: expert {row.expert} with weight "
            f"{fixed(row.weight, 2)}."
            for row in rows(first)
        ],
    )
    tokens = max(data["token"].nunique(), 1)
    base = alt.Chart(data).encode(
        x=alt.X(
            "name:O",
            title="token (place in the text, text)",
            sort=alt.EncodingSortField("token", op="min"),
            axis=alt.Axis(labelAngle=-90, labelLimit=_LABEL_ROOM, labelFontSize=10, labelOverlap="greedy"),
        ),
        y=alt.Y("layer:O", title="MoE layer"),
        tooltip=alt.Tooltip("sentence:N"),
    )
    cells = base.mark_rect(stroke=NEUTRAL, strokeOpacity=0.2).encode(
        color=alt.Color("colour:N", scale=None),
        opacity=alt.Opacity(
            "weight:Q", scale=alt.Scale(domain=[0, 1], range=[0.12, TOKEN_STRENGTH], clamp=True), legend=None
        ),
    )
    depth = data["layer"].nunique()
    digits = len(str(int(data["expert"].max()))) if len(data) else 1
    # Numbers that would run into each other are left out; the tooltip says them.
    fits = f"width >= {tokens * (digits * _DIGIT + _MARGIN):.0f} && height >= {depth * _LINE}"
    numbers = base.mark_text(fontSize=10, tooltip=None).encode(text=alt.condition(fits, "expert:N", alt.value("")))
    layers: list[alt.Chart] = [cells, numbers]
    width, height = max(tokens * 16, WIDTH), min(max(depth * 24, 72), 640) + AXIS_ROOM + _LABEL_ROOM
    return alt.LayerChart(layer=layers, data=data, autosize=AUTOSIZE, width=width, height=height)


def token_path(choices: pd.DataFrame) -> alt.LayerChart:
    """One token's way through all layers: its k experts by colour, number and weight, the first ones joined by a line.

    `choices` comes from token_choices(trace, i, 1).
    """
    if choices["token"].nunique() > 1:
        raise UsageError(
            f"a path is of one token, not of {choices['token'].nunique()}; pass token_choices(trace, i, 1)"
        )
    data = _with_colours(choices).assign(
        sentence=[
            f"Layer {row.layer}: expert {row.expert} with weight {fixed(row.weight, 2)}"
            + (" (first expert)." if row.slot == 0 else ".")
            for row in rows(choices)
        ]
    )
    base = alt.Chart(data).encode(
        x=alt.X("layer:O", title="MoE layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("expert:O", title="expert", sort="descending", axis=alt.Axis(grid=True, gridOpacity=0.5)),
    )
    # The line goes to the first expert of each layer; "order" keeps layers in their order.
    path = base.transform_filter("datum.slot == 0").mark_line(color=NEUTRAL, strokeWidth=1.5, opacity=0.7)
    dots = base.mark_circle(opacity=1).encode(
        color=alt.Color("colour:N", scale=None),
        size=alt.Size("weight:Q", title="weight", scale=alt.Scale(domain=[0, 1], range=[40, 700]),
                      legend=alt.Legend(values=[0.2, 0.5, 1.0], symbolFillColor=NEUTRAL, symbolStrokeWidth=0)),
        tooltip=alt.Tooltip("sentence:N"),
    )  # fmt: skip
    numbers = base.mark_text(fontSize=11, fontWeight="bold").encode(
        text=alt.Text("expert:N"), color=alt.Color("ink:N", scale=None)
    )
    heavy = numbers.transform_filter("datum.weight >= 0.2")
    experts = max(data["expert"].nunique(), 1)
    return alt.LayerChart(
        layer=[path.encode(order=alt.Order("layer:Q")), dots, heavy],
        data=data,
        autosize=AUTOSIZE,
        width=max(90 * data["layer"].nunique(), WIDTH),
        height=min(max(34 * experts, 100), 560) + AXIS_ROOM,
    )


def token_map_figure(trace: RoutingTrace, start: int = 0, layer: int | None = None) -> Figure:
    """Where do the tokens of a text go? A window of tokens through all layers or, of more than LAYERS_DRAWN, through
    those around `layer`."""
    choices, note = _around(token_choices(trace, start), trace, layer)
    first, last = int(choices["token"].min()), int(choices["token"].max())
    shown = choices[choices["slot"] == 0]
    depth = shown["layer"].nunique()
    stays = shown.groupby("token")["expert"].nunique().eq(1).mean() if depth > 1 else float("nan")
    verdict = f"Tokens {first} to {last} of {trace.num_tokens:,}: first expert in each of {depth} layer(s){note}."
    if stays == stays:
        verdict += f" {percent(float(stays))} of them keep one expert number all the way (the numbers are unrelated)."
    return Figure(
        "token_layer_map", "Tokens through the layers", "Which expert does each token go to, layer by layer?", verdict,
        token_layer_map(choices), choices,
    )  # fmt: skip


def token_path_figure(trace: RoutingTrace, token: int, layer: int | None = None) -> Figure:
    """Where does one token go? Its k experts in every layer or, of more than LAYERS_DRAWN, in those around `layer`.
    Raises UsageError for a token outside the trace."""
    if not 0 <= token < trace.num_tokens:
        raise UsageError(f"token {token} is not in the trace; expected 0 to {trace.num_tokens - 1}")
    choices, note = _around(token_choices(trace, token, 1), trace, layer)
    path = " → ".join(str(expert) for expert in choices[choices["slot"] == 0]["expert"])
    verdict = (
        f"Token {token} “{visible(trace.token_text(token))}” goes to expert {path or 'none'}, layer by layer{note}."
    )
    return Figure(
        "token_path", f"Path of token {token}", "Which experts does this token go through?", verdict,
        token_path(choices), choices,
    )  # fmt: skip


def _around(choices: pd.DataFrame, trace: RoutingTrace, layer: int | None) -> tuple[pd.DataFrame, str]:
    """The choices in the layers that are drawn and, where these are not all, which they are."""
    if layer is None or trace.num_layers <= LAYERS_DRAWN:
        return choices, ""
    window = window_around(trace.layers, layer, LAYERS_DRAWN)
    drawn = choices[choices["layer"].isin(window)].reset_index(drop=True)
    if drawn.empty:  # these layers route nothing here
        return choices, ""
    return drawn, f" (layers {window[0]} to {window[-1]} of {trace.num_layers}, those around layer {layer})"


def _names_of_tokens(choices: pd.DataFrame) -> dict[int, str]:
    """Each token's text in one line, by its place; bytes of a character that lies in several tokens beside it."""
    tokens = choices.drop_duplicates("token").sort_values("token")
    data = [bytes_of_readable(str(text)) for text in tokens["text"]]
    names = {}
    for row, held, shared in zip(rows(tokens), data, shared_characters(data), strict=True):
        if shared is None:
            names[int(row.token)] = visible(row.text)
        else:
            characters = visible(shared.ended + shared.whole + shared.begun)
            names[int(row.token)] = f"{characters} ({' '.join(f'{byte:02X}' for byte in held)})"
    return names


def _short_label(text: str) -> str:
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"


def visible(text: str) -> str:
    """`text` with white space and control characters shown as symbols, for labels of one line."""
    if text.strip(" ") and text.isprintable():
        return text
    if len(text) > 3 and not text.strip(" "):
        return f"{len(text)}×␣"
    named = {" ": "␣", "\n": "↵", "\t": "⇥", "\x7f": "␡"}
    return "".join(named.get(c) or _visible_character(c) for c in text)


def _visible_character(character: str) -> str:
    """Control characters as their symbols, other invisible ones (such as those that turn the direction of writing) by
    their number."""
    if ord(character) < 32:
        return chr(0x2400 + ord(character))
    return character if character.isprintable() else f"⟨{ord(character):X}⟩"


def _with_colours(choices: pd.DataFrame) -> pd.DataFrame:
    colours = [expert_colour(int(expert)) for expert in choices["expert"]]
    return choices.assign(colour=colours, ink=[ink_on(colour) for colour in colours])


def snapshot_arrays(trace: RoutingTrace) -> TokenArrays:
    """The beginning of the first document of each domain, as a view of text takes it."""
    return arrays_of_trace(trace.select(first_documents(trace)))


def first_documents(trace: RoutingTrace) -> npt.NDArray[np.bool_]:
    """bool [T]: the beginning of the first document of each domain."""
    mask = np.zeros(trace.num_tokens, dtype=np.bool_)
    shown = 0
    for domain in range(len(trace.domains)):
        own = np.flatnonzero(trace.domain_ids == domain)
        if own.size and shown < MOST_DOMAINS:
            document = own[trace.document_ids[own] == trace.document_ids[own[0]]]
            mask[document[:TOKENS_OF_EACH_DOMAIN]] = True
            shown += 1
    return mask


def arrays_of_trace(shown: RoutingTrace) -> TokenArrays:
    """All tokens of a trace as a view of text takes them; their texts are what the trace's vocabulary says."""
    texts = [shown.token_text(i) for i in range(shown.num_tokens)]
    first = np.flatnonzero(np.diff(shown.document_ids, prepend=shown.document_ids[0] - 1))
    has_entropy = shown.router_logits is not None
    return TokenArrays(
        tokens=[None if text == END_OF_TEXT else bytes_of_readable(text) for text in texts],
        layers=shown.layers,
        num_experts=shown.num_experts,
        indices=shown.router_indices,
        scores=shown.router_scores,
        entropies=np.stack([token_entropy(shown, layer) for layer in shown.layers]) if has_entropy else None,
        domain_ids=shown.domain_ids,
        domains=shown.domains,
        starts=[int(place) for place in first],
    )
