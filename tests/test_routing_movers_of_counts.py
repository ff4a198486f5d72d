"""Which experts changed what they take, told from counts alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moe_core.errors import TraceError
from moe_core.routing import RoutingCounts, RoutingTrace, metrics
from moe_core.routing.measures.movers import movers_verdict
from tests.routing_support import random_trace


def trace_with_a_taste(move: float, seed: int) -> RoutingTrace:
    """24 sources of 40 tokens, one of four experts each; expert 3 is preferred by `move`."""
    taste = np.array([0.0, 0.0, 0.0, move])
    chosen = np.argmax(np.random.default_rng(seed).gumbel(size=(960, 4)) + taste, axis=1)[:, None]
    return RoutingTrace.from_arrays(
        router_indices=chosen, router_scores=np.ones((960, 1)), num_experts=4, token_ids=np.arange(960) + seed,
        document_ids=np.repeat(np.arange(24), 40),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_movers_of_counts_by_source_are_those_of_the_texts_they_were_counted_on(seed: int) -> None:
    a, b = random_trace(seed), random_trace(seed + 50)
    apart = replace(b, token_ids=b.token_ids + 1)
    expected = metrics.routing_movers(a, apart)
    for pair in ((a.counts(), b.counts()), (a, b.counts()), (a.counts(), apart)):
        pd.testing.assert_frame_equal(metrics.routing_movers(*pair), expected)


def test_a_planted_mover_is_found_by_source_and_shown_as_counted_without_sources() -> None:
    a, b = trace_with_a_taste(0.0, seed=1), trace_with_a_taste(1.5, seed=2)
    best = metrics.routing_movers(a.counts(), b.counts()).iloc[0]
    assert (best["expert"], best["sources"], best["uncertain"]) == (3, 24, False)
    for by in ("domain", "all"):
        frame = metrics.routing_movers(a.counts(), b.counts(by))
        assert frame["uncertain"].all()
        assert frame["low"].isna().all()
        assert set(frame["sources"]) == {0}
        as_counted = ["expert", "share_a", "share_b"]
        assert frame.iloc[0][as_counted].tolist() == best[as_counted].tolist()
        assert "the counts do not tell sources apart. As counted, most for expert 3 of layer 0" in movers_verdict(frame)


def test_domains_that_are_not_told_apart_by_source_are_no_sources_of_the_whole() -> None:
    """Eight domains without sources are not eight sources: how much of each there is was somebody's choice."""
    a = random_trace(0)
    many = replace(a, domains=[f"domain {n}" for n in range(8)], domain_ids=(np.arange(60) % 8).astype(np.int16))
    frame = metrics.routing_movers(many.counts("domain"), many.counts("domain"))
    assert frame["p_adjusted"].isna().all()


def test_counts_of_choices_are_held_against_choices() -> None:
    """Without K a choice is all there is: half of the choices of two a token is not the share of the tokens, 1."""
    tokens, choices = RoutingCounts.from_arrays([[10, 6, 4]], top_k=2), RoutingCounts.from_arrays([[5, 3, 2]])
    frame = metrics.routing_movers(tokens, choices)
    assert frame["change"].tolist() == [0.0, 0.0, 0.0]
    assert set(frame["unit"]) == {"choice"}
    assert movers_verdict(frame).endswith("As counted, no share did.")
    other = metrics.routing_movers(tokens, RoutingCounts.from_arrays([[7, 2, 1]]))
    assert "As counted, most for expert 0 of layer 0, from 50 % to 70 % of all choices (+20 points)." in movers_verdict(
        other
    )
    with pytest.raises(TraceError, match="4 and 3 experts"):
        metrics.routing_movers(RoutingCounts.from_arrays([[1, 1, 1, 1]]), choices)
