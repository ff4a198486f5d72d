"""The benchmark compares what it says it compares: it must find a wrong count."""

from __future__ import annotations

import pytest

from bench.aggregation import (
    ARROW,
    EXPERTS,
    MEASURES,
    OURS,
    PANDAS,
    LongTables,
    as_series,
    check_equal,
    compare,
    run,
    synthetic_trace,
    together,
)
from bench.suite import Scale


def test_all_ways_agree_and_are_timed_in_every_round() -> None:
    timings = compare(synthetic_trace(tokens=3000), rounds=2)
    assert len(timings.seconds.columns) == 3 * len(MEASURES)
    assert (timings.seconds.to_numpy() > 0).all()
    total = together(timings)
    assert total.seconds.columns.tolist() == [OURS, PANDAS, ARROW]
    assert total.seconds.sum().sum() == pytest.approx(timings.seconds.sum().sum())


def test_a_row_for_every_measure_and_both_libraries() -> None:
    rows = run(Scale(smoke=True, rounds=1))
    assert [row.against for row in rows] == [PANDAS] * 6 + [ARROW] * 6
    assert all(row.ratio is not None and row.value > 0 for row in rows)
    assert [row.goal.floor for row in rows if row.goal is not None] == [10.0, 3.0]


@pytest.mark.parametrize("measure", list(MEASURES))
def test_a_single_wrong_count_is_found(measure: str) -> None:
    trace = synthetic_trace(tokens=3000)
    tables = LongTables.of(trace)
    frame = MEASURES[measure](trace)
    column = "share" if measure == "vocabulary" else "tokens"
    wrong = frame.copy()
    wrong.loc[wrong["tokens"].idxmax(), column] += 1
    for counts in (tables.by_pandas(measure), as_series(measure, tables.by_arrow(measure))):
        check_equal(measure, frame, counts, trace)
        with pytest.raises(AssertionError):
            check_equal(measure, wrong, counts, trace)


def test_every_slot_of_the_synthetic_trace_is_used_by_two_different_experts() -> None:
    indices = synthetic_trace(tokens=3000).router_indices
    assert indices.min() == 0
    assert indices.max() == EXPERTS - 1
    assert (indices[..., 0] != indices[..., 1]).all()
