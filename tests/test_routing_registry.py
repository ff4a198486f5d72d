"""The list of measures: complete, without contradictions, and what a record says of a measure is true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moe_core.figures.run_figures import sections_of_trace
from moe_core.routing import baselines, metrics
from moe_core.routing.calibration import random_trace
from moe_core.routing.measures import beyond_length, glossary, registry
from moe_core.routing.measures.measure import Measure
from moe_core.routing.measures.registry import MEASURES
from moe_core.routing.statistics import permutation

OF_A_TRACE = [measure for measure in MEASURES if measure.of == "trace" and measure.function is not None]


def test_the_list_holds_every_record_once() -> None:
    records = [value for value in vars(registry).values() if isinstance(value, Measure)]
    assert list(MEASURES) == records
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    assert len({measure.title for measure in MEASURES}) == len(MEASURES)


def test_every_term_is_said_once() -> None:
    of_measures = [term.name for measure in MEASURES for term in measure.terms]
    others = len(glossary.GENERAL) + len(beyond_length.TERMS)
    assert len(of_measures) + others == len(glossary.GLOSSARY)


def test_the_facades_know_every_measure_and_every_null() -> None:
    functions = {getattr(metrics, name) for name in metrics.__all__}
    nulls = functions | {getattr(baselines, name) for name in baselines.__all__}
    for measure in MEASURES:
        assert measure.function is None or measure.function in functions, measure.name
        assert measure.null is None or measure.null in nulls, measure.name


@pytest.mark.parametrize("measure", OF_A_TRACE, ids=lambda measure: measure.name)
def test_the_value_is_a_column(measure: Measure) -> None:
    trace = random_trace(0, layers=2)
    function = measure.null or measure.function
    assert function is not None
    frame = function(trace, permutations=20) if measure.plant is not None else function(trace)
    assert measure.value in frame.columns
    if measure.bars is not None:
        assert measure.verdict is not None
        assert {"layer", "null_mean", "null_p99", "p_adjusted", "low", "high", "verdict"} <= set(frame.columns)


@pytest.mark.parametrize("measure", OF_A_TRACE, ids=lambda measure: measure.name)
def test_how_much_was_used_is_said_and_nothing_else_is_sampled(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = measure.name if measure.plant is not None else "domain_nmi"
    trace = random_trace(2, planted=planted, strength=3.0, layers=2)
    D = len(np.unique(trace.document_ids))
    function = measure.null or measure.function
    assert function is not None
    arguments = {"permutations": 99} if measure.plant is not None else {}
    whole = function(trace, **arguments)
    monkeypatch.setattr(permutation, "MAX_NULL_TOKENS", trace.num_tokens // 2)
    monkeypatch.setattr(permutation, "_MIN_TOKENS", trace.num_tokens // 2)
    frame = function(trace, **arguments)
    if measure.null is None:
        pd.testing.assert_frame_equal(frame, whole)
        return
    assert (whole["tested_tokens"] == trace.num_tokens).all()
    for unit, most in (("tokens", trace.num_tokens), ("documents", D)):
        assert (frame[f"trace_{unit}"] == most).all()
        assert ((frame[f"tested_{unit}"] > 0) & (frame[f"tested_{unit}"] <= most)).all()
    sampled = frame["tested_tokens"].iloc[0] < trace.num_tokens
    assert sampled == ((measure.null_needs or measure.needs) == "tokens" and measure.plant is not None)
    if not sampled:
        pd.testing.assert_frame_equal(frame, whole)
        return
    said = f"from {frame['tested_tokens'].iloc[0]} of 600 tokens, {frame['tested_documents'].iloc[0]} of 24 documents"
    if measure.verdict is not None:
        assert said in measure.verdict(frame)
    if measure.bars is not None:
        assert all(said in measure.bars.sentence(row) for row in frame.itertuples())


@pytest.mark.parametrize(
    "measure", [measure for measure in OF_A_TRACE if measure.needs == "counts"], ids=lambda measure: measure.name
)
def test_what_needs_counts_sees_no_token(measure: Measure) -> None:
    """The choices of a document change places: its counts stay, what a single token tells does not."""
    trace = random_trace(1, skew=0.5, planted="vocabulary", layers=2)
    order = np.lexsort((np.random.default_rng(0).random(trace.num_tokens), trace.document_ids))
    moved = replace(
        trace, router_indices=trace.router_indices[:, order], router_scores=trace.router_scores[:, order]
    )  # fmt: skip
    assert not metrics.vocabulary_specialization(trace).equals(metrics.vocabulary_specialization(moved))
    for function in (measure.function, measure.null):
        if function is not None:
            pd.testing.assert_frame_equal(function(trace), function(moved))


def test_every_bar_is_drawn_in_the_section_of_its_question() -> None:
    drawn = {figure.name for section in sections_of_trace(random_trace(2)) for figure in section.figures}
    assert {measure.bars.figure for measure in MEASURES if measure.bars is not None} <= drawn
