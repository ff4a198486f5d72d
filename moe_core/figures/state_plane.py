"""Do states of one text lie together? Embeddings of halves of documents on a plane, coloured by domain or by expert."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from moe_core.figures.figure import Figure
from moe_core.figures.labels import rows
from moe_core.figures.palette import NEUTRAL, domain_colour, expert_colour
from moe_core.words import percent

HEIGHT = 420
MAX_EXPERTS = 9
"""Of more the most frequent have colours, as colours repeat every ten."""
OTHERS = "others"


def states_figure(frame: pd.DataFrame, domains: Sequence[str], verdict: str, layer: int | None = None) -> Figure:
    """A point a half of a document; `layer`: colour it by the expert that takes most of the document there, None = by
    its domain. `frame`: evaluation.half_states.plane."""
    if layer is None:
        names, colours = frame["domain"], {name: domain_colour(name, domains) for name in domains}
    else:
        experts = frame[f"layer_{layer}"]
        shown = experts.value_counts().index[:MAX_EXPERTS]
        names = experts.map(lambda expert: f"expert {expert}" if expert in shown else OTHERS)
        colours = {f"expert {expert}": expert_colour(expert) for expert in sorted(shown)}
        colours |= {OTHERS: NEUTRAL} if (names == OTHERS).any() else {}
    sentences = [
        f"Half {row.half} of document {row.document} ({row.domain}): "
        f"{'nearest to its other half' if row.found else 'nearer to a half of another document'}."
        for row in rows(frame)
    ]
    words = (
        f"{place} direction ({percent(share)} of the variance)"
        for place, share in zip(("first", "second"), frame.attrs["shares"], strict=True)
    )
    x, y = next(words), next(words)
    bare = alt.Axis(labels=False, ticks=False)
    points = (
        alt.Chart(frame.assign(group=names, sentence=sentences))
        .mark_point(size=45, filled=True, opacity=0.75)
        .encode(
            x=alt.X("x:Q", title=x, axis=bare),
            y=alt.Y("y:Q", title=y, axis=bare),
            color=alt.Color(
                "group:N",
                scale=alt.Scale(domain=list(colours), range=list(colours.values())),
                legend=alt.Legend(title=None, orient="top", columns=4),
            ),
            shape=alt.Shape("half:N", scale=alt.Scale(domain=[1, 2], range=["circle", "triangle-up"]), legend=None),
            tooltip=alt.Tooltip("sentence:N"),
        )
        .properties(width="container", height=HEIGHT)
    )
    name = "states_by_domain" if layer is None else f"states_by_expert_of_layer_{layer}"
    return Figure(name, "States of halves of documents", "Do states of one text lie together?", verdict, points, frame)
