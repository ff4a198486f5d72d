"""Pictures of agreement and of margins at flips: few layers, many, and where little is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe_core.figures.flips import LEAST_MARGIN, agreement_figure, margins_figure
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.agreement import agreement_verdict, routing_agreement
from moe_core.routing.measures.flip_margins import flip_margins, margins_verdict


def two(L: int, E: int, noise: float) -> tuple[RoutingTrace, RoutingTrace]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(L, 96, E))

    def routed(values: Any) -> RoutingTrace:
        chosen = np.argsort(-values, axis=-1)[..., :2]
        return RoutingTrace.from_arrays(
            router_indices=chosen,
            router_scores=np.take_along_axis(np.exp(values), chosen, axis=-1),
            router_logits=values,
            num_experts=E,
            token_ids=np.arange(96),
            document_ids=np.arange(96) // 12,
        )

    return routed(logits), routed(logits + noise * rng.normal(size=logits.shape))


def domains_of(chart: Any) -> list[list[float]]:
    scales = [layer["encoding"]["x"].get("scale") for layer in chart.to_dict()["layer"] if "x" in layer["encoding"]]
    return [scale["domain"] for scale in scales if scale]


@pytest.mark.parametrize(("L", "E"), [(4, 8), (48, 128)])
def test_agreement_and_margins_by_layer(L: int, E: int) -> None:
    a, b = two(L, E, 0.1)
    found, margins = routing_agreement(a, b), flip_margins(a, b)
    figure = agreement_figure(found)
    assert (figure.verdict, len(figure.frame)) == (agreement_verdict(found), L)
    starts = domains_of(figure.chart)
    assert len({tuple(domain) for domain in starts}) == 1  # one without it would bring 0 into the scale
    assert 0 < starts[0][0] <= figure.frame[["low", "first_low"]].min().min()
    figure = margins_figure(margins)
    assert (figure.verdict, len(figure.frame)) == (margins_verdict(margins), L)
    assert figure.frame["at_flips"].median() < figure.frame["elsewhere"].median()
    assert domains_of(figure.chart)[0][0] == LEAST_MARGIN
    sentences = figure.chart.data["sentence"]
    assert sentences.str.contains("closer in").all()


def test_what_is_the_same_or_unknown_is_drawn_too() -> None:
    a, b = two(2, 6, 0.2)
    assert "no token goes to other experts" in margins_figure(flip_margins(a, a)).chart.data["sentence"][0]
    assert agreement_figure(routing_agreement(a, a)).frame["identical"].eq(1).all()
    even = [replace(one, router_logits=None, router_scores=np.full_like(one.router_scores, 0.5)) for one in (a, b)]
    figure = margins_figure(flip_margins(*even))
    assert "whose margin is not known" in figure.chart.data["sentence"][0]
    figure.chart.to_dict()
    mixed = replace(b, router_indices=np.stack([a.router_indices[0], b.router_indices[1]]))
    figure = margins_figure(flip_margins(a, mixed))
    assert figure.frame["at_flips"].isna().tolist() == [True, False]
    figure.chart.to_dict()
