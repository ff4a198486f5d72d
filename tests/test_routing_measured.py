"""Measures that are computed once, however many sessions ask."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.measured import Measured


def trace(layers: int = 3) -> RoutingTrace:
    generator = np.random.default_rng(0)
    return RoutingTrace.from_arrays(
        router_indices=generator.integers(0, 4, (layers, 20, 1)),
        router_scores=np.ones((layers, 20, 1), np.float32),
        router_logits=generator.normal(size=(layers, 20, 4)),
        num_experts=4,
        token_ids=np.arange(20),
        document_ids=np.zeros(20, np.int32),
        layers=list(range(1, 2 * layers, 2)),
    )


def test_a_measure_is_computed_once_even_when_two_sessions_ask_at_once() -> None:
    calls = []

    def slow(of: RoutingTrace, factor: int) -> int:
        calls.append(factor)
        time.sleep(0.1)
        return factor * of.num_tokens

    measured = Measured(trace())
    assert not measured.has(slow, 2)
    answers: list[int] = []
    sessions = [threading.Thread(target=lambda: answers.append(measured.get(slow, 2))) for _ in range(3)]
    for session in sessions:
        session.start()
    for session in sessions:
        session.join()
    assert answers == [40, 40, 40]
    assert calls == [2]
    assert measured.has(slow, 2)
    assert measured.get(slow, 3) == 60
    assert calls == [2, 3]


def test_a_measure_that_fails_is_tried_again() -> None:
    measured, failing = Measured(trace()), [True]

    def fragile(of: RoutingTrace) -> int:
        if failing.pop():
            raise TraceError("not now")
        return of.num_tokens

    with pytest.raises(TraceError, match="not now"):
        measured.get(fragile)
    failing.append(False)
    assert measured.get(fragile) == 20


def test_a_part_holds_the_layers_that_were_asked_for() -> None:
    measured = Measured(trace())
    part = measured.part([3, 5])
    assert part.trace.layers == [3, 5]
    assert np.array_equal(part.trace.router_indices, measured.trace.router_indices[1:])
    assert part.trace.router_logits is not None
    assert part.get(metrics.expert_load)["layer"].unique().tolist() == [3, 5]
    assert measured.part([3, 5]) is part
    assert measured.part([1, 3, 5]).trace is measured.trace
