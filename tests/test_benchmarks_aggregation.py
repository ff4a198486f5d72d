"""The benchmark compares what it says it compares: it must find a wrong count."""

from __future__ import annotations

import pytest

from moe_core.benchmarks.aggregation import EXPERTS, OURS, PandasFrames, check_equal, compare, synthetic_trace


def test_both_ways_agree_and_are_timed_in_every_round() -> None:
    result = compare(synthetic_trace(tokens=3000), rounds=2)
    assert result.ours.columns.tolist() == result.pandas.columns.tolist() == list(OURS)
    assert len(result.ratios) == 2
    assert (result.ours.to_numpy() > 0).all()
    assert (result.ratios > 0).all()


@pytest.mark.parametrize("measure", list(OURS))
def test_a_single_wrong_count_is_found(measure: str) -> None:
    trace = synthetic_trace(tokens=3000)
    counts = PandasFrames.of(trace).counted(measure)
    frame = OURS[measure](trace)
    check_equal(measure, frame, counts, trace)
    column = "share" if measure == "vocabulary" else "tokens"
    wrong = frame.copy()
    wrong.loc[wrong["tokens"].idxmax(), column] += 1
    with pytest.raises(AssertionError):
        check_equal(measure, wrong, counts, trace)


def test_every_slot_of_the_synthetic_trace_is_used_by_two_different_experts() -> None:
    indices = synthetic_trace(tokens=3000).router_indices
    assert indices.min() == 0
    assert indices.max() == EXPERTS - 1
    assert (indices[..., 0] != indices[..., 1]).all()
